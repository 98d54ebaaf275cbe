"""What a model goes by beside parameters and buffers: plain attributes of its modules, hooks, and ``forward`` itself.

An attribute is told by a mark: numbers and strings by value, tensors by identity, version and address, small containers
and plain objects by what they hold, anything else by identity. Two equal marks of the same object mean that nothing
changed which a mark can see: not what lies deeper than a few levels, and not in containers of many entries.
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

#: what is told by its value
_SIMPLE = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis)),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
    }
)
#: attributes that every module has: its parts are looked at as such, its hooks by identity
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: containers that are put back as they were
_CONTAINERS = frozenset({list, deque, dict, OrderedDict, defaultdict, Counter, set})
#: entries of a container, and levels of containers and objects, that are looked at
_ENTRIES, _LEVELS = 256, 4


class _Same:
    """Equal if it is of the same object, which lives meanwhile, so that no other has its place in memory."""

    __slots__ = ("_of",)

    def __init__(self, of: object) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._of is other._of

    def __hash__(self) -> int:
        return id(self._of)


def _key(key: object) -> object:
    """A key of a dictionary, as it is compared."""
    return key if type(key) in _SIMPLE else _Same(key)


class Marks:
    """Marks of some attributes, and the tensors met among them.

    Args:
        known: ids of tensors that are looked at elsewhere: parameters and buffers.
    """

    def __init__(self, known: Collection[int] = ()) -> None:
        self._known = known
        self._seen: set[int] = set()
        self.tensors: list[Tensor] = []

    def of_modules(self, modules: Iterable[nn.Module]) -> list[tuple[Any, ...]]:
        """For each module the marks of what it has of its own, with their names; then the global hooks."""
        found: list[tuple[Any, ...]] = []
        of = self.of
        for module in modules:
            kind, attributes = type(module), module.__dict__
            marks: list[Any] = [("forward", kind, kind.forward)]
            marks += [
                (name, of(value))
                for name, value in attributes.items()
                if name not in _OF_EVERY_MODULE
            ]
            marks += [
                (name, *attributes[name].values()) for name in FORWARD_HOOKS if attributes[name]
            ]
            found.append(tuple(marks))
        found.append(tuple(("hooks", *hooks.values()) for hooks in GLOBAL_FORWARD_HOOKS if hooks))
        return found

    def of(self, value: Any, levels: int = _LEVELS) -> object:
        """The mark of one value."""
        kind = type(value)
        if kind in _SIMPLE:
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
        """A function with the numbers and tensors that it holds, and the global ones that it names."""
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
        marks = [self.of(v) for v in held if type(v) in _SIMPLE or isinstance(v, Tensor)]
        return (value, *marks, *((k, self.of(v)) for k, v in vars(value).items()))

    def _of_object(self, value: Any, levels: int) -> object:
        if isinstance(value, MethodType):
            return (value.__func__, _Same(value.__self__))
        if isinstance(value, partial):
            return (
                partial,
                *(self.of(v, levels) for v in (value.func, value.args, value.keywords)),
            )
        if isinstance(value, nn.Module):  # one that is no submodule, in a list say
            parts: list[Any] = [*members_of(value)]
            parts += [v for name, v in vars(value).items() if name not in _OF_EVERY_MODULE]
            return (_Same(value), value.training, *(self.of(v, levels - 1) for v in parts))
        if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            few = value.nbytes <= 1 << 16
            return (_Same(value), value.shape, hash(value.tobytes()) if few else 0)
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict) or isinstance(value, type) or len(own) > _ENTRIES:
            return _Same(value)
        return (_Same(value), *((name, self.of(v, levels - 1)) for name, v in own.items()))


class Attributes:
    """The attributes of some modules as they stand, to be told from those of later and put back.

    Args:
        modules: the modules.
        known: as in :class:`Marks`.
        contents: whether tensors are copied too, so that what was written to one can be undone.
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
            if name not in _OF_EVERY_MODULE and type(value) in _CONTAINERS
        ]
        #: tensors among the attributes
        self.tensors = marks.tensors
        self._copies = [
            (t, t.detach().clone()) for t in marks.tensors if contents and not t.is_meta
        ]

    def changed(self, name_of: Callable[[nn.Module], str]) -> list[str]:
        """The names of attributes that are not as they were."""
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
        """Makes them what they were, but for what lies inside of objects."""
        for module, held in zip(self._modules, self._held, strict=True):
            now = vars(module)
            for name in [n for n in now if n not in held]:
                del now[name]
            for name, value in held.items():
                if name not in _OF_EVERY_MODULE and now.get(name, _MISSING) is not value:
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
