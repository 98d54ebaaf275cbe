"""The autograd nodes that only CUDA has, on the CPU: its operations are given there in plain PyTorch.

The node, its saved tensors and its formula are PyTorch's own; what is ours is the operation behind it.
"""

import pytest
import torch
import torch.nn.functional as F
from answers import assert_all_close, everything
from models import Model
from torch import nn

import curvext as cx
from curvext.graph.autograd_graph import node_names

aten = torch.ops.aten


def batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    y = aten.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
    return (*y, x.new_zeros(0, dtype=torch.uint8))


def lstm_cell(by_input, by_hidden, c, bias, other_bias):
    gates = (by_input + by_hidden + bias + other_bias).chunk(4, 1)
    i, f, o = (gates[k].sigmoid() for k in (0, 1, 3))
    after = f * c + i * gates[2].tanh()
    return o * after.tanh(), after, torch.cat([i, f, gates[2].tanh(), o], 1)


def lstm_cell_backward(by_h, by_c, c, after, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    by_c = torch.zeros_like(c) if by_c is None else by_c
    by_c = by_c if by_h is None else by_c + by_h * o * (1 - after.tanh().square())
    by_o = torch.zeros_like(o) if by_h is None else by_h * after.tanh() * o * (1 - o)
    gates = [by_c * g * i * (1 - i), by_c * c * f * (1 - f), by_c * i * (1 - g * g), by_o]
    by_gates = torch.cat(gates, 1)
    return by_gates, by_c * f, by_gates.sum(0)


def efficient_attention(q, k, v, bias, log_sum_exp, dropout, causal, scale=None):
    y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=scale)
    return y, q.new_zeros(q.shape[:-1]), *(torch.zeros((), dtype=torch.int64) for _ in range(2))


def efficient_attention_backward(g, q, k, v, bias, y, lse, seed, at, p, mask, causal, scale=None):
    """Adds up in any order: no two calls give the same bits."""
    alpha = q.shape[-1] ** -0.5 if scale is None else scale
    P = alpha * q @ k.mT
    P = P.masked_fill(torch.ones(P.shape[-2:]).triu(1).bool(), -torch.inf) if causal else P
    P = P.softmax(-1)
    by_P = g @ v.mT
    by_scores = alpha * P * (by_P - (P * by_P).sum(-1, keepdim=True))
    found = by_scores @ k, by_scores.mT @ q, P.mT @ g
    return (*(t * (1 + 1e-14 * torch.rand_like(t)) for t in found), None)


OPERATIONS = {
    "cudnn_batch_norm": batch_norm,
    "_thnn_fused_lstm_cell": lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
    "_scaled_dot_product_efficient_attention": efficient_attention,
    "_scaled_dot_product_efficient_attention_backward": efficient_attention_backward,
}


@pytest.fixture(autouse=True)
def on_the_cpu():
    """The operations of CUDA, on the CPU for one test."""
    library = torch.library.Library("aten", "IMPL")
    for name, operation in OPERATIONS.items():
        library.impl(name, operation, "CPU")
    yield
    library._destroy()


def norm_of(s, x, of_cuda):
    x = s.conv(x)
    n = s.norm
    how = (x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps)
    y = aten.cudnn_batch_norm(*how)[0] if of_cuda else aten.native_batch_norm(*how)[0]
    return s.head(y.tanh().flatten(1))


def attention_of(s, x, of_cuda):
    q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in s.qkv(s.mix(x)).chunk(3, -1))
    if of_cuda and not _composed():
        y = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, is_causal=True)[0]
    else:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return s.head(y.transpose(1, 2).flatten(2).mean(1))


def _composed():
    """Whether PyTorch would take no fused attention."""
    return not torch.backends.cuda.mem_efficient_sdp_enabled()


def cell_of(s, x, of_cuda):
    h = c = x.new_zeros(len(x), 3)
    for row in x.unbind(1):
        by_input, by_hidden = row @ s.cell.weight_ih.t(), h @ s.cell.weight_hh.t()
        biases = (s.cell.bias_ih, s.cell.bias_hh)
        if of_cuda:
            h, c, _ = aten._thnn_fused_lstm_cell(by_input, by_hidden, c, *biases)
        else:
            h, c, _ = lstm_cell(by_input, by_hidden, c, *biases)
    return s.head(h)


CASES = {
    "CudnnBatchNormBackward0": (
        norm_of,
        lambda: {
            "conv": nn.Conv2d(2, 3, 2),
            "norm": nn.BatchNorm2d(3),
            "head": nn.Linear(12, 3),
        },
        (2, 3, 3),
    ),
    "ScaledDotProductEfficientAttentionBackward0": (
        attention_of,
        lambda: {"mix": nn.Linear(4, 4), "qkv": nn.Linear(4, 12), "head": nn.Linear(4, 3)},
        (5, 4),
    ),
    "ThnnFusedLstmCellBackward0": (
        cell_of,
        lambda: {"cell": nn.LSTMCell(4, 3), "head": nn.Linear(3, 3)},
        (2, 4),
    ),
}


def network(node):
    """A network whose graph has the node, one of the same function on the CPU, and data."""
    call, parts, shape = CASES[node]
    torch.manual_seed(2)
    parts = parts()
    of_cuda, plain = (
        Model(lambda s, x, kind=kind: call(s, x, kind), **parts).double().eval()
        for kind in (True, False)
    )
    for name, p in plain.named_parameters():
        if "norm" in name:
            p.data += 0.3 * torch.randn_like(p)
    x, y = torch.randn(5, *shape, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    assert node in node_names(of_cuda(x).grad_fn)
    assert node not in node_names(plain(x).grad_fn)
    return of_cuda, plain, (x, y)


@pytest.mark.parametrize("node", CASES)
def test_a_node_of_cuda_gives_the_answers_of_the_cpu(node):
    of_cuda, plain, data = network(node)
    loss = nn.CrossEntropyLoss()
    one, other = (cx.EmpiricalRisk(m, loss, data) for m in (of_cuda, plain))
    V = torch.randn(one.space.size, 2, dtype=torch.float64)
    assert_all_close(everything(one, V), everything(other, V))


@pytest.mark.parametrize("node", list(CASES)[:2])
def test_a_node_of_cuda_keeps_every_parameter_on_the_fast_path(node):
    of_cuda, _, data = network(node)
    paths = cx.EmpiricalRisk(of_cuda, nn.CrossEntropyLoss(), data).explain().splitlines()[5:]
    assert len(paths) == len(list(of_cuda.parameters()))
    assert all(line.endswith("fused, by structure") for line in paths), paths
