"""Long runs that are cut off: by the operator, or with the whole process."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from sharded_matrix import WholeMatrix, dense, vector
from torch import Tensor

import curvext as cx

#: eigenvalues of which Lanczos finds the largest, one of them twice there, after several restarts and in fewer products
#: than the matrix has rows
CLOSE = torch.cat([torch.linspace(0, 1, 145), torch.tensor([1.2, 1.4, 1.4, 2, -1])]).double()
SIZE = len(CLOSE)


class Cut(Exception):
    """The end of a run, or what a test calls so."""


def cutting(A: Any, after: int, how: str = "raise") -> Any:
    """The operator, which ends the run instead of answering once it was asked for so many products."""
    matvec, matmat, left = A.matvec, A.matmat, [after]

    def counted(times: Any, v: Tensor) -> Tensor:
        left[0] -= 1 if v.ndim == 1 else v.shape[1]
        if left[0] < 0:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "nan":
                return torch.full_like(v, torch.nan)
            raise Cut
        return times(v)

    A.matvec = lambda v: counted(matvec, v)
    A.matmat = lambda V: counted(matmat, V)
    return A


def counting(A: Any) -> tuple[Any, list[int]]:
    """The operator, and the widths of the products that it was asked for."""
    matvec, matmat, asked = A.matvec, A.matmat, []

    def counted(times: Any, v: Tensor) -> Tensor:
        asked.append(1 if v.ndim == 1 else v.shape[1])
        return times(v)

    A.matvec = lambda v: counted(matvec, v)
    A.matmat = lambda V: counted(matmat, V)
    return A, asked


def of(A: Any, v: Tensor) -> Tensor:
    """The entries of a whole vector that this process has."""
    return v[A.entries] if hasattr(A, "entries") else v


def cg(A: Any, path: Any, **options: Any) -> Any:
    b = of(A, vector(SIZE, 2))
    return cx.cg(A, b, **{"damping": 1.1, "tol": 1e-13, "checkpoint": path, **options})


def leaving_cg(A: Any, path: Any, **options: Any) -> Any:
    """Columns that converge after 2 iterations, 10 and 12, and two that meet negative curvature, one after many."""
    Q = torch.linalg.qr(vector(SIZE, SIZE)).Q  # the eigenvectors
    b = torch.stack(
        [
            Q[:, [0, 70]].sum(1),
            Q[:, 5:145:12].sum(1),
            Q[:, 100:140].sum(1),
            Q[:, -1],
            Q[:, :-1] @ vector(SIZE - 1),
        ],
        1,
    )
    b = of(A, b)
    return cx.cg(A, b, **{"damping": 0.1, "tol": 1e-9, "checkpoint": path, **options})


def one_cg(A: Any, path: Any, **options: Any) -> Any:
    b = of(A, vector(SIZE, 2))[:, 1]
    where = dict(x0=b, preconditioner=1 + of(A, vector(SIZE)).square())
    return cx.cg(A, b, **{"damping": 1.1, "tol": 1e-13, "checkpoint": path, **where, **options})


def eigsh(A: Any, path: Any, **options: Any) -> Any:
    return cx.eigsh(A, 3, **{"which": "LA", "ncv": 12, "tol": 1e-12, "checkpoint": path, **options})


def density(A: Any, path: Any, **options: Any) -> Any:
    return cx.spectral_density(A, **{"probes": 6, "steps": 10, "checkpoint": path, **options})


def estimate(function: Any, method: str) -> Any:
    def run(A: Any, path: Any, **options: Any) -> Any:
        return function(A, method, **{"probes": 30, "checkpoint": path, **options})

    return run


#: run(A, path, **other arguments), each of about 60 products or 30
RUNS = {
    "cg": one_cg,
    "cg of columns": cg,
    "cg of columns that leave": leaving_cg,
    "eigsh": eigsh,
    "density": density,
    "trace": estimate(cx.trace, "hutchinson"),
    "hutch++": estimate(cx.trace, "hutch++"),
    "xtrace": estimate(cx.trace, "xtrace"),
    "diagonal": estimate(cx.diagonal, "hutchinson"),
    "xdiag": estimate(cx.diagonal, "xdiag"),
}


def matrix() -> WholeMatrix:
    """The matrix of these runs."""
    return WholeMatrix(dense(spectrum=CLOSE))


def parts(found: Any) -> dict[str, Tensor]:
    """All numbers of a result."""
    return {
        name: torch.as_tensor(value)
        for name, value in vars(found).items()
        if value is not None and not isinstance(value, str)
    }


if __name__ == "__main__":  # python runs.py NAME PATH AFTER: is killed
    torch.set_num_threads(1)
    RUNS[sys.argv[1]](cutting(matrix(), int(sys.argv[3]), "kill"), sys.argv[2])
