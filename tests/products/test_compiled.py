"""Compiled products are the eager ones: for every network, kept or not, and never stale."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import GRID
from problems import LOSSES, pose, pose_language_model
from torch import nn

import curvext as cx
from curvext.products.compiled import Compiler
from curvext.torch_internals.switches import deterministic_algorithms


@pytest.fixture
def interpreted(monkeypatch):
    """The stages run as they were traced: what is tested is the trace and its stages, not PyTorch's compiler."""
    monkeypatch.setattr(Compiler, "_compile", lambda self, code: code)


def calls_of(monkeypatch, method):
    """A list that grows with each call of a method of the compiler: whether it was for second derivatives."""
    made = []
    original = getattr(Compiler, method)

    def counted(self, *arguments, twice):
        made.append(twice)
        return original(self, *arguments, twice=twice)

    monkeypatch.setattr(Compiler, method, counted)
    return made


@pytest.fixture
def traces(monkeypatch):
    """The traces that are made."""
    return calls_of(monkeypatch, "_traced")


def risks(posed, data=None, **options):
    """The same risk, compiled and eager."""
    data = posed.data if data is None else data
    return (
        cx.EmpiricalRisk(posed.model, posed.loss, data, compile=True, **options),
        cx.EmpiricalRisk(posed.model, posed.loss, data, **options),
    )


def assert_same(compiled, eager, V, what, tol=None):
    """Every product and the gradient agree."""
    scale = float((eager.hessian() @ V).abs().max())
    for name in ("hessian", "model_curvature", "ggn"):
        got, expected = (getattr(r, name)() @ V for r in (compiled, eager))
        assert_close(got, expected, f"{what}, {name}", tol=tol, scale=scale)
    assert_close(compiled.gradient(), eager.gradient(), f"{what}, gradient", tol=tol)


# ---------------------------------------------------------------------- traces and stages


#: some of each kind, as a trace takes seconds; the others with --all-networks
TRACED = {
    *("mlp_inplace", "bilinear", "prelu", "conv1d", "conv2d_groups", "conv2d_reflect", "conv3d"),
    *("transposed2d", "conv_on_sequence_by_transpose", "layer_norm_2d", "group_norm", "rms_norm"),
    *("batch_norm_2d", "local_response_norm", "embedding", "attention", "attention_weights"),
    *("swin_windows", "encoder_layer", "lstm", "gru", "rnn", "tied", "reused", "scalar_parameter"),
    *("einsum_heads", "bmm_of_experts", "indexed_parameter", "functional_call", "weight_norm"),
    *("orthogonal", "frozen", "unused", "channels_last", "python_loop_over_samples"),
    "centred_over_the_batch",
}


def test_what_is_traced_is_in_the_grid():
    assert {name for name, _ in GRID} >= TRACED


@pytest.mark.parametrize("name, loss", GRID)
def test_networks_give_the_eager_products(name, loss, device, interpreted, request):
    if name not in TRACED and not request.config.getoption("--all-networks"):
        pytest.skip("left out: --all-networks")
    posed = pose(name, loss, device=device)
    assert_same(*risks(posed), posed.vectors(), name)


@pytest.mark.parametrize(
    "loss, reduction", [*((loss, "mean") for loss in LOSSES), ("ce_weight", "sum"), ("mse", "sum")]
)
def test_every_loss_in_uneven_batches(loss, reduction, device, interpreted, traces):
    posed = pose("mlp", loss, reduction, device)
    compiled, eager = risks(posed, posed.cut(1, 3, 1))
    assert_same(compiled, eager, posed.vectors(), loss)
    assert sorted(traces) == [False] * 2 + [True] * 2  # two shapes, of three batches


def test_a_language_model(device, interpreted):
    posed = pose_language_model(device)
    assert_same(*risks(posed), posed.vectors(), "gpt2")


@pytest.mark.parametrize("name", ["mlp", "tied"])
@pytest.mark.parametrize("samples", [1, 3])
def test_estimates_of_the_fisher_matrix_are_the_same(name, samples, device, interpreted):
    posed = pose(name, "ce", device=device)
    compiled, eager = risks(posed)
    V = posed.vectors()
    got, expected = (r.mc_fisher(samples, seed=5) @ V for r in (compiled, eager))
    assert_close(got, expected, name)


def test_some_parameters_alone(device, interpreted):
    posed = pose("mlp", "ce", device=device)
    compiled, eager = risks(posed, params="*weight")
    V = posed.vectors()[: eager.space.size]
    assert_same(compiled, eager, V, "weights")


# ---------------------------------------------------------------------- kept, and never stale


def test_the_network_runs_once_for_many_products(device, interpreted, monkeypatch):
    posed = pose("mlp", "ce", device=device)
    compiled, eager = risks(posed, cache=True)
    ran = calls_of(monkeypatch, "_start")
    H, G = compiled.hessian(), compiled.ggn()
    for v in posed.vectors(3).unbind(1):
        assert_close(H @ v, eager.hessian() @ v)
        assert_close(G @ v, eager.ggn() @ v)
    assert sorted(ran) == [False, True]


