"""Sharded parameters: every answer is that of one process on the union, and the model is left as found."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from fully_sharded import found, group, mesh_of, sharded, step
from problems import pose
from quantities import answers
from shards import samples, shard, union
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.func import functional_call

import curvext as cx

#: network, loss, cut of the data, whether blocks are sharded one by one, options
GRID = [
    ("mlp", "ce_weight_ignore_smooth", "uneven", True, {}),
    ("mlp", "mse", "nothing on the first", False, {"cache": False}),
    ("cnn", "ce_minus_100", "nothing on the last", True, {}),
    ("tied", "ce_weight", "uneven", False, {}),
    ("weight_norm", "bce", "empty batches", True, {}),
    ("attention", "custom", "uneven", True, {}),
]


def answers_of_a_rank(rank, world, network, loss, cut, blocks, options):
    posed = pose(network, loss, samples=samples(cut, world))
    sharded(posed.model, mesh_of(world), blocks)
    before = found(posed.model)
    value = answers(posed, shard(posed, cut, rank, world), loss, group(), **options)
    assert found(posed.model) == before
    return value


def check_answers(ranks, network, loss, cut, blocks, options):
    """Raises unless every rank answers as one process does of the union."""
    posed = pose(network, loss, samples=samples(cut, ranks.world))
    wanted = answers(posed, union(posed), loss)
    several = ranks.run(answers_of_a_rank, network, loss, cut, blocks, options)
    for name, value in wanted.items():
        assert_close(several[0][name], value, name)
        for other in several[1:]:
            assert torch.equal(other[name], several[0][name]), f"{name}: bits differ between ranks"


def test_every_answer_is_that_of_the_union(ranks):
    check_answers(ranks, *GRID[0])


@pytest.mark.parametrize("case", GRID[1:], ids=lambda case: case[0])
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_every_answer_of_other_networks_is_that_of_the_union(ranks, case):
    check_answers(ranks, *case)


def posed_and_sharded(rank, world, network="mlp", loss="ce_weight_ignore_smooth", **options):
    posed = pose(network, loss, samples=samples("uneven", world))
    sharded(posed.model, mesh_of(world), **options)
    data = shard(posed, "uneven", rank, world)
    return posed, cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group())


def risk_of_the_union(world, network="mlp", loss="ce_weight_ignore_smooth"):
    posed = pose(network, loss, samples=samples("uneven", world))
    return posed, cx.EmpiricalRisk(posed.model, posed.loss, union(posed))


# ---------------------------------------------------------------------- forms of vectors


def forms(rank, world):
    posed, risk = posed_and_sharded(rank, world)
    V = posed.vectors()
    G, E, K = risk.ggn(), risk.empirical_fisher(), risk.kfac()
    named = {
        name: p.__class__.from_local(
            part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )
        for (name, p), part in zip(
            posed.model.named_parameters(),
            G.local(V[:, 0]).split([p.to_local().numel() for p in posed.model.parameters()]),
            strict=True,
        )
        for part in [part.view(p.to_local().shape)]
    }
    by_name = (2 * G + 0.5 * cx.Identity(len(V))) @ named
    for name, p in posed.model.named_parameters():
        assert isinstance(by_name[name], DTensor)
        assert by_name[name].placements == p.placements
        assert by_name[name].to_local().shape == p.to_local().shape
    local = G.local(V)
    assert local.shape == (len(G.entries), 2) and torch.equal(local, V[G.entries])
    assert torch.equal(G.local(named), local[:, 0]) and torch.equal(G.full(named), V[:, 0])
    assert torch.equal(G.full(local), V) and torch.equal(G.full(local[:, 0]), V[:, 0])
    assert (G @ local).shape == local.shape and (G @ local[:, 0]).shape == local[:, 0].shape
    return {
        "entries": G.entries,
        "by name": G.full(by_name),
        "local": G.full(G @ local[:, 1]),
        "local matrix": G.full(G.matmat(local)),
        "solve": E.full(E.solve(local, damping=0.1)),
        "solve by name": E.full(E.solve(named, damping=0.1)),
        "products": E.products(local),
        "kfac": K.full(K @ local),
        "kfac solve": K.full(K.solve(local, 0.1)),
        "kfac inverse": K.full(K.inverse(0.1) @ local),
        "inner": G.inner(local, (G @ local)[:, :1]),
        "inner of one": G.inner(local[:, 0], local[:, 1]),
        "inner of whole": G.inner(V, V),
    }


def test_the_three_forms_of_a_vector_give_one_answer(ranks):
    posed, risk = risk_of_the_union(ranks.world)
    V = posed.vectors()
    G, E, K = risk.ggn(), risk.empirical_fisher(), risk.kfac()
    GV = G @ V
    wanted = {
        "by name": 2 * GV[:, 0] + 0.5 * V[:, 0],
        "local": GV[:, 1],
        "local matrix": GV,
        "solve": E.solve(V, damping=0.1),
        "solve by name": E.solve(V[:, 0], damping=0.1),
        "products": E.products(V),
        "kfac": K @ V,
        "kfac solve": K.solve(V, 0.1),
        "kfac inverse": K.solve(V, 0.1),
        "inner": V.T @ GV[:, :1],
        "inner of one": V[:, 0] @ V[:, 1],
        "inner of whole": V.T @ V,
    }
    several = ranks.run(forms)
    for value in several:
        for name, expected in wanted.items():
            assert_close(value[name], expected, name)
    entries = torch.cat([value["entries"] for value in several])
    assert sorted(entries.tolist()) == list(range(len(V)))
    assert len({len(value["entries"]) for value in several}) > 1  # uneven


def one_row(rank, world):
    """One rank holds everything: the other ranks' local vectors are empty."""
    torch.manual_seed(0)
    model = fully_shard(nn.Linear(4, 1, bias=False).double(), mesh=mesh_of(world))
    data = [(torch.ones(2, 4).double() * (rank + 1), torch.zeros(2, 1).double())]
    G = cx.GGNOperator(model, nn.MSELoss(), data, process_group=group())
    v = torch.arange(4.0, dtype=torch.float64)
    local = G.local(v)
    assert len(local) == (4 if rank == 0 else 0)
    assert torch.equal(G.full(G @ local), G @ v)
    assert torch.equal(G.inner(local, local), G.inner(v, v))
    return G @ v


