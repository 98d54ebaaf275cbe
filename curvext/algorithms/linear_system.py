"""A linear system (A + λI) x = b as it is solved: its checks, its vectors as rows ``[K, P_r]``, its preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from curvext.algorithms.lanczos import multiply
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.sharded_vectors import is_sharded
from curvext.arguments import check_dense
from curvext.results import CGResult

#: a vector by the names of parameters
Named = Mapping[str, Tensor]

Preconditioner = Tensor | Named | SymmetricOperator | Callable[[Tensor], Tensor]

Form = TypeVar("Form", bound=Tensor | dict[str, Tensor])


def in_form(found: CGResult[Tensor], form: Callable[[Tensor], Form]) -> CGResult[Form]:
    """A result with its vectors in another form."""
    bent = found.negative_curvature
    return CGResult(
        form(found.x),
        found.residual_norm,
        found.iterations,
        found.converged,
        None if bent is None else form(bent),
        found.curvature,
        found.products,
    )


def _is_dtensor(t: Tensor) -> bool:
    return hasattr(t, "placements")


def by_name(A: SymmetricOperator, b: Named) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """``{name: tensor}`` as a flat vector, and how a flat answer gets its form; local entries of DTensors."""
    vectors: Any = getattr(A, "local_vectors", None)
    if is_sharded(A) and vectors is not None and any(map(_is_dtensor, b.values())):
        full: Callable[[Tensor], Tensor] = A.full  # type: ignore[attr-defined]
        return A.local(b), lambda v: vectors.named(full(v))  # type: ignore[attr-defined]
    flat = flat_of(A, "b", b)
    split: Callable[[Tensor], dict[str, Tensor]] = A.split  # type: ignore[attr-defined]
    return flat, split


def flat_of(A: SymmetricOperator, name: str, named: Named) -> Tensor:
    """``{name: tensor}`` as the flat vector of an operator that knows the names."""
    if is_sharded(A) and any(map(_is_dtensor, named.values())):
        local: Tensor = A.local(named)  # type: ignore[attr-defined]
        return local
    flatten = getattr(A, "flatten", None)
    if flatten is None or not hasattr(A, "split"):
        raise TypeError(
            f"cg: {name}: expected a tensor, as {type(A).__name__} has no flatten and split for named ones"
        )
    vector: Tensor = flatten(named)
    return vector


def check(products: Products, b: Tensor, x0: Tensor | None) -> None:
    """Raises where b is not ``[P_r]`` or ``[P_r, K]`` in the dtype and on the device of A, or x0 not like b.

    Raises:
        TypeError: a dtype.
        ValueError: a shape, a layout or a device.
    """
    for name, v in (("b", b), ("x0", x0)):
        if v is None:
            continue
        check_dense(f"cg: {name}", v)
        size = products.vectors.local
        wanted = f"[{size}] or [{size}, K]" if name == "b" else list(b.shape)
        fits = v.ndim in (1, 2) and v.shape[0] == size if name == "b" else v.shape == b.shape
        if not fits:
            raise ValueError(f"cg: {name}: expected shape {wanted}, got {list(v.shape)}")
        if v.dtype not in (products.dtype, products.working):
            raise TypeError(f"cg: {name}: expected dtype {products.dtype}, got {v.dtype}")
        if v.device != products.device:
            raise ValueError(f"cg: {name}: expected device {products.device}, got {v.device}")


def check_values(products: Products, **vectors: Tensor | None) -> None:
    """Raises a ValueError that names the vector with nan or inf; on CUDA, where looking waits, nothing is looked at."""
    for name, v in vectors.items():
        if v is None or v.device.type != "cpu":
            continue
        if not products.vectors.all_finite(v):
            raise ValueError(f"cg: {name}: contains nan or inf")


def rows_of(products: Products, b: Tensor) -> Tensor:
    """Right-hand sides as rows ``[K, P]`` of an algorithm's own."""
    columns = b.detach().unsqueeze(1) if b.ndim == 1 else b.detach()
    return columns.to(products.working).T.clone(memory_format=torch.contiguous_format)


def inverse_of(
    products: Products, preconditioner: Preconditioner | None
) -> Callable[[Tensor], Tensor] | None:
    """The preconditioner as a function of residuals, rows ``[K, P]``."""
    if preconditioner is None:
        return None
    if isinstance(preconditioner, Tensor):
        check_dense("cg: preconditioner", preconditioner)
        diagonal = preconditioner.detach()
        if diagonal.shape != (products.vectors.local,):
            raise ValueError(
                f"cg: preconditioner: expected a diagonal [{products.vectors.local}], got {list(diagonal.shape)}"
            )
        if diagonal.device != products.device:
            raise ValueError(
                f"cg: preconditioner: expected device {products.device}, got {diagonal.device}"
            )
        inverse = diagonal.to(products.working).reciprocal()
        return lambda r: r * inverse
    apply = getattr(preconditioner, "matvec", preconditioner)
    if not callable(apply):
        raise TypeError(
            "cg: preconditioner: expected a diagonal [P], an operator with matvec or a function, "
            f"got {type(preconditioner).__name__}"
        )
    wants = getattr(preconditioner, "dtype", None) or products.working

    def each(r: Tensor) -> Tensor:
        z = [apply(row.to(wants)) for row in r]
        for one in z:
            if not isinstance(one, Tensor) or one.shape != r.shape[1:]:
                got = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise ValueError(
                    f"cg: preconditioner: returned {got} for a vector [{products.vectors.local}]"
                )
        products.agree()  # if it raised here, it raises everywhere
        return torch.stack(z).to(r.dtype)

    return each


def compared(
    preconditioner: Preconditioner | None, inverse: Callable[[Tensor], Tensor] | None
) -> Tensor | Callable[[Tensor], Tensor] | None:
    """A preconditioner as a checkpoint compares it: a diagonal, or a function of a vector."""
    if isinstance(preconditioner, Tensor) or inverse is None:
        return preconditioner if isinstance(preconditioner, Tensor) else None
    return lambda v: inverse(v.unsqueeze(0))[0]


@dataclass(frozen=True)
class System:
    """(A + λI) and a preconditioner, applied to vectors as rows ``[K, P_r]``.

    Args:
        products: A.
        damping: λ.
        inverse: the preconditioner M of residuals, rows to rows, or None.
    """

    products: Products
    damping: float
    inverse: Callable[[Tensor], Tensor] | None

    def multiply(self, rows: Tensor) -> Tensor:
        """(A + λI) applied to each row of ``[K, P]``."""
        if len(rows) == 0:
            return rows.clone()
        product = multiply(self.products, rows)
        return product.add_(rows, alpha=self.damping) if self.damping else product

    def length(self, rows: Tensor) -> Tensor:
        """‖v‖ of each row, ``[K]``."""
        return self.dots((rows, rows))[0].sqrt()

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """⟨a, b⟩ of the rows of each pair, ``[K]``: one reduction for all of them where vectors are sharded."""
        return self.products.vectors.dots(pairs)

    def precondition(self, r: Tensor) -> Tensor:
        """M r of each row, or r itself."""
        return r if self.inverse is None else self.inverse(r)
