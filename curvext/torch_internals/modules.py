"""The tables inside ``nn.Module``.

Private: ``_modules``, ``_parameters`` and ``_buffers``, dictionaries by name whose values may be None; without them
everything here raises an AttributeError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

#: the base classes that batch norms and dropouts have in common. Private: their names; an ImportError without them
BatchNorm, Dropout = _BatchNorm, _DropoutNd


@dataclass(frozen=True)
class Members:
    """The current modules of a model in order, and their parameters and buffers, each once."""

    modules: list[nn.Module]
    parameters: list[nn.Parameter]
    buffers: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Members:
        """One walk, which costs a fraction of ``modules()``, ``parameters()`` and ``buffers()``."""
        seen: set[int] = set()
        modules: list[nn.Module] = []
        stack = [model]
        while stack:
            module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                modules.append(module)
                stack += reversed([m for m in module._modules.values() if m is not None])
        parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
        buffers = {id(b): b for m in modules for b in m._buffers.values() if b is not None}
        return cls(modules, list(parameters.values()), list(buffers.values()))

    def modes(self) -> tuple[bool, ...]:
        """Which modules are in training mode."""
        return tuple(m.training for m in self.modules)


def members_of(module: nn.Module) -> list[nn.Module | Tensor | None]:
    """The parameters, buffers and modules of one module itself."""
    return [
        *module._parameters.values(),
        *module._buffers.values(),
        *module._modules.values(),
    ]


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The table of parameters of one module itself."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The table of buffers of one module itself; what is written to it is the module's."""
    return module._buffers


def modules_of(module: nn.Module) -> Iterable[nn.Module]:
    """A module and all below it; much cheaper than ``modules()`` for a module without children."""
    return module.modules() if module._modules else (module,)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module and of all below it, likewise."""
    if module._modules:
        return [*module.parameters(), *module.buffers()]
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def uncompiled(module: nn.Module) -> nn.Module | None:
    """The module inside what ``torch.compile(module)`` returns, or None for another module.

    Private: the class is called ``OptimizedModule`` and has the module as ``_orig_mod``. Importing the class takes
    seconds, so it is known by its name; under another name, parameters are called ``_orig_mod.…`` as PyTorch does.
    """
    if type(module).__name__ != "OptimizedModule":
        return None
    return cast(nn.Module, cast(Any, module)._orig_mod)
