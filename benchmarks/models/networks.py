"""The networks that the figures are quoted for, with their data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvext as cx


class Shifted(nn.Module):
    """A language model as a classifier of positions: logits [N,V,T-1], for libraries that know nn.CrossEntropyLoss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[:, :-1].transpose(1, 2)


@dataclass(frozen=True)
class Network:
    """A model, its loss, and one batch."""

    name: str
    model: nn.Module
    loss: nn.Module
    batch: tuple[Tensor, Tensor]

    @property
    def size(self) -> int:
        """P."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def samples(self) -> int:
        """N."""
        return len(self.batch[0])

    @property
    def device(self) -> str:
        return self.batch[0].device.type

    def classifier(self) -> Network:
        """The same problem with ``nn.CrossEntropyLoss``, and the parameters in the same order."""
        if not isinstance(self.loss, cx.CausalLMLoss):
            return self
        tokens = self.batch[0]
        model = Shifted(self.model).train(self.model.training)
        return Network(self.name, model, nn.CrossEntropyLoss(), (tokens, tokens[:, 1:]))

    def to(self, device: str | None = None, dtype: torch.dtype | None = None) -> Network:
        """A copy elsewhere, or in another precision."""
        x, y = (t.to(device) if device else t for t in self.batch)
        if dtype is not None and x.is_floating_point():
            x = x.to(dtype)
        model = copy.deepcopy(self.model).to(device=device, dtype=dtype)
        return Network(self.name, model, self.loss, (x, y))

    def part(self, samples: int) -> Network:
        """The first samples only, with the same model."""
        x, y = self.batch
        return Network(self.name, self.model, self.loss, (x[:samples], y[:samples]))


def mlp(n: int = 512) -> Network:
    """MLP 784-1024-1024-10, N = 512."""
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    batch = (torch.randn(n, 784), torch.randint(10, (n,)))
    return Network("mlp", model, nn.CrossEntropyLoss(), batch)


def cnn(n: int = 64) -> Network:
    """CNN of channels 3-32-64-128-128 on 32×32 pixels, N = 64."""
    channels = [3, 32, 64, 128, 128]
    layers: list[nn.Module] = []
    for stage in range(4):
        layers += [nn.Conv2d(channels[stage], channels[stage + 1], 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stage < 3 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    batch = (torch.randn(n, 3, 32, 32), torch.randint(10, (n,)))
    return Network("cnn", model, nn.CrossEntropyLoss(), batch)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.short(x))


def resnet(n: int = 16, width: int = 32) -> Network:
    """ResNet-18 at half width (32-64-128-256) on 32×32 pixels, batch-norm in eval mode, N = 16."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    inputs = width
    for stage in range(4):
        outputs = width << stage
        layers += [
            _Residual(inputs, outputs, 1 if stage == 0 else 2),
            _Residual(outputs, outputs, 1),
        ]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)]
    batch = (torch.randn(n, 3, 32, 32), torch.randint(10, (n,)))
    return Network("resnet", nn.Sequential(*layers).eval(), nn.CrossEntropyLoss(), batch)


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.short(x))


def _resnet50(name: str, n: int, width: int, pixels: int, classes: int) -> Network:
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(_Bottleneck(inputs, width << stage, stride))
            inputs = 4 * width << stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    batch = (torch.randn(n, 3, pixels, pixels), torch.randint(classes, (n,)))
    return Network(name, nn.Sequential(*layers).eval(), nn.CrossEntropyLoss(), batch)


def resnet50(n: int = 64) -> Network:
    """ResNet-50 with random weights on 224×224 pixels, batch-norm in eval mode, N = 64."""
    return _resnet50("resnet50", n, 64, 224, 1000)


def resnet50_toy(n: int = 8) -> Network:
    """ResNet-50's structure (161 parameters) at width 4 on 32×32 pixels, batch-norm in eval mode, N = 8."""
    return _resnet50("resnet50-toy", n, 4, 32, 10)


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
    def __init__(
        self,
        width: int,
        layers: int,
        length: int,
        vocabulary: int,
        heads: int = 8,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.token.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position)))


def _gpt(name: str, n: int, width: int, layers: int, length: int, vocabulary: int) -> Network:
    tokens = torch.randint(vocabulary, (n, length))
    model = _GPT(width, layers, length, vocabulary)
    return Network(name, model, cx.CausalLMLoss(), (tokens, tokens))


def gpt_small(n: int = 16) -> Network:
    """GPT of width 128, 2 layers, T = 64, V = 1024, N = 16."""
    return _gpt("gpt-small", n, 128, 2, 64, 1024)


def gpt(n: int = 16) -> Network:
    """GPT of width 256, 4 layers, T = 128, V = 2048, N = 16."""
    return _gpt("gpt", n, 256, 4, 128, 2048)


def gpt_large(n: int = 4) -> Network:
    """GPT of width 384, 6 layers, T = 128, V = 4096, N = 4."""
    return _gpt("gpt-large", n, 384, 6, 128, 4096)


def gpt2(n: int = 4, layers: int = 12, length: int = 1024) -> Network:
    """GPT-2 small (12 layers, 124 million parameters) with random weights, T = 1024, N = 4, or less of it."""
    torch.manual_seed(0)
    tokens = torch.randint(50257, (n, length))
    model = _GPT(768, layers, length, 50257, heads=12, tied=True)
    return Network("gpt2", model, cx.CausalLMLoss(), (tokens, tokens))


def mlp_tiny(n: int = 16) -> Network:
    """MLP 20-32-4 with tanh, N = 16."""
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    batch = (torch.randn(n, 20), torch.randint(4, (n,)))
    return Network("mlp-tiny", model, nn.CrossEntropyLoss(), batch)


def lenet(n: int = 64) -> Network:
    """LeNet (two convolutions, three linear layers) on 28×28 pixels, N = 64."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    batch = (torch.randn(n, 1, 28, 28), torch.randint(10, (n,)))
    return Network("lenet", model, nn.CrossEntropyLoss(), batch)


def gpt2_toy(n: int = 8) -> Network:
    """GPT-2's structure (12 layers) at width 32, T = 16, V = 64, N = 8."""
    tokens = torch.randint(64, (n, 16))
    model = _GPT(32, 12, 16, 64, heads=4, tied=True)
    return Network("gpt2-toy", model, cx.CausalLMLoss(), (tokens, tokens))


#: what the library's own cost is measured on
SMALL: dict[str, Callable[[], Network]] = {
    "mlp-tiny": mlp_tiny,
    "lenet": lenet,
    "gpt2-toy": gpt2_toy,
    "resnet50-toy": resnet50_toy,
}
#: what time is measured of
NETWORKS: dict[str, Callable[[], Network]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "gpt-small": gpt_small,
    "gpt": gpt,
    "gpt-large": gpt_large,
}
#: what is measured where it is asked for by name: a GPU's work
LARGE: dict[str, Callable[[], Network]] = {"resnet50": resnet50, "gpt2": gpt2}


def build(name: str, device: str) -> Network:
    """A network of the list on a device, from a fixed seed: the same numbers in every process."""
    torch.manual_seed(0)
    return {**NETWORKS, **LARGE, **SMALL}[name]().to(device)
