"""Checked and counted products: every algorithm multiplies with its operator through this class."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from curvext.algorithms.sharded_vectors import ShardedVectors, is_sharded
from curvext.algorithms.vectors import Vectors, units
from curvext.dtypes import dtype_of_sums


@runtime_checkable
class SymmetricOperator(Protocol):
    """What an algorithm needs of A: curvext operators provide it, and a user's object may.

    Where it also has ``entries``, the global indices of this process's entries ``[P_r]``, and ``inner(a, b)``, aᵀb of
    local columns ``[P_r, K]`` and ``[P_r, m]`` summed over the processes, its vectors lie on several processes, and
    ``matvec`` takes and gives the local entries ``[P_r]``.
    """

    @property
    def shape(self) -> Any:
        """(P, P)."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of vectors; None for an operator that takes any."""
        ...

    @property
    def device(self) -> torch.device | str | None:
        """The device of vectors, likewise."""
        ...

    def matvec(self, v: Tensor) -> Tensor:
        """A v for a vector ``[P]``."""
        ...


class Products:
    """The products of a symmetric operator, counted.

    Vectors may be wider than A: a float32 vector is cast to the bfloat16 of A, and the product back
    to float32. An algorithm can therefore keep its own vectors in :attr:`working`.

    Args:
        A: an object with ``shape`` (P, P), ``dtype``, ``device`` and ``matvec``; its ``matmat`` is
            used for blocks where it has one. Where its dtype or device is None (an operator that
            takes any, as ``curvext.Identity``) those of ``like`` are taken.
        caller: the name of the public function, for its errors.
        like: a vector of the caller's; None for PyTorch's default dtype on the CPU.
        sharded: whether the algorithm works on local entries where A has ``inner`` and ``entries``; else on whole
            vectors always.

    Raises:
        TypeError: A lacks one of these, or its dtype is not real floating point.
        ValueError: A is not square.
    """

    def __init__(
        self,
        A: SymmetricOperator,
        caller: str,
        like: Tensor | None = None,
        sharded: bool = False,
    ) -> None:
        missing = [a for a in ("shape", "dtype", "device", "matvec") if not hasattr(A, a)]
        if missing:
            raise TypeError(
                f"{caller}: A must have shape, dtype, device and matvec; {type(A).__name__} has no "
                + ", ".join(missing)
            )
        shape = tuple(A.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"{caller}: A must be square, got shape {shape}")
        like = torch.empty(0, device="cpu") if like is None else like
        self.operator = A
        self.caller = caller
        self.size = int(shape[0])
        self.dtype: torch.dtype = like.dtype if A.dtype is None else A.dtype
        # an empty tensor knows the number of "the current CUDA device"
        self.device = torch.empty(0, device=like.device if A.device is None else A.device).device
        if not self.dtype.is_floating_point:
            raise TypeError(f"{caller}: A must be real floating point, got dtype {self.dtype}")
        #: dtype for the vectors of an algorithm: never less than float32
        self.working = dtype_of_sums(self.dtype)
        #: where the entries of vectors lie
        self.vectors = Vectors(self.size)
        if sharded and is_sharded(A):
            empty = torch.empty(0, dtype=self.working, device=self.device)
            self.vectors = ShardedVectors(A, caller, self.size, empty)
        #: number of vectors multiplied with A so far
        self.count = 0

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds its entries of a vector alone."""
        return isinstance(self.vectors, ShardedVectors)

    def vector(self, v: Tensor) -> Tensor:
        """A v, ``[P_r]``, in the dtype of ``v``."""
        self.count += 1
        return self._like(self.operator.matvec(v.to(self.dtype)), v)

    def block(self, V: Tensor) -> Tensor:
        """A V, ``[P_r, K]``, in the dtype of ``V``; by ``matmat`` where A has one, else column by column."""
        self.count += V.shape[1]
        matmat = getattr(self.operator, "matmat", None)
        if matmat is not None:
            return self._like(matmat(V.to(self.dtype)), V)
        if V.shape[1] == 0:
            return torch.empty_like(V)
        columns = [c.contiguous() for c in V.unbind(1)]
        return torch.stack(
            [self._like(self.operator.matvec(c.to(self.dtype)), c) for c in columns], 1
        )

    def dense(self) -> Tensor:
        """The matrix, ``[P, P]``, float64, its rounding made symmetric; P products in blocks of 64."""
        like = torch.empty(0, dtype=self.working, device=self.device)
        runs = [range(at, min(at + 64, self.size)) for at in range(0, self.size, 64)]
        parts = [self.block(units(self.vectors, run, like)) for run in runs]
        local = torch.cat(parts, 1) if parts else like.view(0, 0)
        matrix = self.vectors.whole(local).double()
        return (matrix + matrix.T) / 2

    def whole(self) -> SymmetricOperator:
        """The operator on whole vectors, also where it could work on sharded ones."""
        return _OnWholeVectors(self.operator) if is_sharded(self.operator) else self.operator

    def local(self, v: Tensor) -> Tensor:
        """A vector or block of the caller's in the form of this algorithm: where those are sharded, its local entries.

        A caller may also give all entries, ``[P]`` or ``[P, K]`` on every process, if the operator has ``local``.
        """
        return self.operator.local(v) if self.is_full(v) else v  # type: ignore[attr-defined]

    def is_full(self, v: Tensor) -> bool:
        """Whether a vector has all entries and those of the algorithm are sharded; the same on every process."""
        vectors = self.vectors
        if not isinstance(vectors, ShardedVectors) or not hasattr(self.operator, "local"):
            return False
        full = v.ndim > 0 and v.shape[0] == vectors.size
        group: Any = getattr(self.operator, "group", None)
        if group is None or group.alone:
            return full and vectors.local != vectors.size
        # one process alone cannot tell where it holds all entries and the others none
        return all(group.objects(full))

    def agree(self) -> None:
        """Waits until all processes have checked their arguments, so that an error of one is an error of all.

        With whole vectors the first product does this; a reduction of sharded ones cannot.
        """
        group: Any = getattr(self.operator, "group", None)
        if self.is_sharded and group is not None and not group.alone:
            with group.call(f"{self.caller}, with checked arguments"):
                pass

    def _like(self, product: Any, v: Tensor) -> Tensor:
        if not isinstance(product, Tensor) or product.shape != v.shape:
            got = tuple(product.shape) if isinstance(product, Tensor) else type(product).__name__
            raise ValueError(
                f"{self.caller}: A returned {got} for a block of shape {tuple(v.shape)}"
            )
        return product.to(v.dtype)


class _OnWholeVectors:
    """An operator without its ``inner`` and ``entries``."""

    def __init__(self, operator: Any) -> None:
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.group = getattr(operator, "group", None)
        self.matvec = operator.matvec
        if hasattr(operator, "matmat"):
            self.matmat = operator.matmat
