"""Products with G in chunks of output positions: the same answer, and no tensor of the output's size."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import Model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import curvext as cx


def language_model(device, tied=False, bias=False, dtype=torch.float64):
    torch.manual_seed(0)
    model = Model(
        lambda s, x: s.head(s.norm(s.mix(s.emb(x)).tanh())),
        emb=nn.Embedding(11, 4),
        mix=nn.Linear(4, 4),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 11, bias=bias),
    )
    if tied:
        model.head.weight = model.emb.weight
    tokens = torch.randint(11, (5, 3))
    labels = tokens.masked_fill(torch.rand(5, 3) < 0.2, -100)
    return model.to(device, dtype), (tokens.to(device), labels.to(device))


@pytest.mark.parametrize("chunk", [1, 4, 15, 100])
@pytest.mark.parametrize("options", [{}, {"tied": True}, {"bias": True}], ids=str)
def test_the_answer_is_that_of_the_whole_output(options, chunk, device):
    model, batch = language_model(device, **options)
    whole = cx.EmpiricalRisk(model, cx.CausalLMLoss(), batch)
    V = torch.randn(whole.space.size, 3, dtype=torch.float64, device=device)
    expected = whole.ggn() @ V
    for cache in (True, False):
        for data in (batch, [tuple(t[:2] for t in batch), tuple(t[2:] for t in batch)]):
            risk = cx.EmpiricalRisk(
                model, cx.CausalLMLoss(), data, cache=cache, chunk_outputs=chunk
            )
            for _ in range(2):
                assert_close(risk.ggn() @ V, expected)
                assert_close(risk.fisher() @ V[:, 0], expected[:, 0])
    assert_close(risk.hessian() @ V, whole.hessian() @ V)
    assert_close(risk.gradient(), whole.gradient())


def test_a_classifier_is_taken_in_chunks_of_samples(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 9)).to(device, torch.float64)
    x, y = torch.randn(7, 4, dtype=torch.float64, device=device), torch.arange(7, device=device)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(9).to(device))
    V = torch.randn(93, 2, dtype=torch.float64, device=device)
    G = cx.GGNOperator(model, loss, (x, y), chunk_outputs=2)
    assert_close(G @ V, cx.GGNOperator(model, loss, (x, y)) @ V)


def test_a_matrix_that_is_read_as_it_is_by_the_head_and_turned_by_the_look_up(device):
    torch.manual_seed(0)
    model = Model(
        lambda s, x: torch.tanh(s.mix(nn.functional.embedding(x, s.matrix.t()))) @ s.matrix,
        mix=nn.Linear(4, 4),
    )
    model.matrix = nn.Parameter(torch.randn(4, 11))
    model = model.to(device, torch.float64)
    tokens = torch.randint(11, (5, 3), device=device)
    V = torch.randn(64, 2, dtype=torch.float64, device=device)
    G = cx.GGNOperator(model, cx.CausalLMLoss(), (tokens, tokens), chunk_outputs=4)
    assert_close(G @ V, cx.GGNOperator(model, cx.CausalLMLoss(), (tokens, tokens)) @ V)


class _Largest(TorchDispatchMode):
    """The largest number of elements that an operation gave, views of parameters not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize("chunk", [2, None])
def test_no_tensor_of_the_size_of_the_output_is_made(chunk, device):
    """The planted opposite, without chunks, is seen to make one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4), nn.Tanh(), nn.Linear(4, 50, bias=False)).to(device)
    tokens = torch.randint(50, (8, 16), device=device)
    risk = cx.EmpiricalRisk(model, cx.CausalLMLoss(), (tokens, tokens), chunk_outputs=chunk)
    G, v = risk.ggn(), torch.randn(400, device=device)
    G @ v  # the forward pass makes the output, as in training; the products do not
    with _Largest() as seen:
        G @ v
    assert (seen.elements < tokens.numel() * 50) == (chunk is not None)


def test_what_is_kept_does_not_hold_the_output(device):
    model, batch = language_model(device)
    kept = {}
    for chunk in (None, 2):
        risk = cx.EmpiricalRisk(model, cx.CausalLMLoss(), batch, cache=True, chunk_outputs=chunk)
        references = []

        def forward(model, batch, references=references):
            output = model(batch[0])
            references.append(output.untyped_storage()._weak_ref())
            return output

        risk = cx.EmpiricalRisk(
            model, cx.CausalLMLoss(), batch, cache=True, chunk_outputs=chunk, forward=forward
        )
        risk.ggn() @ torch.randn(risk.space.size, dtype=torch.float64, device=device)
        kept[chunk] = not torch.UntypedStorage._expired(references[-1])
        for reference in references:
            torch.UntypedStorage._free_weak_ref(reference)
    assert kept == {None: True, 2: False}


@pytest.mark.parametrize(
    "model, loss, y, message",
    [
        (
            nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
            nn.CrossEntropyLoss(),
            "labels",
            "TanhBackward0",
        ),
        (nn.Linear(4, 3), nn.CrossEntropyLoss(), "labels", "all that comes before it"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
            nn.MSELoss(),
            "values",
            "classes in the last",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Unflatten(1, (3, 2))),
            nn.CrossEntropyLoss(),
            "images",
            "classes in the last",
        ),
    ],
    ids=["no linear layer", "head alone", "mse", "classes first"],
)
def test_what_has_no_head_over_classes_is_refused(model, loss, y, message):
    x = torch.randn(5, 4)
    target = {
        "labels": torch.zeros(5, dtype=torch.long),
        "values": torch.zeros(5, 3),
        "images": torch.zeros(5, 2, dtype=torch.long),
    }[y]
    v = torch.zeros(sum(p.numel() for p in model.parameters()))
    with pytest.raises(ValueError, match=f"chunk_outputs: .*{message}"):
        cx.GGNOperator(model, loss, (x, target), chunk_outputs=2) @ v


def test_a_frozen_bias_of_the_head_is_refused(device):
    model, batch = language_model(device, bias=True)
    risk = cx.EmpiricalRisk(
        model, cx.CausalLMLoss(), batch, chunk_outputs=2, params=lambda name, p: name != "head.bias"
    )
    with pytest.raises(ValueError, match="bias is not among params"):
        risk.ggn() @ torch.zeros(risk.space.size, dtype=torch.float64, device=device)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, "all"])
def test_a_chunk_is_a_positive_number_of_positions(chunk):
    with pytest.raises(ValueError, match="chunk_outputs: expected an integer of at least 1"):
        cx.EmpiricalRisk(
            nn.Linear(2, 2),
            nn.CrossEntropyLoss(),
            (torch.zeros(1, 2), torch.zeros(1).long()),
            chunk_outputs=chunk,
        )
