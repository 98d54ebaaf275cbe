"""Which processes: subgroups, wrappers taken off, loaders; and how much is sent."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from collectives import counted
from compare import assert_close
from problems import pose, pose_language_model
from shards import samples, shard, union
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import curvext as cx

LOSS = "ce_weight_ignore_smooth"


def posed_for(world, cut="uneven", network="mlp"):
    return pose(network, LOSS, samples=samples(cut, world))


def risk_of(posed, data, group, **options):
    return cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group, **options)


def error_of(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


# ---------------------------------------------------------------------- what is sent

ONE_SUM = {"allgather_": 1, "allreduce_": 1}

SENT = {
    "H v": (ONE_SUM, lambda r, v: r.hessian() @ v[:, 0]),
    "H V": (ONE_SUM, lambda r, v: r.hessian() @ v),
    "G V by name": (ONE_SUM, lambda r, v: r.ggn() @ r.ggn().split(v[:, 0])),
    "R V": (ONE_SUM, lambda r, v: r.model_curvature() @ v),
    "F V": (ONE_SUM, lambda r, v: r.fisher() @ v),
    "MC V": (ONE_SUM, lambda r, v: r.mc_fisher(samples=2) @ v),
    "E V": (ONE_SUM, lambda r, v: r.empirical_fisher() @ v),
    "E V by token": (ONE_SUM, lambda r, v: r.empirical_fisher(per="token") @ v),
    "gradient": (ONE_SUM, lambda r, v: r.gradient()),
    "diagonal": (ONE_SUM, lambda r, v: r.ggn().diagonal()),
    "diagonal of draws": (ONE_SUM, lambda r, v: r.mc_fisher().diagonal()),
    "norms": ({"allgather_": 2}, lambda r, v: r.empirical_fisher().gradient_norms()),
    "value": ({"allgather_": 1}, lambda r, v: r.value()),
    "two operators": (
        {"allgather_": 2, "allreduce_": 2},
        lambda r, v: (r.ggn() + r.hessian()) @ v,
    ),
}


def sent_by_a_rank(rank, world, case, cache):
    posed = posed_for(world)
    risk = risk_of(posed, shard(posed, "uneven", rank, world), dist.group.WORLD, cache=cache)
    v, call = posed.vectors(), SENT[case][1]
    return counted(lambda: call(risk, v)), counted(lambda: call(risk, v))


@pytest.mark.parametrize("cache", [False, "auto"])
@pytest.mark.parametrize("case", SENT)
def test_a_product_is_one_exchange_of_words_and_one_sum(ranks, case, cache):
    for first, second in ranks.run(sent_by_a_rank, case, cache):
        assert first == second == SENT[case][0]


def sent_alone(rank, world, case):
    groups = [dist.new_group([r]) for r in range(world)]
    posed = posed_for(world)
    risk = risk_of(posed, shard(posed, "uneven", rank, world), groups[rank])
    return counted(lambda: SENT[case][1](risk, posed.vectors()))


@pytest.mark.parametrize("case", SENT)
def test_a_world_of_one_sends_nothing(ranks, case):
    assert ranks.run(sent_alone, case) == [{}] * ranks.world


def steps_of_the_ring(rank, world):
    posed = posed_for(world)
    risk = risk_of(posed, shard(posed, "uneven", rank, world), dist.group.WORLD)
    E = risk.empirical_fisher()
    once = counted(E.gram)
    return once, sum(t.numel() > 0 for t in sent_tensors(E))


def sent_tensors(E):
    from curvext.operators.sample_gradients import SampleGradients
    from curvext.per_sample.parcels import packed
    from curvext.processes import Saying

    rows = SampleGradients(E._problem)
    with E._problem.call(Saying("records")) as rounds:
        for _ in rounds:
            records = rows._all()
    return packed(records).tensors


def test_the_records_of_each_rank_go_round_the_ring_once(ranks):
    found = ranks.run(steps_of_the_ring)
    tensors = [count for _, count in found]
    for rank, (counts, _) in enumerate(found):
        # what a rank sends: its own records, then those that it took, but for the last
        passed = [tensors[(rank - step) % ranks.world] for step in range(ranks.world - 1)]
        assert counts["send"] == sum(passed)


# ---------------------------------------------------------------------- groups


def in_a_subgroup(rank, world):
    group = dist.new_group(list(range(world - 1)))
    posed = posed_for(world - 1)
    if rank == world - 1:
        return error_of(lambda: risk_of(posed, union(posed), group))
    risk = risk_of(posed, shard(posed, "uneven", rank, world - 1), group)
    return risk.hessian() @ posed.vectors(), risk.empirical_fisher().gram()


def test_a_subgroup_answers_of_its_own_shards_and_refuses_who_is_outside(ranks):
    *inside, (name, message) = ranks.run(in_a_subgroup)
    assert name == "ValueError" and "not in the group" in message
    posed = posed_for(ranks.world - 1)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, union(posed))
    for product, gram in inside:
        assert_close(product, risk.hessian() @ posed.vectors())
        assert_close(gram, risk.empirical_fisher().gram())


def without_a_group(rank, world):
    posed = posed_for(world)
    data = shard(posed, "uneven", rank, world)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data)
    return counted(lambda: risk.hessian() @ posed.vectors()), risk.value()


def test_without_process_group_a_rank_is_alone(ranks):
    found = ranks.run(without_a_group)
    posed = posed_for(ranks.world)
    for rank, (sent, value) in enumerate(found):
        data = shard(posed, "uneven", rank, ranks.world)
        assert sent == {}
        assert value == pytest.approx(cx.EmpiricalRisk(posed.model, posed.loss, data).value())


def wrong_groups(rank, world):
    posed = posed_for(world)
    data = union(posed)
    inside = risk_of(posed, data, dist.group.WORLD)
    alone = cx.EmpiricalRisk(posed.model, posed.loss, data)
    return [
        error_of(lambda: risk_of(posed, data, "gloo")),
        error_of(lambda: inside.ggn() + alone.ggn()),
        error_of(lambda: inside.empirical_fisher().gram(alone)),
        error_of(lambda: pickle.dumps(inside)),
        error_of(lambda: copy.deepcopy(inside).value()),
    ]


def test_what_belongs_to_other_processes_is_not_mixed(ranks):
    for kind, added, gram, pickled, copied in ranks.run(wrong_groups):
        assert kind[0] == "TypeError" and kind[1].startswith("process_group: ")
        assert added[0] == "ValueError" and "different process groups" in added[1]
        assert gram[0] == "ValueError" and "different process groups" in gram[1]
        assert pickled[0] == "TypeError" and "cannot be pickled" in pickled[1]
        assert copied is None


def pass_without_a_call(rank, world):
    posed = posed_for(world)
    risk = risk_of(posed, shard(posed, "uneven", rank, world), dist.group.WORLD)

    def of_this_rank():
        with risk.backward_passes() as batches:
            return len(list(batches))

    return error_of(of_this_rank), risk.value()


def test_a_pass_that_other_ranks_know_nothing_of_is_refused(ranks):
    for (kind, message), _ in ranks.run(pass_without_a_call):
        assert kind == "RuntimeError" and "this process's data alone" in message


def of_rows(rank, world):
    posed, other = posed_for(world), posed_for(world, "nothing on the first")
    data = shard(posed, "uneven", rank, world)
    E = risk_of(posed, data, dist.group.WORLD).empirical_fisher()
    c = torch.arange(len(posed.y), dtype=torch.float64)
    return {
        "products": E.products(posed.vectors()),
        "weighted": E.weighted(c),
        "gram with other data": E.gram(shard(other, "nothing on the first", rank, world)),
        "too few": error_of(lambda: E.weighted(c[1:])),
    }


def test_rows_by_product_are_those_of_the_union(ranks):
    posed, other = posed_for(ranks.world), posed_for(ranks.world, "nothing on the first")
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, union(posed))
    c = torch.arange(len(posed.y), dtype=torch.float64)
    for answers in ranks.run(of_rows):
        assert_close(answers["products"], E.products(posed.vectors()))
        assert_close(answers["weighted"], E.weighted(c))
        assert_close(answers["gram with other data"], E.gram(union(other)))
        name, message = answers["too few"]
        assert name == "ValueError" and f"expected {len(c)} rows" in message


def of_language(rank, world):
    posed = pose_language_model(samples=3)
    batches = posed.cut(1, 1, 1)
    risk = risk_of(posed, batches[rank::world], dist.group.WORLD)
    v = posed.vectors()
    return [risk.hessian() @ v, risk.mc_fisher(seed=2).trace(), risk.empirical_fisher().trace()]


def test_a_language_model_with_batches_of_different_weight(ranks):
    posed = pose_language_model(samples=3)
    order = [i for rank in range(ranks.world) for i in range(3)[rank :: ranks.world]]
    batches = posed.cut(1, 1, 1)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, [batches[i] for i in order])
    v = posed.vectors()
    E, M = risk.empirical_fisher(), risk.mc_fisher(seed=2)
    for product, drawn, trace in ranks.run(of_language):
        assert_close(product, risk.hessian() @ v)
        assert_close(drawn, M.trace())
        assert_close(trace, E.trace())


# ---------------------------------------------------------------------- wrappers


def wrapped(rank, world):
    posed = posed_for(world, network="batch_norm_1d")
    data = shard(posed, "uneven", rank, world)
    model = DistributedDataParallel(posed.model)
    refused = error_of(lambda: cx.GGNOperator(model, posed.loss, data))
    nested = error_of(
        lambda: cx.GGNOperator(
            nn.Sequential(model), posed.loss, data, process_group=dist.group.WORLD
        )
    )
    risk = cx.EmpiricalRisk(model, posed.loss, data, process_group=dist.group.WORLD)
    product = risk.hessian() @ posed.vectors()
    left = [p.grad is not None or bool(p._backward_hooks) for p in model.parameters()]
    names = tuple(risk.hessian().param_shapes)
    model.train()
    x = torch.ones(2, 4, dtype=torch.float64) * torch.arange(2).view(2, 1) * (rank + 1)
    model(x).square().sum().backward()
    return refused, nested, product, any(left), names, [p.grad for p in model.parameters()]


def test_data_parallel_wrappers_are_taken_off_and_train_on(ranks):
    found = ranks.run(wrapped)
    posed = posed_for(ranks.world, network="batch_norm_1d")
    wanted = cx.HessianOperator(posed.model, posed.loss, union(posed))
    for refused, nested, product, left, names, grads in found:
        assert refused[0] == "ValueError"
        assert "process_group=" in refused[1] and "model.module" in refused[1]
        assert nested[0] == "ValueError" and "'0'" in nested[1]
        assert_close(product, wanted @ posed.vectors())
        assert not left and names == tuple(wanted.param_shapes)
        for mine, other in zip(grads, found[0][-1], strict=True):
            assert torch.equal(mine, other)  # the reducer still adds over the ranks


# ---------------------------------------------------------------------- loaders


class Unknown:
    """Batches of which nothing tells how many samples they have."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def by_loaders(rank, world):
    posed = posed_for(world)
    every = TensorDataset(posed.x, posed.y)
    mine = Subset(every, range(rank, len(every), world))
    even = DistributedSampler(every, world, rank, shuffle=False, drop_last=True)
    repeats = DistributedSampler(TensorDataset(posed.x[: world + 1]), world, rank)
    group, v = dist.group.WORLD, posed.vectors()
    unknown = Unknown(shard(posed, "uneven", rank, world))
    draws = risk_of(posed, unknown, group).mc_fisher(seed=4)
    return {
        "every W-th": risk_of(posed, DataLoader(mine, batch_size=2), group).hessian() @ v,
        "even": risk_of(posed, DataLoader(every, 2, sampler=even), group).hessian() @ v,
        "draws": draws @ v,
        "repeats": error_of(
            lambda: risk_of(posed, DataLoader(repeats.dataset, sampler=repeats), group)
        ),
    }


