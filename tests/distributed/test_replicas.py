"""What several processes answer of their shards is what one answers of the union, on every rank, with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from problems import pose
from quantities import answers
from shards import samples, shard, union


def posed_for(network, loss, cut, world):
    return pose(network, loss, samples=samples(cut, world))


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
