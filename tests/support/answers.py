"""All that a risk answers, to be compared as a whole."""

from __future__ import annotations

import torch
from compare import assert_close

import curvext as cx

KINDS = ["hessian", "ggn", "model_curvature", "empirical_fisher"]


def risk_of(posed, data=None, **options):
    return cx.EmpiricalRisk(
        posed.model, posed.loss, posed.data if data is None else data, **options
    )


def everything(risk, V):
    """All that a risk answers, in one list."""
    E = risk.empirical_fisher()
    products = [getattr(risk, kind)() @ V for kind in KINDS]
    return [*products, risk.gradient(), E.diagonal(), E.gradient_norms(), E.trace()]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def assert_all_close(a, b):
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert_close(x, y, f"answer {i}")