def test_a_rank_may_hold_all_entries_or_none(ranks):
    world = ranks.world
    model = nn.Linear(4, 1, bias=False).double()
    x = torch.cat([torch.ones(2, 4).double() * (rank + 1) for rank in range(world)])
    G = cx.GGNOperator(model, nn.MSELoss(), (x, torch.zeros(2 * world, 1).double()))
    for value in ranks.run(one_row):
        assert_close(value, G @ torch.arange(4.0, dtype=torch.float64))


def replicas(rank, world):
    posed = pose("mlp", samples=samples("uneven", world))
    data = shard(posed, "uneven", rank, world)
    G = cx.GGNOperator(posed.model, posed.loss, data, process_group=group())
    v = posed.vectors()[:, 0]
    return hasattr(G, "inner"), hasattr(G, "entries"), torch.equal(G.full(G.local(v)), v)


def test_vectors_of_replicas_are_whole(ranks):
    assert ranks.run(replicas) == [(False, False, True)] * ranks.world


# ---------------------------------------------------------------------- selections


def selections(rank, world):
    posed, _ = posed_and_sharded(rank, world)
    model, data = posed.model, shard(posed, "uneven", rank, world)
    first = next(model.parameters())
    first.requires_grad_(False)
    H = cx.HessianOperator(model, posed.loss, data, process_group=group())
    some = cx.HessianOperator(model, posed.loss, data, "*bias", process_group=group())
    before = found(model)
    dense = H.to_dense(), some.to_dense()
    assert found(model) == before
    first.requires_grad_(True)
    return [list(H.param_shapes), *dense, len(H.local(torch.ones(H.size).double()))]


def test_frozen_parameters_and_selections(ranks):
    posed, _ = risk_of_the_union(ranks.world)
    data = union(posed)
    next(posed.model.parameters()).requires_grad_(False)
    H = cx.HessianOperator(posed.model, posed.loss, data)
    some = cx.HessianOperator(posed.model, posed.loss, data, "*bias")
    several = ranks.run(selections)
    for names, dense, biases, _ in several:
        assert names == list(H.param_shapes)
        assert_close(dense, H.to_dense())
        assert_close(biases, some.to_dense())
    assert sum(count for *_, count in several) == H.size


# ---------------------------------------------------------------------- the model as it is


def follows(rank, world):
    posed, risk = posed_and_sharded(rank, world)
    H, v = risk.hessian(), posed.vectors()[:, 0]
    found = [H @ v]
    with torch.no_grad():
        for p in posed.model.parameters():
            p.mul_(1.5)
    found.append(H @ v)
    bias = [p for p in posed.model.parameters() if p.ndim == 1][-1].to_local()
    if rank == 0:  # one entry on one rank, in a way that leaves the version alone
        bias.data[0] += 0.25
    found.append(H @ v)
    return found


