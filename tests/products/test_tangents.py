"""Tangents carried up a kept graph, against the derivative of the gradient by what it is linear in."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from models import CASES, make
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvext as cx
from curvext.graph.autograd_graph import Graph
from curvext.operations import alternative
from curvext.operations.attention_formulas import _CHUNK
from curvext.operations.attention_in_closed_form import attention_in_closed_form
from curvext.operations.gelu import ClosedFormGelu
from curvext.operations.layer_norm import ClosedFormLayerNorm, layer_norm_in_closed_form
from curvext.operations.table import OPERATIONS
from curvext.products.tangents import Tangents

torch.manual_seed(0)


def by_double_backward(output, parameters, v):
    """J v as the derivative of Jᵀu by u, which is another definition of it."""
    u = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, parameters, u, create_graph=True, allow_unused=True)
    live = [(p, t) for p, t in zip(pulled, v, strict=True) if p is not None and p.requires_grad]
    (product,) = torch.autograd.grad(
        [p for p, _ in live], u, [t for _, t in live], allow_unused=True
    )
    return torch.zeros_like(output) if product is None else product


def assert_tangent(output, parameters, expected=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    v = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]
    graph = Graph(output, parameters)
    assert not Tangents.missing(graph)
    got = Tangents(graph)(v)
    want = by_double_backward(output, parameters, v) if expected is None else expected(v)
    if got is None:
        got = torch.zeros_like(want)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    return graph


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.by_differences])
def test_a_tangent_is_the_derivative_of_the_pulled_back_gradient(name, device):
    model, x = make(name, device)
    with sdpa_kernel(SDPBackend.MATH):
        output = model(**x) if isinstance(x, dict) else model(x)
    output = getattr(output, "logits", output)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if Tangents.missing(Graph(output, parameters)):
        pytest.skip("a function written in Python: this network takes double backward")
    assert_tangent(output, parameters)


X = torch.randn(3, 4, dtype=torch.float64)

ELEMENTWISE = {
    "abs": torch.abs,
    "celu": F.celu,
    "elu": F.elu,
    "selu": F.selu,
    "erf": torch.erf,
    "exp": torch.exp,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "log": lambda x: x.abs().log(),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "neg": torch.neg,
    "pow": lambda x: x**3,
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "rsqrt": lambda x: (x * x).rsqrt(),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "tanh": torch.tanh,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
}
OTHERS = {
    "add a broadcast": lambda x: x + 2 * x[:1],
    "add a number": lambda x: x + 1,
    "subtract": lambda x: torch.sub(x[:, :1], x, alpha=3),
    "subtract from a number": lambda x: 1 - x,
    "multiply": lambda x: x * x.flip(0),
    "multiply broadcast": lambda x: x[:1] * x,
    "multiply by a number": lambda x: 3 * x,
    "multiply by a constant": lambda x: x * X,
    "divide": lambda x: x / (2 + x[:1] ** 2),
    "mean": lambda x: x.mean((0, -1), keepdim=True),
    "mean of all": lambda x: x.mean(),
    "sum": lambda x: x.sum(-1),
    "sum of all": lambda x: x.sum(),
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(-1),
    "layer_norm without weight": lambda x: F.layer_norm(x, (4,)),
    "layer_norm": lambda x: F.layer_norm(x, (4,), x[0], x[1]),
    "layer_norm with weight alone": lambda x: F.layer_norm(X, (4,), x[0]),
    "layer_norm with bias alone": lambda x: F.layer_norm(X, (4,), None, x[0]),
    "rms_norm": lambda x: F.rms_norm(x, (4,), x[0]),
    "max_pool1d": lambda x: F.max_pool1d(x[None], 2),
    "max_pool2d": lambda x: F.max_pool2d(x[None, None], 2, padding=1),
    "max_pool3d": lambda x: F.max_pool3d(x.view(1, 1, 3, 2, 2), 2),
    "avg_pool": lambda x: F.avg_pool2d(x[None, None], 2),
    "mm": lambda x: x.mT @ x,
    "bmm": lambda x: torch.bmm(x.view(3, 2, 2), x.view(3, 2, 2).mT),
    "addmm": lambda x: torch.addmm(x[0], x, x.mT @ x, alpha=2, beta=3),
    "addmm without bias": lambda x: torch.addmm(X[0], x, X.mT @ X),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "unbind": lambda x: x.unbind(1)[2] * x.unbind(1)[0],
    "cat": lambda x: torch.cat([x, X, 2 * x], 1),
    "stack": lambda x: torch.stack([x, x.exp()]),
    "where": lambda x: torch.where(X > 0, x, x.square()),
    "gather": lambda x: x.gather(1, torch.tensor([[0, 3], [1, 1], [2, 0]])),
    "index": lambda x: x[torch.tensor([0, 0, 2])],
    "cumsum": lambda x: x.cumsum(0),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "max": lambda x: x.max(1).values,
    "amax": lambda x: x.amax(0),
    "logsumexp": lambda x: x.logsumexp(1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "expand": lambda x: x[:, None].expand(3, 2, 4),
    "repeat": lambda x: x.repeat(2, 1),
    "pad": lambda x: F.pad(x, (1, 2)),
    "to another dtype": lambda x: (x.float() * 2).double(),
    "a part in place": lambda x: x.clone().index_fill_(0, torch.tensor([1]), 0.0) * x,
    "embedding": lambda x: F.embedding(torch.tensor([0, 1, 2, 1]), x),
    "conv1d": lambda x: F.conv1d(x[None], x.view(2, 3, 2), x[0, :2], padding=1),
    "conv2d of a constant": lambda x: F.conv2d(X.view(1, 1, 3, 4), x.view(3, 1, 2, 2)),
    "conv2d by a constant": lambda x: F.conv2d(x.view(1, 1, 3, 4), X.view(3, 1, 2, 2)),
    "conv2d, bias alone": lambda x: F.conv2d(X.view(1, 1, 3, 4), X.view(3, 1, 2, 2), x[:, 0]),
    "transposed convolution": lambda x: F.conv_transpose1d(x[None], x.view(3, 2, 2), stride=2),
    "grouped convolution": lambda x: F.conv1d(x[:2][None], x[:2].view(4, 1, 2), groups=2),
}


@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS])
def test_the_tangent_of_one_operation_is_its_derivative(name):
    function = {**ELEMENTWISE, **OTHERS}[name]
    x = X.clone().requires_grad_()
    # torch.func's forward mode is a third way to the same derivative, and has its own rules
    assert_tangent(function(x), [x], lambda v: torch.func.jvp(function, (X,), (v[0],))[1])


def test_the_row_of_padding_has_no_tangent_as_it_has_no_gradient():
    x = X.clone().requires_grad_()
    assert_tangent(F.embedding(torch.tensor([0, 1, 2, 1]), x, padding_idx=1), [x])


def test_every_elementwise_rule_is_for_a_node_that_exists():
    """A rule under a misspelt name would never be used, and no answer would tell."""
    made = set()
    for function in {**ELEMENTWISE, **OTHERS}.values():
        x = X.clone().requires_grad_()
        made |= set(Graph(function(x), [x]).names)
    for function in (torch.acos, torch.asin, torch.atan, torch.cos, torch.cosh, torch.expm1):
        x = (X / 10).requires_grad_()
        made.add(function(x).grad_fn.name())
    for function in (
        torch.log10,
        torch.log1p,
        torch.log2,
        torch.sin,
        torch.sinh,
        torch.sqrt,
        torch.tan,
    ):
        x = X.abs().requires_grad_()
        made.add(function(x).grad_fn.name())
    closed = ClosedFormGelu.apply(
        X.clone().requires_grad_()
    )  # the node lives as long as its tensor
    made.add(closed.grad_fn.name())
    made |= {
        "ClosedFormLayerNormBackward",
        "NativeBatchNormBackward0",
    }  # held by the tests of norms
    made.add("CudnnBatchNormBackward0")  # held by the tests of CUDA's nodes
    made.add("_ClosedFormAttentionBackward")  # held by the tests of attention
    made.add("ScaledDotProductFlashAttentionForCpuBackward0")
    assert {name for name, known in OPERATIONS.items() if known.tangent} - made == set()


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": torch.randn(5, 6, dtype=torch.float64)},
    "mask for each head": {"attn_mask": torch.randn(3, 2, 5, 6, dtype=torch.float64)},
    "boolean mask": {"attn_mask": torch.ones(5, 6).tril().bool()},
    "scale": {"scale": 0.3},
    "chunks": {},
}


def attention_inputs(device):
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2, 5, 4), (3, 2, 6, 4), (3, 2, 6, 4)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes
    ]


def composed_attention(*inputs, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*inputs, **options)


@pytest.fixture(params=ATTENTION)
def attention_options(request, device, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setitem(_CHUNK, device.type, 70)
    options = ATTENTION[request.param]
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("which", ["qkv", "q", "k", "v"])
def test_the_tangent_of_fused_attention_is_that_of_the_composed_one(which, attention_options):
    inputs = attention_inputs("cpu")
    options = {
        k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in attention_options.items()
    }
    leaves = [t.requires_grad_() for name, t in zip("qkv", inputs, strict=True) if name in which]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = F.scaled_dot_product_attention(*inputs, **options)
    composed = composed_attention(*inputs, **options)
    graph = assert_tangent(fused, leaves, lambda v: by_double_backward(composed, leaves, v))
    assert "ScaledDotProductFlashAttentionForCpuBackward0" in graph.names


def derivatives(y, inputs, g, u):
    """The gradients along g, and those of their inner product with u, which are second derivatives."""
    first = torch.autograd.grad(y, inputs, g, create_graph=True)
    inner = sum((a * b).sum() for a, b in zip(first, u, strict=True))
    second = torch.autograd.grad(inner, [g, *inputs], materialize_grads=True)
    return [y, *first, *second]


def test_attention_in_closed_form_has_both_derivatives_of_the_composed_one(
    attention_options, device
):
    inputs = [t.requires_grad_() for t in attention_inputs(device)]
    g = torch.randn(3, 2, 5, 4, dtype=torch.float64, device=device, requires_grad=True)
    u = [torch.randn_like(t) for t in inputs]
    with attention_in_closed_form():
        ours = F.scaled_dot_product_attention(*inputs, **attention_options)
    assert ours.grad_fn.name() == "_ClosedFormAttentionBackward"
    graph = assert_tangent(ours, inputs)
    assert "_ClosedFormAttentionBackward" in graph.names
    theirs = composed_attention(*inputs, **attention_options)
    for a, b in zip(
        derivatives(ours, inputs, g, u), derivatives(theirs, inputs, g, u), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_attention_with_an_option_that_the_closed_form_lacks_is_left_to_pytorch(device):
    q, k, v = (t.requires_grad_() for t in attention_inputs(device))
    learned = torch.zeros(5, 6, dtype=torch.float64, device=device, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), attention_in_closed_form():
        for y in (
            F.scaled_dot_product_attention(q, k, v, attn_mask=learned),
            F.scaled_dot_product_attention(q, k[:1], v[:1]),
            F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
        ):
            assert y.grad_fn.name() != "_ClosedFormAttentionBackward"


def test_a_position_that_sees_nothing_has_no_curvature(device):
    mask = torch.tensor([[True, True, False], [False, False, False]], device=device)
    q, k = (torch.randn(1, 1, t, 4, dtype=torch.float64, device=device) for t in (2, 3))
    q.requires_grad_()
    with attention_in_closed_form():
        y = F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
    tangent = Tangents(Graph(y, [q]))([torch.ones_like(q)])
    assert torch.isfinite(tangent).all() and torch.all(tangent[0, 0, 1] == 0)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def test_a_function_written_in_python_is_said_to_be_missing():
    x = X.clone().requires_grad_()
    assert Tangents.missing(Graph(_Cube.apply(x).sum(), [x])) == {"_CubeBackward"}


def test_a_function_of_the_user_is_not_taken_for_ours_by_its_name():
    """The user's GELU is the one with tanh, and its class has the plain name."""

    class Gelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return F.gelu(x, approximate="tanh")

        @staticmethod
        def backward(ctx, g):
            return torch.ops.aten.gelu_backward(g, *ctx.saved_tensors, approximate="tanh")

    x = X.clone().requires_grad_()
    assert Tangents.missing(Graph(Gelu.apply(x).sum(), [x])) == {"GeluBackward"}


