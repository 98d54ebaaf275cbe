"""The space of parameters: their selection and order, and conversion between a flat vector and named tensors.

One file because selection, order and the flat vector are one map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from curvext.arguments import check_dense
from curvext.errors import DtypeError
from curvext.torch_internals.fsdp import is_dtensor

Selection = (
    None
    | str
    | nn.Module
    | Iterable[str]
    | Iterable[nn.Module]
    | Iterable[str | nn.Module]
    | Callable[[str, nn.Parameter], bool]
)


#: two tensors for each parameter
Pairs = list[tuple[Tensor, Tensor]]


class ParameterSpace:
    """The selected parameters of a model in a fixed order: ℝ^P with named blocks.

    The flat vector is the concatenation of the parameters, each in row-major order, in the
    order of ``model.named_parameters()``. A tied parameter stands once, under its first name.

    Args:
        model: the module that owns the parameters.
        params: None for all that require grad; or the name of a parameter or of a module, whose parameters all are
            meant, a glob pattern, a module of the model, an iterable of those; or a predicate
            ``(name, parameter) -> bool``.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, ``params`` is of no accepted form, or the
            selected parameters differ in dtype or are not real floating point.
        ValueError: nothing is selected, a pattern matches nothing, or devices differ.
    """

    def __init__(self, model: nn.Module, params: Selection = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model: expected a torch.nn.Module, got {type(model).__name__}. "
                "Pass the module itself, not model.forward: its parameters are what is differentiated."
            )
        self._selection: Selection = _by_name(model, params)
        chosen = _select(model, self._selection)
        self.parameters: dict[str, nn.Parameter] = chosen
        self.names: tuple[str, ...] = tuple(chosen)
        self.shapes: dict[str, torch.Size] = {name: p.shape for name, p in chosen.items()}
        self.sizes: list[int] = [p.numel() for p in chosen.values()]
        self.size: int = sum(self.sizes)
        #: parameters, each with a tensor of its shape → what this process has of both: pieces where they are sharded
        self.here: Callable[[Pairs], Pairs] = list
        first = next(iter(chosen.values()))
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        for name, p in chosen.items():
            if not p.dtype.is_floating_point:
                hint = (
                    "; keep it as a real parameter [..., 2] and use torch.view_as_complex(parameter) in the model, "
                    "or leave it out with params="
                    if p.is_complex()
                    else ""
                )
                raise TypeError(
                    f"params: {name!r} has dtype {p.dtype}; real floating point is needed{hint}"
                )
            if p.dtype != self.dtype:
                raise TypeError(
                    f"params: {name!r} has dtype {p.dtype} but {self.names[0]!r} has {self.dtype}; "
                    "select parameters of one dtype"
                )
            if p.is_inference():
                raise ValueError(
                    f"params: {name!r} was made in torch.inference_mode(), so that it takes no gradient; load the "
                    "model outside of it, or take copy.deepcopy(model), made outside"
                )
            if p.device != self.device:
                raise ValueError(
                    f"params: {name!r} is on {p.device} but {self.names[0]!r} is on {self.device}; "
                    "select parameters of one device"
                )

    @classmethod
    def of_shapes(
        cls, shapes: Mapping[str, torch.Size], dtype: torch.dtype, device: torch.device
    ) -> ParameterSpace:
        """A space without a model, from the names and shapes of parameters alone."""
        space = cls.__new__(cls)
        space._selection = list(shapes)
        space.parameters = {}
        space.names = tuple(shapes)
        space.shapes = dict(shapes)
        space.sizes = [shape.numel() for shape in shapes.values()]
        space.size = sum(space.sizes)
        space.dtype = dtype
        space.device = device
        return space

    @property
    def selection(self) -> Selection:
        """The ``params`` argument, with an iterator as a list."""
        return self._selection

    def renew(self, model: nn.Module) -> None:
        """Adopts the parameters that the names now refer to, which may have been replaced.

        Raises:
            ValueError: names are gone or have come, or a parameter has another shape, dtype or device.
        """
        now = _select(model, self._selection)
        if tuple(now) != self.names:
            gone = [name for name in self.names if name not in now]
            new = [name for name in now if name not in self.shapes]
            raise ValueError(
                f"params: the model has other parameters than when the risk was made: gone {gone[:5]}, "
                f"new {new[:5]}; make a new risk of it"
            )
        self.parameters.update(now)
        self.check_form()

    def check_form(self) -> None:
        """Raises ValueError if a parameter has another shape, dtype or device than when the space was made."""
        for name, p in self.parameters.items():
            if (p.shape, p.dtype, p.device) != (self.shapes[name], self.dtype, self.device):
                raise ValueError(
                    f"params: {name!r} was {list(self.shapes[name])}, {self.dtype} on {self.device} when the risk was "
                    f"made, and is {list(p.shape)}, {p.dtype} on {p.device}; make a new risk of the model"
                )

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a flat ``[P]`` or ``[P, K]`` tensor as ``{name: [*shape]}`` or ``{name: [*shape, K]}``."""
        check_dense("split", vector)
        if vector.ndim not in (1, 2) or vector.shape[0] != self.size:
            raise ValueError(
                f"split: expected a vector [{self.size}] or matrix [{self.size}, K], got {list(vector.shape)}"
            )
        blocks = vector.split(self.sizes)
        tail = vector.shape[1:]
        return {
            name: block.reshape(shape + tail)
            for (name, shape), block in zip(self.shapes.items(), blocks, strict=True)
        }

    def in_memory(self, vector: Tensor) -> Pairs:
        """For each parameter the tensor that this process has of it, and its part of a flat ``[P]`` vector."""
        return self.here(list(zip(self.parameters.values(), self.blocks(vector), strict=True)))

    def blocks(self, vector: Tensor) -> list[Tensor]:
        """Views of a flat ``[P]`` vector, one per parameter, in order."""
        return [
            b if len(s) == 1 else b.view(s)
            for b, s in zip(vector.split(self.sizes), self.shapes.values(), strict=True)
        ]

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """The flat ``[P]`` vector of ``{name: tensor}``, the inverse of :meth:`split`.

        Raises:
            TypeError: it is no mapping, or an entry is no dense tensor.
            ValueError: names, shapes, dtypes or devices do not fit; the message names the entry.
        """
        self.check_named(named)
        for name in self.names:
            if is_dtensor(named[name]):
                raise TypeError(
                    f"flatten: {name!r}: a DTensor, but the parameters here are whole on each process; pass its "
                    ".full_tensor()"
                )
        return torch.cat([named[name].reshape(-1) for name in self.names])

    def check_named(self, named: Mapping[str, Tensor]) -> None:
        """Raises as :meth:`flatten` does for what is no ``{name: tensor}`` of this space; DTensors may be."""
        if not isinstance(named, Mapping):
            raise TypeError(f"flatten: expected {{name: tensor}}, got {type(named).__name__}")
        missing = [name for name in self.names if name not in named]
        unknown = [name for name in named if name not in self.shapes]
        if missing or unknown:
            raise ValueError(
                f"flatten: the names do not fit: missing {missing[:5]}, unknown {unknown[:5]}; "
                f"expected exactly the {len(self.names)} keys of param_shapes"
            )
        for name, shape in self.shapes.items():
            value = named[name]
            check_dense(f"flatten: {name!r}", value)
            if value.shape != shape:
                raise ValueError(
                    f"flatten: {name!r}: expected shape {list(shape)}, got {list(value.shape)}"
                )
        self._check_alike(named)

    def _check_alike(self, named: Mapping[str, Tensor]) -> None:
        """Raises unless all entries have one dtype and device: ``torch.cat`` promotes silently."""
        for what, error in (("dtype", DtypeError), ("device", ValueError)):
            came = {name: getattr(named[name], what) for name in self.names}
            if len(set(came.values())) > 1:
                wanted = getattr(self, what)
                name = next(name for name in self.names if came[name] != wanted)
                raise error(f"flatten: {name!r}: expected {what} {wanted}, got {came[name]}")