def test_loaders_over_shards_and_samplers_that_repeat(ranks):
    found, world = ranks.run(by_loaders), ranks.world
    posed = posed_for(world)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, union(posed))
    count = len(posed.y) // world * world
    even = cx.EmpiricalRisk(posed.model, posed.loss, (posed.x[:count], posed.y[:count]))
    for answers in found:
        assert_close(answers["every W-th"], risk.hessian() @ posed.vectors())
        assert_close(answers["even"], even.hessian() @ posed.vectors())
        assert_close(answers["draws"], risk.mc_fisher(seed=4) @ posed.vectors())
        name, message = answers["repeats"]
        assert name == "ValueError"
        assert (
            "DistributedSampler" in message
            and "Subset(data, range(rank, len(data), world))" in message
        )


# ---------------------------------------------------------------------- words


def explained(rank, world):
    posed, empty = posed_for(world), posed_for(world, "nothing on the first")
    whole = risk_of(posed, shard(posed, "uneven", rank, world), dist.group.WORLD).explain()
    data = shard(empty, "nothing on the first", rank, world)
    return whole, risk_of(empty, data, dist.group.WORLD).explain()


def test_the_explanation_names_the_group_and_the_samples_of_each_rank(ranks):
    shares = [4, 2, 5][: ranks.world]
    for rank, (text, with_nothing) in enumerate(ranks.run(explained)):
        assert ("no sample here" in with_nothing) == (rank == 0)
        assert f"rank {rank} of {ranks.world}, {shares} samples" in text
        assert "one exchange of words" in text
