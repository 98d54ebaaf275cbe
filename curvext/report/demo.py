"""The risk of the demo: a small network trained on handwritten digits."""

from __future__ import annotations

import torch
from torch import nn

from curvext.risk import EmpiricalRisk

_EPOCHS, _BATCH = 30, 64


def digits() -> EmpiricalRisk:
    """A network with 2,410 parameters on the 1,797 digits of scikit-learn, trained for a few seconds.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise ImportError(
            "the demo needs the digits of scikit-learn: pip install 'curvext[report]'"
        ) from missing
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float64, device="cpu") / 16
    y = torch.tensor(data.target, device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32, device="cpu"), nn.Tanh(), nn.Linear(32, 10, device="cpu")
    ).double()
    with torch.no_grad():
        for p in model.parameters():  # from a separate generator, not the global one
            fan_in = p.shape[-1] if p.ndim == 2 else 64
            p.copy_((torch.rand(p.shape, generator=generator, device="cpu") * 2 - 1) / fan_in**0.5)
    loss = nn.CrossEntropyLoss()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(x), generator=generator, device="cpu").split(_BATCH):
            optimiser.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimiser.step()
    optimiser.zero_grad()
    return EmpiricalRisk(model, loss, (x, y))