def test_a_change_on_one_rank_is_seen_on_all(ranks):
    posed, risk = risk_of_the_union(ranks.world)
    H, v = risk.hessian(), posed.vectors()[:, 0]
    wanted = [H @ v]
    with torch.no_grad():
        for p in posed.model.parameters():
            p.mul_(1.5)
        wanted.append(H @ v)
        [p for p in posed.model.parameters() if p.ndim == 1][-1][0] += 0.25
    wanted.append(H @ v)
    for several in ranks.run(follows):
        for value, expected in zip(several, wanted, strict=True):
            assert_close(value, expected)


def moves(rank, world):
    posed, risk = posed_and_sharded(rank, world)
    start = risk.flat_parameters()
    cx.take_step(risk, posed.vectors()[:, 0], length=0.1)
    assert_close(risk.flat_parameters(), start + 0.1 * posed.vectors()[:, 0])
    found = [risk.gradient()]
    with cx.objective(risk) as o:
        found.append(torch.tensor(o.fun(start.numpy() * 0.5)))
    found.append(risk.gradient())
    assert all(isinstance(p, DTensor) for p in posed.model.parameters())
    return found


def test_steps_and_objectives_move_the_shards(ranks):
    posed, risk = risk_of_the_union(ranks.world)
    start = risk.flat_parameters()
    cx.take_step(risk, posed.vectors()[:, 0], length=0.1)
    wanted = [risk.gradient()]
    with cx.objective(risk) as o:
        wanted.append(torch.tensor(o.fun(start.numpy() * 0.5)))
    wanted.append(risk.gradient())
    for several in ranks.run(moves):
        for value, expected in zip(several, wanted, strict=True):
            assert_close(value, expected)


def on_a_mesh_of_two_dimensions(rank, world):
    found = []
    for shape in ((world, 1), (1, world)):
        posed = pose("mlp", "ce_weight_ignore_smooth", samples=samples("uneven", world))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))
        sharded(posed.model, mesh)
        before = [(id(p), p.placements) for p in posed.model.parameters()]
        data = shard(posed, "uneven", rank, world)
        risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group())
        H, V = risk.hessian(), posed.vectors()
        local = H.local(V)
        assert before == [(id(p), p.placements) for p in posed.model.parameters()]
        found += [H @ V, H.full(H @ local), H.inner(local, H @ local)]
        if shape[1] == world:
            continue
        error = None
        try:  # copies that differ
            with torch.no_grad():
                next(posed.model.parameters()).to_local().add_(0.1 * rank)
            H @ V
        except ValueError as raised:
            error = str(raised)
        assert error is not None and "contents of the parameters are not the same" in error
    return found


def test_shards_may_have_copies(ranks):
    posed, risk = risk_of_the_union(ranks.world)
    V = posed.vectors()
    HV = risk.hessian() @ V
    for several in ranks.run(on_a_mesh_of_two_dimensions):
        for value, expected in zip(several, [HV, HV, V.T @ HV] * 2, strict=True):
            assert_close(value, expected)


def alone(rank, world):
    """A mesh of this rank alone, in a process that has others."""
    mesh = DeviceMesh.from_group([dist.new_group([r]) for r in range(world)][rank], "cpu")
    posed = pose("mlp", "ce")
    sharded(posed.model, mesh)
    before = found(posed.model)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, (posed.x, posed.y))
    V = posed.vectors()
    checked = risk.check()
    outputs = risk.jvp(V[:, 0])
    answers = [risk.hessian() @ V, outputs, risk.vjp(outputs)]
    assert found(posed.model) == before
    return checked.ok, answers


def test_one_process_may_have_sharded_parameters_too(ranks):
    posed = pose("mlp", "ce")
    risk = cx.EmpiricalRisk(posed.model, posed.loss, (posed.x, posed.y))
    V = posed.vectors()
    outputs = risk.jvp(V[:, 0])
    wanted = [risk.hessian() @ V, outputs, risk.vjp(outputs)]
    for ok, several in ranks.run(alone):
        assert ok
        for value, expected in zip(several, wanted, strict=True):
            assert_close(value, expected)