def _by_name(model: nn.Module, params: Selection) -> Selection:
    """The selection with names in place of modules, and a list in place of an iterator, which can be read once."""
    if isinstance(params, nn.Module):
        return [_name_of(model, params)]
    if isinstance(params, str) or not isinstance(params, Iterable):
        return params
    return [_name_of(model, p) if isinstance(p, nn.Module) else p for p in params]


def _name_of(model: nn.Module, module: nn.Module) -> str:
    """A pattern for all parameters of a module of the model."""
    if next(module.parameters(), None) is None:
        raise ValueError(f"params: the module {type(module).__name__} has no parameters")
    for name, m in model.named_modules():
        if m is module:
            return name or "*"
    raise ValueError(
        f"params: the module {type(module).__name__} is no part of the model; pass one of model.modules()"
    )


def _select(model: nn.Module, params: Selection) -> dict[str, nn.Parameter]:
    first_name: dict[int, str] = {}
    aliases: list[tuple[str, nn.Parameter]] = []
    for name, p in model.named_parameters(remove_duplicate=False):
        first_name.setdefault(id(p), name)
        aliases.append((name, p))
    wanted = _predicate(params, [name for name, _ in aliases])
    chosen: dict[str, nn.Parameter] = {}
    for name, p in aliases:
        if wanted(name, p):
            chosen.setdefault(first_name[id(p)], p)
    if not chosen:
        raise ValueError(
            "params: no parameter is selected"
            + ("; none of the model's parameters requires grad" if params is None else "")
        )
    lazy = [n for n, p in chosen.items() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"params: {lazy[0]!r} is not initialised; run the model once on a batch first"
        )
    # the model's order, whichever alias a pattern matched first
    return {name: p for name, p in aliases if name in chosen and first_name[id(p)] == name}


def _predicate(params: Selection, names: list[str]) -> Callable[[str, nn.Parameter], bool]:
    if params is None:
        return lambda name, p: p.requires_grad
    if callable(params) and not isinstance(params, nn.Module):
        return params
    patterns = [params] if isinstance(params, str) else params
    if not isinstance(patterns, Iterable):
        raise TypeError(
            f"params: expected None, a name, glob patterns or a predicate, got {type(params).__name__}"
        )
    found: list[str] = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"params: expected names or glob patterns, got {type(pattern).__name__}"
            )
        if not any(_matches(n, pattern) for n in names):
            raise ValueError(
                f"params: {pattern!r} matches no parameter; the model has {names[:8]} ..."
            )
        found.append(pattern)
    return lambda name, p: any(_matches(name, pattern) for pattern in found)


def _matches(name: str, pattern: str) -> bool:
    """Whether a parameter is the one named, fits the pattern, or belongs to the module named."""
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)
