"""``params=`` says by what is differentiated and changes nothing else: value and blocks are those of the whole."""

from __future__ import annotations

import threading

import pytest
import torch
from compare import assert_close
from oracles import Oracle, twice_differentiable
from torch import nn

import curvext as cx

MASK = torch.tensor([[False, False, True]])


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Encoder(nn.Module):
    """A padded transformer, of PyTorch's own layers."""

    def __init__(self, norm_first=False, layers=1, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            4, 2, 6, batch_first=True, norm_first=norm_first, **options
        )
        self.e = nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)
        self.h = nn.Linear(4, 2)

    def forward(self, x):
        mask = MASK.expand(len(x), -1)
        return self.h(self.e(x, src_key_padding_mask=mask).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.h = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        mask = MASK.expand(len(x), -1)
        return self.h(self.a(x, x, x, key_padding_mask=mask, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.r, self.h = kind(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.h(self.r(x)[0][:, -1])


class Asking(nn.Module):
    """Looks at grad mode."""

    def __init__(self):
        super().__init__()
        self.a, self.h = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        y = torch.tanh(self.a(x.mean(1)))
        return self.h(y if torch.is_grad_enabled() else 2 * y)


MODELS = {
    "encoder": Encoder,
    "encoder_of_two_layers": lambda: Encoder(layers=2),
    "encoder_with_norms_first": lambda: Encoder(norm_first=True),
    "encoder_with_gelu": lambda: Encoder(activation="gelu"),
    "attention": Attention,
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "asking": Asking,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_selection_changes_neither_the_value_nor_its_block(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x, y, loss = torch.randn(4, 3, 4), torch.tensor([0, 1, 0, 1]), nn.CrossEntropyLoss()
    whole = cx.EmpiricalRisk(model, loss, (x, y))
    with twice_differentiable():
        oracle = Oracle(model, loss, x, y)
    for params in ("h.*", "*bias"):
        part = cx.EmpiricalRisk(model, loss, (x, y), params=params)
        assert part.value() == whole.value()
        at = torch.cat(
            [
                torch.full((p.numel(),), n in part.space.shapes, dtype=torch.bool)
                for n, p in model.named_parameters()
            ]
        )
        v = torch.randn(oracle.size) * at
        assert_close(part.gradient(), oracle.gradient()[at])
        assert_close(part.ggn() @ v[at], (oracle.ggn() @ v)[at])
        assert_close(part.hessian() @ v[at], oracle.hvp(v[:, None])[at, 0])
        norms = oracle.sample_gradients()[:, at].norm(dim=1)
        assert_close(part.empirical_fisher().gradient_norms(), norms)


def test_the_inference_path_of_attention_is_put_back_also_beside_threads_and_errors():
    model = Encoder().eval()
    x, y, loss = torch.randn(4, 3, 4), torch.tensor([0, 1, 0, 1]), nn.CrossEntropyLoss()
    enabled = torch.backends.mha.get_fastpath_enabled
    assert enabled()
    cx.EmpiricalRisk(model, loss, (x, y), params="h.*").value()
    assert enabled()
    inside, leave, seen = threading.Event(), threading.Event(), []

    def waiting(m, b):
        inside.set()
        assert leave.wait(30)
        seen.append(enabled())
        raise RuntimeError("from within")

    def first():
        with pytest.raises(RuntimeError, match="from within"):
            cx.EmpiricalRisk(model, loss, (x, y), forward=waiting).value()

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    other = Encoder().eval()
    cx.EmpiricalRisk(other, loss, (x, y), params="h.*").value()  # comes and goes meanwhile
    leave.set()
    thread.join()
    assert seen == [False] and enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        cx.EmpiricalRisk(model, loss, (x, y), params="h.*").value()
        assert not enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
