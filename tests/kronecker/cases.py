"""Small networks with every kind of layer that has factors, in the way that gave other libraries trouble."""

from __future__ import annotations

import torch
from models import Model
from torch import nn

D = torch.float64


def _built(build, x):
    torch.manual_seed(1)
    model = build().to(D).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2:
                p += 0.3 * torch.randn(p.shape)
    return model, x


def _headed(layer, features):
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))


def _rows(*shape, n=5):
    torch.manual_seed(2)
    return torch.randn(n, *shape, dtype=D)


def _tokens(*shape, n=5):
    torch.manual_seed(2)
    return torch.randint(6, (n, *shape))


class SequenceFirst(nn.Module):
    """Turns its batch round, as recurrent and attention code does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.transpose(0, 1)))).mean(0)


def _two():
    """A layer used twice."""
    return Model(
        lambda s, x: s.head(torch.tanh(s.a(torch.tanh(s.a(x))))),
        a=nn.Linear(4, 4),
        head=nn.Linear(4, 3),
    )


def _flattened():
    return Model(
        lambda s, x: s.b(torch.tanh(s.a(x.flatten(0, 1)))).unflatten(0, (len(x), -1)).mean(1),
        a=nn.Linear(4, 5),
        b=nn.Linear(5, 3),
    )


#: name → (network, inputs)
NETWORKS = {
    "mlp": lambda: _built(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), _rows(4)),
    "without_bias": lambda: _built(
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)), _rows(4)
    ),
    "on_sequence": lambda: _built(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Flatten(), nn.Linear(15, 3)), _rows(5, 4)
    ),
    "sequence_first": lambda: _built(SequenceFirst, _rows(6, 4)),
    "used_twice": lambda: _built(_two, _rows(4)),
    "flattened_tokens": lambda: _built(_flattened, _rows(6, 4)),
    "embedding": lambda: _built(
        lambda: _headed(nn.Embedding(6, 4, padding_idx=2), 20), _tokens(5)
    ),
    "conv1d_circular": lambda: _built(
        lambda: _headed(nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), 21), _rows(2, 7)
    ),
    "conv2d": lambda: _built(lambda: _headed(nn.Conv2d(2, 3, 3, stride=2, padding=1), 27), _rows(2, 5, 5)),
    "conv2d_reflect": lambda: _built(
        lambda: _headed(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", stride=3), 12), _rows(2, 5, 5)
    ),
    "conv2d_groups": lambda: _built(
        lambda: _headed(nn.Conv2d(4, 4, (3, 2), groups=2, stride=(1, 2), padding=(2, 0)), 40), _rows(4, 3, 5)
    ),
    "conv2d_depthwise": lambda: _built(
        lambda: _headed(nn.Conv2d(2, 4, 3, groups=2, dilation=(1, 2)), 12), _rows(2, 5, 5)
    ),
    "conv3d": lambda: _built(lambda: _headed(nn.Conv3d(2, 2, 2), 16), _rows(2, 3, 3, 3)),
    "transposed1d": lambda: _built(
        lambda: _headed(nn.ConvTranspose1d(3, 2, 3, stride=2, bias=False), 18), _rows(3, 4)
    ),
    "transposed2d": lambda: _built(
        lambda: _headed(
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2), 64
        ),
        _rows(4, 2, 2),
    ),
    "transposed2d_cut": lambda: _built(
        lambda: _headed(nn.ConvTranspose2d(2, 3, 2, dilation=2, padding=3), 12), _rows(2, 6, 6)
    ),
}  # fmt: skip

LAYERS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have factors, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
