"""What a model's output depends on beside parameters and buffers: attributes of its modules, hooks, and ``forward``.

A mark records an attribute: numbers and strings by value, tensors by identity, version and address, small containers
and plain objects by their entries, anything else by identity. Equal marks of one object mean that it has not changed,
as far as marks see: they skip whatever lies deeper than a few levels, and containers with many entries.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from curvext.torch_internals.hooks import FORWARD_HOOKS, GLOBAL_FORWARD_HOOKS
from curvext.torch_internals.modules import members_of
from curvext.torch_internals.tensors import version_of

#: types that are compared by value
SIMPLE = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis)),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
    }
)
#: attributes that every module has: its parts are marked separately, its hooks by identity
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: containers whose entries are restored
_CONTAINERS = frozenset({list, deque, dict, OrderedDict, defaultdict, Counter, set})
#: limits of a mark: entries of a container, and nesting levels
_ENTRIES, _LEVELS = 256, 4


class _Same:
    """Compares an object by identity, and keeps it alive so that its address is not reused."""

    __slots__ = ("_of",)

    def __init__(self, of: object) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._of is other._of

    def __hash__(self) -> int:
        return id(self._of)


def _key(key: object) -> object:
    """The comparable form of a dictionary's key."""
    return key if type(key) in SIMPLE else _Same(key)


class Marks:
    """Marks of some attributes, and the tensors met among them.

    Args:
        known: ids of tensors that are checked elsewhere: parameters and buffers.
    """

    def __init__(self, known: Collection[int] = ()) -> None:
        self._known = known
        self._seen: set[int] = set()
        self.tensors: list[Tensor] = []

    def of_modules(self, modules: Iterable[nn.Module]) -> list[tuple[Any, ...]]:
        """The named marks of each module's own attributes; then those of the global hooks."""
        found: list[tuple[Any, ...]] = []
        of = self.of
        for module in modules:
            kind, attributes = type(module), module.__dict__
            marks: list[Any] = [("forward", kind, kind.forward)]
            for name, value in attributes.items():
                if name in OF_EVERY_MODULE:
                    continue
                what = type(value)
                # most attributes are numbers and small tuples of them, which need no call
                if what in SIMPLE and value == value:
                    marks.append((name, (what, value)))
                elif what is tuple and SIMPLE.issuperset(map(type, value[:_ENTRIES])):
                    some = value[:_ENTRIES]
                    marks.append((name, (tuple, len(value), *map(type, some), some)))
                else:
                    marks.append((name, of(value)))
            marks += [
                (name, *attributes[name].values()) for name in FORWARD_HOOKS if attributes[name]
            ]
            found.append(tuple(marks))
        found.append(tuple(("hooks", *hooks.values()) for hooks in GLOBAL_FORWARD_HOOKS if hooks))
        return found

    def of(self, value: Any, levels: int = _LEVELS) -> object:
        """The mark of one value."""
        kind = type(value)
        if kind in SIMPLE:
            return (kind, value) if value == value else (kind, "nan")
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, (FunctionType, BuiltinFunctionType)):
            return self._of_function(value)
        if id(value) in self._seen or levels == 0:
            return _Same(value)
        self._seen.add(id(value))
        if isinstance(value, (list, tuple, deque)):
            some = islice(value, _ENTRIES)
            return (kind, len(value), *(self.of(v, levels - 1) for v in some))
        if isinstance(value, dict):
            if len(value) > _ENTRIES:
                return (kind, _Same(value), len(value))
            return (kind, *((_key(k), self.of(v, levels - 1)) for k, v in value.items()))
        if isinstance(value, (set, frozenset)):
            return (kind, frozenset(value) if len(value) <= _ENTRIES else len(value))
        return self._of_object(value, levels)

    def _of_tensor(self, value: Tensor) -> object:
        if id(value) in self._known:
            return id(value)
        self.tensors.append(value)
        plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
        address = value.data_ptr() if plain and value.device.type != "meta" else 0
        return (id(value), version_of(value), address, value.shape, value.requires_grad)

    def _of_function(self, value: Any) -> object:
        """A function, with the numbers and tensors in its closure and the globals that it names."""
        if not isinstance(value, FunctionType) or id(value) in self._seen:
            return value
        self._seen.add(id(value))
        held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        names = value.__code__.co_names
        held += [value.__globals__[name] for name in names if name in value.__globals__]
        marks = [self.of(v) for v in held if type(v) in SIMPLE or isinstance(v, Tensor)]
        return (value, *marks, *((k, self.of(v)) for k, v in vars(value).items()))

    def _of_object(self, value: Any, levels: int) -> object:
        if isinstance(value, MethodType):
            return (value.__func__, _Same(value.__self__))
        if isinstance(value, partial):
            return (
                partial,
                *(self.of(v, levels) for v in (value.func, value.args, value.keywords)),
            )
        if isinstance(value, nn.Module):  # not registered as a submodule, in a list for instance
            parts: list[Any] = [*members_of(value)]
            parts += [v for name, v in vars(value).items() if name not in OF_EVERY_MODULE]
            return (_Same(value), value.training, *(self.of(v, levels - 1) for v in parts))
        if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            few = value.nbytes <= 1 << 16
            return (_Same(value), value.shape, hash(value.tobytes()) if few else 0)
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict) or isinstance(value, type) or len(own) > _ENTRIES:
            return _Same(value)
        return (_Same(value), *((name, self.of(v, levels - 1)) for name, v in own.items()))


class Attributes:
    """A snapshot of the attributes of some modules, to find changes and undo them.

    Args:
        modules: the modules.
        known: as in :class:`Marks`.
        contents: whether to copy tensors too, so that writes to them can be undone.
    """

    def __init__(
        self, modules: Collection[nn.Module], known: Collection[int], contents: bool
    ) -> None:
        self._modules = modules
        self._known = known
        marks = Marks(known)
        self._marks = marks.of_modules(modules)
        self._held = [dict(vars(m)) for m in modules]
        self._containers = [
            (value, value.copy())
            for held in self._held
            for name, value in held.items()
            if name not in OF_EVERY_MODULE and type(value) in _CONTAINERS
        ]
        #: tensors among the attributes
        self.tensors = marks.tensors
        self._copies = [
            (t, t.detach().clone()) for t in marks.tensors if contents and not t.is_meta
        ]

    def changed(self, name_of: Callable[[nn.Module], str]) -> list[str]:
        """The names of attributes that have changed."""
        now = Marks(self._known).of_modules(self._modules)
        if now == self._marks:
            return []
        names: dict[str, None] = {}
        for module, before, after in zip([*self._modules, None], self._marks, now, strict=True):
            differing = [m for m in after if m not in before] + [
                m for m in before if m not in after
            ]
            owner = "" if module is None or not differing else name_of(module)
            names |= {f"{owner}.{name}".removeprefix("."): None for name, *_ in differing}
        return list(names)

    def put_back(self) -> None:
        """Restores them, except for what lies inside objects."""
        for module, held in zip(self._modules, self._held, strict=True):
            now = vars(module)
            for name in [n for n in now if n not in held]:
                del now[name]
            for name, value in held.items():
                if name not in OF_EVERY_MODULE and now.get(name, _MISSING) is not value:
                    now[name] = value
        for container, copy in self._containers:
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(copy)
            else:
                container.update(copy)
        with torch.no_grad():
            for t, copy in self._copies:
                if not torch.equal(t, copy):
                    t.copy_(copy)


_MISSING = object()