def test_what_does_not_lead_to_a_parameter_is_not_missed():
    x, constant = X.clone().requires_grad_(), X.clone().requires_grad_()
    assert Tangents.missing(Graph(x * _Cube.apply(constant), [x])) == set()


def test_a_network_of_python_functions_has_products_all_the_same(device):
    model = nn.Linear(4, 3, dtype=torch.float64, device=device)

    class Cubed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return _Cube.apply(self.inner(x))

    class Composed(Cubed):
        def forward(self, x):
            return self.inner(x) ** 3

    data = (X.to(device), torch.tensor([0, 1, 2], device=device))
    v = torch.randn(15, dtype=torch.float64, device=device)
    for operator in (cx.GGNOperator, cx.HessianOperator):
        a = operator(Cubed(), nn.CrossEntropyLoss(), data) @ v
        b = operator(Composed(), nn.CrossEntropyLoss(), data) @ v
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_output_that_is_a_parameter_moves_with_it():
    x = X.clone().requires_grad_()
    assert torch.equal(Tangents(Graph(x, [x]))([X]), X)


def test_the_second_output_of_the_last_operation_is_taken():
    x = X.clone().requires_grad_()
    assert torch.equal(Tangents(Graph(x.unbind(0)[1], [x]))([X]), X[1])


