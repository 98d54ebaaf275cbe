"""What answers depend on, read by one call of native code: whether anything may have changed since the last time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from curvext import _extension
from curvext.attributes import OF_EVERY_MODULE, SIMPLE
from curvext.torch_internals.hooks import GLOBAL_FORWARD_HOOKS

#: types of tensors that are no subclass
_TENSORS = frozenset({Tensor, nn.Parameter})
_read = getattr(_extension.module, "read", None)
_is_same = getattr(_extension.module, "is_same", None)


@dataclass(frozen=True)
class Reading:
    """The objects and numbers of a state as native code reads them; equal only if nothing has changed.

    It knows less than :class:`~curvext.attributes.Marks`: some states it cannot read, and some differ to it whose marks
    are equal. None are equal to it that differ.
    """

    _of: tuple[tuple[object, ...], bytes]

    @classmethod
    def of(
        cls, modules: list[nn.Module], batches: Collection[object] | None, contents: bool
    ) -> Reading | None:
        """Of modules, their parameters and buffers, and of batches of data; None of what only Python can read.

        Args:
            modules: all of them: those below one are not followed.
            batches: the data, of which addresses and versions count.
            contents: whether values of parameters and buffers are read, which writes past version counters change.
        """
        if _read is None or any(GLOBAL_FORWARD_HOOKS):
            return None
        found = _read(modules, batches, SIMPLE, OF_EVERY_MODULE, _TENSORS, contents)
        return None if found is None else cls(found)

    def is_same(self, other: Reading) -> bool:
        """Whether nothing has changed in between."""
        assert _is_same is not None
        return bool(_is_same(self._of, other._of))
