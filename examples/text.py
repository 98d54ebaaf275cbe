"""What the examples on text share: the text that Python ships, a byte-level language model, and its training."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable

import torch
from torch import Tensor, nn

import curvext as cx

VOCABULARY = 128  # ASCII; anything else is a question mark
LOSS = cx.CausalLMLoss()


def prose(capitals: bool = False) -> Tensor:
    """The topics of Python's ``help()``, English, as bytes."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    return as_bytes(text.upper() if capitals else text)


def as_bytes(text: str) -> Tensor:
    """A token for each character."""
    return torch.tensor(list(text.encode("ascii", "replace")))


def windows(tokens: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """``[count, length]``, drawn from a text."""
    starts = torch.randint(len(tokens) - length, (count,), generator=generator)
    return tokens[starts.unsqueeze(1) + torch.arange(length)]


class Block(nn.Module):
    """Causal attention and a perceptron, each on the normalised stream that it adds to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """Logits ``[N, T, V]`` of the next character."""

    def __init__(self, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def learn(model: nn.Module, batch: Callable[[], Tensor], steps: int) -> nn.Module:
    """Adam with a rate that falls to zero; trains ``model`` in place."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        tokens = batch()
        optimiser.zero_grad()
        LOSS(model(tokens), tokens).backward()
        optimiser.step()
        schedule.step()
    return model