def test_nothing_is_kept_where_nothing_may_be(device, interpreted):
    posed = pose("mlp", "ce", device=device)
    compiled, eager = risks(posed, cache=False)
    assert_same(compiled, eager, posed.vectors(), "mlp")
    assert "kept: 0 linearisations" in compiled.explain()


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_after_a_change_in_place_the_answer_is_new(name, device, interpreted, traces):
    posed = pose(name, "ce", device=device)
    compiled, eager = risks(posed)
    V = posed.vectors()
    before = compiled.hessian() @ V
    with torch.no_grad():
        for t in (*posed.model.parameters(), *posed.model.buffers()):
            if t.is_floating_point():
                t.mul_(1.1)
    after = compiled.hessian() @ V
    assert not torch.allclose(before, after)
    assert_close(after, eager.hessian() @ V)
    assert len(traces) == 1


def test_batches_that_share_a_tensor_are_not_taken_for_others(device, interpreted):
    """In the first batch x and y are one tensor, in the second they are not."""
    torch.manual_seed(3)
    model = nn.Linear(4, 4).to(device, torch.float64)
    one = torch.randn(5, 4, dtype=torch.float64, device=device)
    data = [(one, one), (torch.randn_like(one), torch.randn_like(one))]
    compiled, eager = (
        cx.EmpiricalRisk(model, nn.MSELoss(), data, compile=c) for c in (True, False)
    )
    v = torch.randn(eager.space.size, dtype=torch.float64, device=device)
    assert_close(compiled.hessian() @ v, eager.hessian() @ v)
    assert_close(compiled.gradient(), eager.gradient())


def test_under_autocast_there_is_a_trace_of_its_own(device, interpreted, traces):
    posed = pose("mlp", "ce", device=device, dtype=torch.float32)
    compiled, eager = risks(posed, cache=False)
    V = posed.vectors()
    exact = compiled.ggn() @ V
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert_close(compiled.ggn() @ V, eager.ggn() @ V)
        assert_close(compiled.hessian() @ V, eager.hessian() @ V)
        assert not torch.allclose(compiled.ggn() @ V, exact, rtol=1e-4)
    assert_close(compiled.ggn() @ V, exact)
    assert len(traces) == 3


def test_a_tensor_of_another_order_of_memory_has_a_trace_of_its_own(device, interpreted, traces):
    posed = pose("conv2d", "ce", device=device)
    x, y = posed.data
    compiled, eager = risks(posed, [(x, y), (x.to(memory_format=torch.channels_last), y)])
    assert_close(compiled.ggn() @ posed.vectors(), eager.ggn() @ posed.vectors())
    assert len(traces) == 2


# ---------------------------------------------------------------------- bad input


def test_a_model_that_cannot_be_traced_is_an_error_that_says_so(device):
    class Branching(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if bool(y.sum() > 0) else -y

    model = Branching(4, 3).to(device)
    flags = [p.requires_grad for p in model.parameters()]
    data = (torch.randn(5, 4, device=device), torch.randint(3, (5,), device=device))
    H = cx.HessianOperator(model, nn.CrossEntropyLoss(), data, compile=True)
    with pytest.raises(RuntimeError, match="compile: the model cannot be traced"):
        H @ torch.ones(15, device=device)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_refused_as_without_compiling(device, interpreted):
    posed = pose("mlp", "ce", device=device)
    model = nn.Sequential(posed.model, nn.Dropout()).train()
    risk = cx.EmpiricalRisk(model, posed.loss, posed.data, compile=True)
    with pytest.raises(RuntimeError, match="Dropout"):
        risk.ggn() @ posed.vectors()


def test_nan_in_the_parameters_is_found_after_the_trace_too(device, interpreted):
    posed = pose("mlp", "ce", device=device)
    compiled, _ = risks(posed)
    compiled.ggn() @ posed.vectors()
    with torch.no_grad():
        next(posed.model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="nan"):
        compiled.ggn() @ posed.vectors()


@pytest.mark.parametrize("compile", ["no such backend", 1, None])
def test_an_unknown_backend_is_refused(compile):
    posed = pose("mlp")
    with pytest.raises(ValueError, match="compile: expected True, False or a backend"):
        cx.EmpiricalRisk(posed.model, posed.loss, posed.data, compile=compile)


def test_outputs_in_chunks_and_compiling_are_told_apart():
    posed = pose("mlp")
    with pytest.raises(ValueError, match="chunk_outputs"):
        cx.EmpiricalRisk(posed.model, posed.loss, posed.data, compile=True, chunk_outputs=2)


# ---------------------------------------------------------------------- PyTorch's compiler


@pytest.mark.parametrize(
    "name, dtype, product",
    [("cnn", torch.float64, "ggn"), ("encoder_layer", torch.float32, "hessian")],
)
def test_compiled_code_gives_the_eager_products_and_the_same_bits_twice(
    name, dtype, product, device
):
    posed = pose(name, "ce", device=device, dtype=dtype)
    compiled, eager = (getattr(risk, product)() for risk in risks(posed))
    V = posed.vectors()
    first = compiled @ V
    assert_close(first, eager @ V, name)
    assert torch.equal(first, compiled @ V)


def test_backends_other_than_the_default(device):
    posed = pose("mlp", "ce", device=device)
    compiled = cx.EmpiricalRisk(posed.model, posed.loss, posed.data, compile="aot_eager")
    eager = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    assert_same(compiled, eager, posed.vectors(), "mlp")
    assert "aot_eager, 2 traces" in compiled.explain()


@pytest.mark.parametrize("filled", [True, False])
def test_what_a_stage_allocates_is_not_filled_first(filled, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", filled)
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is filled