def test_the_closed_form_gelu_has_the_derivatives_of_pytorch_s(device):
    x = torch.linspace(-6, 6, 41, dtype=torch.float64, device=device, requires_grad=True)
    g = torch.randn(41, dtype=torch.float64, device=device)
    derivatives = []
    for function in (F.gelu, ClosedFormGelu.apply):
        (slope,) = torch.autograd.grad(function(x), x, g, create_graph=True)
        derivatives.append((slope, *torch.autograd.grad(slope, x, g)))
    for ours, theirs in zip(*derivatives, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(ClosedFormGelu.apply, x)


#: shape, normalised dimensions, whether there is a weight, a bias
NORMS = {
    "affine": ((3, 4, 5), (5,), True, True),
    "without bias": ((3, 4, 5), (5,), True, False),
    "plain": ((3, 4, 5), (5,), False, False),
    "two dimensions": ((3, 4, 5), (4, 5), True, True),
    "one row": ((6,), (6,), True, True),
}


@pytest.fixture(params=NORMS)
def norm(request, device, monkeypatch):
    monkeypatch.setattr(alternative, "_CHUNK", 12)  # rows of two or more runs
    shape, dims, *parts = NORMS[request.param]
    torch.manual_seed(0)
    kind = {"dtype": torch.float64, "device": device, "requires_grad": True}
    inputs = [torch.randn(shape, **kind)] + [torch.randn(dims, **kind) for has in parts if has]
    return dims, inputs


def layer_norm(dims, x, weight=None, bias=None):
    return ClosedFormLayerNorm.apply(x, weight, bias, dims, 1e-2)


def test_the_closed_form_layer_norm_has_the_derivatives_of_pytorch_s(norm):
    dims, inputs = norm
    y = layer_norm(dims, *inputs)
    g = torch.randn_like(y, requires_grad=True)
    u = [torch.randn_like(t) for t in inputs]
    ours = derivatives(y, inputs, g, u)
    theirs = derivatives(F.layer_norm(inputs[0], dims, *inputs[1:], eps=1e-2), inputs, g, u)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda *t: layer_norm(dims, *t), inputs)


