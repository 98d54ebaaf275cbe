"""The three networks that the figures are quoted for, with their data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvext as cx


@dataclass(frozen=True)
class Network:
    """A model, its loss, and one batch."""

    model: nn.Module
    loss: nn.Module
    batch: tuple[Tensor, Tensor]


def mlp() -> Network:
    """784-1024-1024-10, N = 512."""
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    return Network(model, nn.CrossEntropyLoss(), (torch.randn(512, 784), torch.randint(10, (512,))))


def cnn() -> Network:
    """Channels 3-32-64-128-128 on 32x32, N = 64."""
    channels = [3, 32, 64, 128, 128]
    layers: list[nn.Module] = []
    for stage in range(4):
        layers += [nn.Conv2d(channels[stage], channels[stage + 1], 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stage < 3 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    batch = (torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    return Network(model, nn.CrossEntropyLoss(), batch)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _GPT(nn.Module):
    def __init__(self, width: int, layers: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(_Block(width, 8) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position)))


def gpt() -> Network:
    """Width 256, 4 layers, T = 128, V = 2048, N = 16."""
    tokens = torch.randint(2048, (16, 128))
    return Network(_GPT(256, 4, 128, 2048), cx.CausalLMLoss(), (tokens, tokens))


NETWORKS = {"mlp": mlp, "cnn": cnn, "gpt": gpt}
