"""What several processes answer of their shards is what one answers of the union, on every rank, with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from problems import pose
from shards import samples, shard, union

import curvext as cx


def posed_for(network, loss, cut, world):
    return pose(network, loss, samples=samples(cut, world))


def answers(posed, data, loss_name, group=None, **options):
    """All that a risk answers."""
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group, **options)
    V = posed.vectors()
    H, G, R, E = risk.hessian(), risk.ggn(), risk.model_curvature(), risk.empirical_fisher()
    found = {
        "value": torch.tensor(risk.value(), dtype=torch.float64),
        "gradient": risk.gradient(),
        "H": H @ V,
        "G": G @ V[:, 0],
        "R": R @ V,
        "2H + G": (2 * H + G - cx.Identity(len(V))) @ V,
        "by name": G.flatten(G @ G.split(V[:, 1])),
        "E": E @ V,
        "diag E": E.diagonal(),
        "tr E": E.trace(),
        "norms": E.gradient_norms(),
        "gram": E.gram(),
        "solve": E.solve(V, damping=0.1),
        "eigh": E.eigh(1).values,
        "norms by function": cx.per_sample_gradient_norms(
            posed.model, posed.loss, data, process_group=group
        ),
        "diag E by function": E.flatten(
            cx.fisher_diagonal(posed.model, posed.loss, data, process_group=group)
        ),
        "diag G": G.diagonal(),
        "tr G": G.trace(),
        "diag G by function": G.flatten(
            cx.ggn_diagonal(posed.model, posed.loss, data, process_group=group)
        ),
    }
    if loss_name != "custom":
        M = risk.mc_fisher(samples=2, seed=3)
        found |= {
            "F": risk.fisher() @ V,
            "M": M @ V,
            "diag M": M.diagonal(),
            "tr M": M.trace(),
            "diag M by function": G.flatten(
                cx.fisher_diagonal(
                    posed.model, posed.loss, data, "mc", samples=2, seed=3, process_group=group
                )
            ),
        }
    if loss_name.startswith("ce"):
        T = risk.empirical_fisher(per="token")
        found |= {"T": T @ V, "diag T": T.diagonal(), "tr T": T.trace()}
    return found


def answers_of_a_rank(rank, world, network, loss, cut, options):
    posed = posed_for(network, loss, cut, world)
    return answers(posed, shard(posed, cut, rank, world), loss, dist.group.WORLD, **options)


GRID = [
    ("mlp", "ce_weight_ignore_smooth", "uneven", {}),
    ("mlp", "mse", "nothing on the first", {"cache": False}),
    ("mlp", "custom", "nothing on the last", {}),
    ("mlp", "bce", "empty batches", {}),
    ("cnn", "ce_minus_100", "uneven", {"cache": False}),
    ("tied", "ce_weight", "uneven", {}),
    ("encoder_layer", "ce", "uneven", {}),
    ("parametrised", "ce_weight", "empty batches", {}),
    ("weight_norm", "mse", "uneven", {}),
    ("attention", "mse", "nothing on the first", {}),
]


@pytest.mark.parametrize("network, loss, cut, options", GRID)
def test_every_answer_is_that_of_the_union(ranks, network, loss, cut, options):
    posed = posed_for(network, loss, cut, ranks.world)
    wanted = answers(posed, union(posed), loss)
    found = ranks.run(answers_of_a_rank, network, loss, cut, options)
    for name, value in wanted.items():
        assert_close(found[0][name], value, name)
        for other in found[1:]:
            assert torch.equal(other[name], found[0][name]), f"{name}: bits differ between ranks"