def test_the_tangent_of_the_closed_form_layer_norm_is_that_of_pytorch_s(norm):
    dims, inputs = norm
    moved = [torch.randn_like(t) for t in inputs]
    # named, as a node lives as long as its tensor
    ours = layer_norm(dims, *inputs)
    theirs = F.layer_norm(inputs[0], dims, *inputs[1:], eps=1e-2)
    got, expected = (Tangents(Graph(y, inputs))(moved) for y in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)


def test_a_layer_norm_that_the_closed_form_lacks_is_left_to_pytorch(device):
    x = torch.randn(3, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(4, device=device, dtype=torch.bfloat16)
    with layer_norm_in_closed_form():
        half = F.layer_norm(x, (4,), ones)
        only_bias = F.layer_norm(x.float(), (4,), None, ones.float())
        closed = F.layer_norm(x.float(), (4,), ones.float(), ones.float())
    assert half.grad_fn.name() == only_bias.grad_fn.name() == "NativeLayerNormBackward0"
    assert closed.grad_fn.name() == "ClosedFormLayerNormBackward"


#: shape, whether there is a weight, a bias
CHANNELS = {
    "affine": ((4, 3, 2, 5), True, True),
    "without bias": ((4, 3, 5), True, False),
    "without weight": ((4, 3, 5), False, True),
    "plain": ((4, 3, 2, 2), False, False),
    "no positions": ((4, 3), True, True),
    "one channel": ((4, 1, 5), True, True),
}


@pytest.mark.parametrize("moving", ["all", "input", "parameters"])
@pytest.mark.parametrize("name", CHANNELS)
def test_the_tangent_of_batch_norm_is_that_of_elementary_operations(name, moving, device):
    shape, *parts = CHANNELS[name]
    kind = {"dtype": torch.float64, "device": device}
    mean, variance = torch.randn(shape[1], **kind), torch.rand(shape[1], **kind) + 0.5
    x = torch.randn(shape, **kind).requires_grad_(moving != "parameters")
    affine = [
        torch.randn(shape[1], **kind).requires_grad_(moving != "input") if has else None
        for has in parts
    ]
    moved = [t for t in (x, *affine) if t is not None and t.requires_grad]
    if not moved:
        pytest.skip("without parameters none moves")
    y = F.batch_norm(x, mean, variance, *affine, eps=1e-2)
    assert y.grad_fn.name() in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0")
    along = (-1, *[1] * (len(shape) - 2))
    z = (x - mean.view(along)) / (variance + 1e-2).sqrt().view(along)
    weight, bias = affine
    z = z if weight is None else z * weight.view(along)
    z = z if bias is None else z + bias.view(along)
    assert_tangent(y, moved, lambda v: by_double_backward(z, moved, v))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_hessian_of_a_network_with_gelu_is_that_of_the_dense_oracle(approximate, device):
    layers = nn.Linear(4, 5), nn.GELU(approximate), nn.Linear(5, 3)
    model = nn.Sequential(*layers).to(device, torch.float64)
    x, y = X.to(device), torch.tensor([0, 1, 2], device=device)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def value(theta):
        parts, start = {}, 0
        for name, p in model.named_parameters():
            parts[name] = theta[start : start + p.numel()].view_as(p)
            start += p.numel()
        return F.cross_entropy(torch.func.functional_call(model, parts, x), y)

    dense = torch.autograd.functional.hessian(value, flat)
    H = cx.HessianOperator(model, nn.CrossEntropyLoss(), (x, y))
    torch.testing.assert_close(H.to_dense(), dense, rtol=1e-10, atol=1e-12)
    G = cx.GGNOperator(model, nn.CrossEntropyLoss(), (x, y))
    torch.testing.assert_close(
        H.to_dense() - G.to_dense(),
        cx.ModelCurvatureOperator(model, nn.CrossEntropyLoss(), (x, y)).to_dense(),
        rtol=1e-10,
        atol=1e-12,
    )


def test_tangents_have_the_dtype_of_what_moves(device):
    """Of bfloat16 inputs a norm keeps its statistics in float32 on CUDA, as it does on the CPU beside such weights."""
    wide = torch.float32 if device.type == "cpu" else torch.bfloat16
    x = torch.randn(3, 4, dtype=torch.bfloat16, device=device, requires_grad=True)
    w = torch.randn(4, 4, dtype=torch.bfloat16, device=device, requires_grad=True)
    scale, shift = (torch.randn(4, dtype=wide, device=device, requires_grad=True) for _ in range(2))
    normed = F.layer_norm(x, (4,), scale, shift)
    output = torch.add(F.gelu(normed) @ w, x.float() + w[:3])
    for leaves in ([x, w, scale, shift], [scale, shift], [x]):
        v = [torch.randn_like(p) for p in leaves]
        tangent = Tangents(Graph(output, leaves))(v)
        assert tangent.dtype is output.dtype
        expected = by_double_backward(output, leaves, v)
        torch.testing.assert_close(tangent, expected, rtol=0.05, atol=0.2)


def test_distances_beside_a_function_of_ones_own_have_g_v():
    """Neither has a tangent, and distances no second derivative in PyTorch: J v goes by the rows of J."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 3)
            self.points = nn.Parameter(torch.randn(2, 4, dtype=torch.float64))

        def forward(self, x):
            return self.b(Doubled.apply(torch.cdist(self.a(x), self.points)))

    torch.manual_seed(0)
    model = Net().double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
    named = dict(model.named_parameters())
    jacobian = torch.autograd.functional.jacobian(
        lambda *p: torch.func.functional_call(model, dict(zip(named, p, strict=True)), (x,)),
        tuple(named.values()),
    )
    J = torch.cat([j.reshape(5, 3, -1) for j in jacobian], 2)
    p = model(x).softmax(1).detach()
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = sum(j.T @ h @ j for j, h in zip(J, H, strict=True)) / 5
    assert_close(cx.GGNOperator(model, nn.CrossEntropyLoss(), (x, y)).to_dense(), expected)
