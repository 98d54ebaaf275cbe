"""Attention: fused, composed and in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from facets import N, apart, assert_tangent, by_double_backward, derivatives, other_ways
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvext.graph.autograd_graph import Graph
from curvext.operations.attention_formulas import _CHUNK, Scores, vjp
from curvext.operations.attention_formulas import tangent as tangent_of
from curvext.operations.attention_in_closed_form import attention_in_closed_form
from curvext.products.tangents import Tangents

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "attention": ((N, 2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos())),
    }
)


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


def test_attention_taken_in_pieces_is_that_of_all_heads(device, small_workspace):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dq, dk, dv, g = (
        torch.randn(2, 3, 16, 4, generator=generator, dtype=torch.float64).to(device)
        for _ in range(7)
    )
    assert q.shape[2] ** 2 * 3 * 8 > small_workspace  # fewer heads to a piece than there are
    scores = Scores(0.5, causal=True, mask=None)

    def composed(*inputs):
        return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, scale=0.5)

    with sdpa_kernel(SDPBackend.MATH):
        _, tangent = torch.func.jvp(composed, (q, k, v), (dq, dk, dv))
        pulled = torch.func.vjp(composed, q, k, v)[1](g)
    assert_close(tangent_of((q, k, v), (dq, dk, dv), scores), tangent, "tangent")
    for ours, theirs in zip(vjp(g, (q, k, v), scores), pulled, strict=True):
        assert_close(ours, theirs, "gradient")


def heads(x):
    """q, k and v of two heads."""
    return x.view(1, 2, 3, 2), x.exp().view(1, 2, 3, 2), x.sin().view(1, 2, 3, 2)


FUSED = {
    "plain": lambda x: F.scaled_dot_product_attention(*heads(x)),
    "causal": lambda x: F.scaled_dot_product_attention(*heads(x), is_causal=True, scale=0.3),
}
if not torch.__version__.startswith("2.6."):  # which composes them on the CPU
    FUSED["grouped queries"] = lambda x: F.scaled_dot_product_attention(
        x.view(1, 2, 3, 2), x[:, :2][None, None], x[:, 2:][None, None].exp(), enable_gqa=True
    )

test_other_ways_have_its_value_and_both_derivatives = other_ways(
    "ScaledDotProductFlashAttentionForCpuBackward0", FUSED
)
