"""Small networks whose curvature a dense computation can check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import curvext as cx


def classifier(
    device: Any = "cpu", dtype: torch.dtype = torch.float64, samples: int = 30
) -> cx.EmpiricalRisk:
    """Two tanh layers on three classes, P = 51, with labels that can nearly be learned."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(4, 3, generator=generator, dtype=torch.float64)).argmax(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 2)
    model = model.to(device, dtype)
    data = (x.to(device, dtype), y.to(device))
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


def flat(risk: cx.EmpiricalRisk) -> Tensor:
    """The parameters as they are, ``[P]``."""
    return torch.cat([p.detach().reshape(-1).clone() for p in risk.space.parameters.values()])
