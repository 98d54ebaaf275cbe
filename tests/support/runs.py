"""Long runs that are cut off: by the operator, or with the whole process."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from sharded_matrix import SPECTRUM, WholeMatrix, dense, vector
from torch import Tensor

import curvext as cx

SIZE = len(SPECTRUM)
#: eigenvalues so close that Lanczos restarts several times
CLOSE = torch.cat([torch.linspace(0, 1, 145), torch.tensor([1.004, 1.008, 1.012, 2, -1])]).double()


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


def of(A: Any, v: Tensor) -> Tensor:
    """The entries of a whole vector that this process has."""
    return v[A.entries] if hasattr(A, "entries") else v


def cg(A: Any, path: Any, **options: Any) -> Any:
    b = of(A, vector(SIZE, 2))
    return cx.cg(A, b, **{"damping": 1.1, "tol": 1e-13, "checkpoint": path, **options})


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
