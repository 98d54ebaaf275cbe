"""Counters and parts of tensors, and the tensors of nested containers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def version_of(t: Tensor) -> int:
    """A tensor's version counter; 0 for tensors of inference mode, which have none.

    Private: ``Tensor._version``, which the documentation of autograd names; an AttributeError without it.
    """
    return 0 if t.is_inference() else t._version


def sparse_parts(t: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and values of a COO tensor as they lie, coalesced or not.

    Private: ``Tensor._indices`` and ``Tensor._values``, as the public ones take coalesced tensors alone; an
    AttributeError without them.
    """
    return t._indices(), t._values()


def leaves_of(container: Any) -> list[Any]:
    """The leaves of nested tuples, lists, dictionaries and other registered containers.

    Private: ``torch.utils._pytree``, which knows what transformers and others registered; an ImportError without it.
    """
    return pytree.tree_leaves(container)


def map_leaves(change: Callable[[Any], Any], container: Any) -> Any:
    """The same nested container with other leaves."""
    return pytree.tree_map(change, container)
