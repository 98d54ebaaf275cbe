"""The forms of a vector: whole or by name, and where parameters are sharded entries of each process or DTensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from curvext.processes import LocalVectors, Words
from curvext.torch_internals.fsdp import is_dtensor

if TYPE_CHECKING:
    from curvext.operators.linear import LinearOperator

#: brings a whole answer into the form that the vector had
Back = Callable[[Tensor], Any]


def whole_vector(
    operator: LinearOperator, v: Any, where: str, *ndim: int
) -> tuple[Tensor, Back | None]:
    """A vector, or columns, as a whole tensor, checked; and how the answer gets its form, None where it has it.

    Args:
        operator: whose vector it is.
        v: in any form.
        where: the call, for errors, and for what the ranks compare.
        ndim: how many dimensions a tensor may have.
    """
    vectors = operator.local_vectors
    if isinstance(v, Mapping):
        if vectors is not None and any(map(is_dtensor, v.values())):
            local = _checked_entries(operator, vectors, v, where)
            return _gathered(operator, vectors, local, where), vectors.named
        vector = operator.flatten(v)
        operator._check(vector, where, 1)
        return vector, operator.split
    if vectors is not None and isinstance(v, Tensor) and v.ndim in ndim:
        if is_dtensor(v):
            raise TypeError(
                f"{where}: a DTensor; pass {{name: DTensor}}, or the entries of this process as a plain tensor"
            )
        if _is_local(operator, vectors, v, where):
            operator._check_form(v, where)
            return _gathered(operator, vectors, v, where), vectors.local
    operator._check(v, where, *ndim)
    return v, None


def local_entries(operator: LinearOperator, v: Any) -> Tensor:
    """This process's entries of a vector or of columns that it has whole, or by name."""
    where = f"{type(operator).__name__}.local: v"
    vectors = operator.local_vectors
    if isinstance(v, Mapping) and vectors is not None and any(map(is_dtensor, v.values())):
        local = _checked_entries(operator, vectors, v, where)
        with operator.group.call(f"{where}, {local.dtype} by DTensors"):
            return local
    vector = operator.flatten(v) if isinstance(v, Mapping) else v
    operator._check(vector, where, 1, 2)
    # each rank takes its part of its own copy, so these must be copies of one vector
    with operator.group.call(where, [vector]):
        return vector if vectors is None else vectors.local(vector)


def _is_local(operator: LinearOperator, vectors: LocalVectors, v: Tensor, where: str) -> bool:
    """Whether a vector holds the entries of this process alone, on all processes or on none."""
    if not vectors.trivial:
        return v.shape[0] == vectors.count != vectors.size
    # the rank that has every entry cannot tell, so all say how many they were given
    heard = operator.group.exchange(
        Words.of_call(f"{where}: the form of the vector", count=v.shape[0])
    )
    return any(w.count != vectors.size for w in heard) and v.shape[0] == vectors.count


def _checked_entries(
    operator: LinearOperator, vectors: LocalVectors, named: Mapping[str, Tensor], where: str
) -> Tensor:
    """The local entries of ``{name: DTensor}``."""
    operator._named_space().check_named(named)
    name = vectors.misplaced(named)
    if name is not None:
        raise ValueError(
            f"{where}: {name!r}: expected a tensor in the mesh and placements of the parameter, got "
            f"{getattr(named[name], 'placements', 'a plain tensor')}; redistribute it, or pass whole tensors "
            "for all names"
        )
    local = vectors.from_named(named)
    operator._check_form(local, where)
    return local


def _gathered(operator: LinearOperator, vectors: LocalVectors, v: Tensor, where: str) -> Tensor:
    """The whole vector, once every rank is known to give its part."""
    columns = list(v.shape[1:])
    with operator.group.call(f"{where}, {v.dtype} by entries, columns {columns}"):
        return vectors.whole(v.detach())