class Blocks(nn.Module):
    """Two blocks, the second checkpointed, and a recurrent layer, which keeps a list of its weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4)
        self.recurrent, self.last = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = torch.utils.checkpoint.checkpoint(
            lambda z: torch.tanh(self.second(z)), x, use_reentrant=False
        )
        return self.last(self.recurrent(x.unsqueeze(1))[0][:, 0])


def blocks():
    torch.manual_seed(1)
    return Blocks().double(), torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])


def small(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)
    return model, torch.randn(9, 4, dtype=dtype), torch.arange(9) % 3


def written_out(model, batch):
    """The forward pass with the casts of the policy below."""
    low = {name: p.to(torch.bfloat16) for name, p in model.named_parameters()}
    return functional_call(model, low, (batch[0].to(torch.bfloat16),)).float()


def precisely(risk, v):
    E = risk.empirical_fisher()
    return {
        "H": risk.hessian() @ v,
        "G": risk.ggn() @ v,
        "M": risk.mc_fisher() @ v,
        "E": E @ v,
        "norms": E.gradient_norms(),
        "diag E": E.diagonal(),
        "K": risk.kfac() @ v,
        "gradient": risk.gradient(),
        "parameters": risk.flat_parameters(),
    }


def in_mixed_precision(rank, world):
    """Answers of the policy, and in the same process, whose bfloat16 rounds alike, those of the casts."""
    model, x, y = small()
    data = [(x[r::world], y[r::world]) for r in range(world)]
    loss = nn.CrossEntropyLoss()
    alone = cx.EmpiricalRisk(model, loss, data, forward=written_out)
    v = torch.linspace(-1, 1, alone.ggn().size)
    wanted = precisely(alone, v)
    model, _, _ = small()
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
    )
    sharded(model, mesh_of(world), blocks=False, mp_policy=policy)
    before = found(model)
    risk = cx.EmpiricalRisk(model, loss, data[rank], process_group=group())
    answers = precisely(risk, v)
    G = risk.ggn()
    by_entries = G @ G.local(v)
    assert by_entries.dtype is torch.float32 and torch.equal(G.full(by_entries), answers["G"])
    assert found(model) == before
    return answers, wanted


def test_a_mixed_precision_policy_is_the_model_with_its_casts_written_out(ranks):
    for got, wanted in ranks.run(in_mixed_precision):
        for name, expected in wanted.items():
            assert_close(got[name], expected, name, tol=1e-5)


class Encoder(nn.Module):
    """Called by a method of its own that ``register_fsdp_forward_method`` was told of."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 3)

    def encode(self, x):
        return torch.tanh(self.inside(x))


def encodes(rank, world):
    torch.manual_seed(0)
    model = Encoder().double()
    sharded(model, mesh_of(world))
    register_fsdp_forward_method(model, "encode")
    data = (torch.ones(2, 4).double() * (1 + rank), torch.ones(2, 3).double())
    options = {"forward": lambda m, batch: m.encode(batch[0]), "process_group": group()}
    before = found(model)
    answer = cx.HessianOperator(model, nn.MSELoss(), data, **options).to_dense()
    assert found(model) == before
    return answer


def test_methods_that_stand_for_forward_are_called_as_written(ranks):
    torch.manual_seed(0)
    model = Encoder().double()
    x = torch.cat([torch.ones(2, 4).double() * (1 + rank) for rank in range(ranks.world)])
    data = (x, torch.ones(len(x), 3).double())
    H = cx.HessianOperator(model, nn.MSELoss(), data, forward=lambda m, b: m.encode(b[0]))
    for value in ranks.run(encodes):
        assert_close(value, H.to_dense())


def trains(rank, world, calls):
    model, x, y = blocks()
    sharded(model, mesh_of(world))
    loss = nn.CrossEntropyLoss()
    mine = x[rank::world], y[rank::world]
    answers = []
    for _ in range(2):
        if calls:
            risk = cx.EmpiricalRisk(model, loss, [mine] * (1 + rank), process_group=group())
            answers.append(risk.hessian().to_dense())
            model(
                mine[0]
            )  # a forward pass without a backward pass leaves the outermost block whole
            answers.append(risk.gradient())
            assert all(isinstance(p, DTensor) and p.grad is None for p in model.parameters())
        after = step(model, mine[0], lambda f: loss(f, mine[1]))
        if calls:
            answers.append(risk.gradient())
    return after, answers


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_the_model_trains_on_as_without_a_call(ranks):
    world = ranks.world
    with_calls, without = ranks.run(trains, True), ranks.run(trains, False)
    for (after, _), (plain, _) in zip(with_calls, without, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))
    model, x, y = blocks()
    data = [(x[rank::world], y[rank::world]) for rank in range(world) for _ in range(1 + rank)]
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    assert_close(with_calls[0][1][0], risk.hessian().to_dense())
    assert_close(with_calls[0][1][1], risk.gradient())
