"""Backends for laplace-torch: exact curvature of any module, without Jacobians by sample.

Pass one as ``backend=`` to ``laplace.Laplace``. All derive from the interfaces of laplace-torch, take the arguments
that its own backends take, and give the curvature of the *sum* of the losses times ``factor``: 0.5 with squared errors,
so that the Gaussian has unit variance, and 1 with cross-entropy.

One file because its three backends are one interface, with a docstring for each method.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvext.algorithms import eigsh
from curvext.errors import NoClosedFormError
from curvext.kronecker import Factors, KFACOperator
from curvext.operators import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    MCFisherOperator,
)
from curvext.operators.curvature import CurvatureOperator
from curvext.operators.linear import DENSE_LIMIT
from curvext.problem import Problem

try:
    from laplace.curvature import CurvatureInterface, EFInterface, GGNInterface
    from laplace.utils import Kron
except ImportError as error:
    raise ImportError(
        f"curvext.laplace: needs laplace-torch: pip install laplace-torch ({error})"
    ) from error

__all__ = ["CurvextEF", "CurvextGGN", "CurvextHessian"]

_INSTEAD = "use hessian_structure='diag' or 'full', or laplace's CurvlinopsGGN"


class _Curvext(CurvatureInterface):
    """What the three backends share: a batch as an operator, and its answers in laplace-torch's form."""

    #: how many eigenpairs :meth:`eig_lowrank` asks for, at most
    low_rank = 10

    @abstractmethod
    def _operator(self, problem: Problem, options: dict[str, Any]) -> CurvatureOperator:
        """The curvature of a problem; ``options`` are the keywords of the call."""

    def _factors_of(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """Which K-FAC has this curvature for its target, or None."""
        return None

    # ------------------------------------------------------------------ the interface

    def diag(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss, and the diagonal ``[P]`` or ``[S]``, both times ``factor``; no Jacobian is formed.

        Args:
            x: inputs of one batch, or a mapping, which is passed to the model whole.
            y: labels.
            kwargs: ``mc_samples`` with ``stochastic=True``; others are ignored.

        Raises:
            TypeError, ValueError: x, y or the model do not fit; the message says what would.
        """
        with self._named("diag"):
            problem, chosen = self._problem(x, y)
            diagonal = self._operator(problem, kwargs).diagonal()
        diagonal = diagonal if chosen is None else diagonal[chosen]
        return self._loss(problem), self._answer(diagonal.mul_(self.factor))

    def full(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss, and the matrix ``[P, P]`` or ``[S, S]``, both times ``factor``; symmetric.

        Args:
            x, y, kwargs: as for :meth:`diag`.

        Raises:
            TypeError, ValueError: x, y or the model do not fit.
            ValueError: the matrix has more than 20,000 rows.
        """
        with self._named("full"):
            rows = self._size()
            if rows > DENSE_LIMIT:
                raise ValueError(
                    f"the matrix has {rows} rows, over the limit of {DENSE_LIMIT}; use hessian_structure='diag', or a "
                    "subnetwork"
                )
            problem, chosen = self._problem(x, y)
            operator = self._operator(problem, kwargs)
            dense = operator.to_dense() if chosen is None else _submatrix(operator, chosen)
        dense = (dense + dense.T).mul_(self.factor / 2)  # it is symmetric but for rounding
        return self._loss(problem), self._answer(dense)

    def kron(self, x: Any, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Kron]:
        """The loss, and K-FAC's factors, [B, A] of a weight and [B] of its bias, both times ``factor``.

        Args:
            x, y: as for :meth:`diag`.
            N: samples of all batches together: A counts for the share of this one.
            kwargs: ``kfac_approx``, "expand" or "reduce"; ``mc_samples`` with ``stochastic=True``.

        Raises:
            NotImplementedError: this curvature, or a parameter of the model, has no factors that laplace-torch takes.
            TypeError, ValueError: x, y, N or the model do not fit.
        """
        with self._named("kron"):
            options = self._factors_of(kwargs)
            if options is None:
                raise NotImplementedError(f"the Hessian has no Kronecker factors; {_INSTEAD}")
            if self.subnetwork_indices is not None:
                raise NotImplementedError(f"a subnetwork has no Kronecker factors; {_INSTEAD}")
            if not isinstance(N, int) or N < 1:
                raise ValueError(f"N: expected the number of samples in all batches, got {N!r}")
            problem, _ = self._problem(x, y)
            approx = kwargs.get("kfac_approx", "expand")
            operator = KFACOperator.of(problem, approx=approx, bias="separate", **options)
            pairs = _pairs(operator.factors, list(operator.param_shapes), len(y) / N)
        kron = Kron([[self._answer(f) for f in pair] for pair in pairs])
        return self._loss(problem), kron * self.factor

    def eig_lowrank(self, data_loader: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The leading eigenpairs of the union of the batches: vectors ``[P, k]``, values ``[k]``, and the loss.

        Values and loss are multiplied by ``factor``. At most :attr:`low_rank` pairs; pairs whose value is not positive
        beyond rounding are left out, because a posterior cannot use them.

        Args:
            data_loader: gives pairs (x, y), or mappings with the key ``dict_key_y``.
        """
        with self._named("eig_lowrank"):
            data = _OnDevice(data_loader, self.dict_key_y, self.params[0].device)
            problem = Problem(self.model, self.lossfunc, data, self._is_chosen(self.params))
            operator = self._operator(problem, {})
            pairs = min(self.low_rank, operator.size)
            found = eigsh(operator, pairs, which="LA")
        largest = float(found.values.abs().max())
        kept = found.values > largest * torch.finfo(found.values.dtype).eps ** 0.5
        values, vectors = found.values[kept] * self.factor, found.vectors[:, kept]
        return self._answer(vectors), self._answer(values), self._loss(problem)

    # ------------------------------------------------------------------ one batch

    def _problem(self, x: Any, y: Any) -> tuple[Problem, Tensor | None]:
        """A batch as a problem of the parameters that count, and where the subnetwork lies among them."""
        _check_batch(x, y)
        params, chosen = self.params, self.subnetwork_indices
        if chosen is not None:
            params, chosen = _touched(params, chosen)
        made = Problem(self.model, self.lossfunc, (x, y), self._is_chosen(params), cache=False)
        return made, chosen

    @staticmethod
    def _is_chosen(params: list[nn.Parameter]) -> Any:
        ids = {id(p) for p in params}
        return lambda name, p: id(p) in ids

    def _size(self) -> int:
        """P, or S."""
        if self.subnetwork_indices is not None:
            return len(self.subnetwork_indices)
        return sum(p.numel() for p in self.params)

    def _loss(self, problem: Problem) -> Tensor:
        """``factor`` times the sum of the losses, from the last pass."""
        value = torch.tensor(
            self.factor * problem.totals.value, dtype=torch.float64, device=problem.space.device
        )
        return self._answer(value)

    def _answer(self, t: Tensor) -> Tensor:
        like = self.params[0]
        return t.detach().to(like.device, like.dtype)

    @contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """Errors that say which method of which backend was called."""
        try:
            yield
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(f"{type(self).__name__}.{method}: {error}") from error


class CurvextGGN(_Curvext, GGNInterface):
    """The exact generalized Gauss-Newton matrix, which is the Fisher matrix here, or a Monte-Carlo estimate of it.

    Args:
        model: any module.
        likelihood: "classification" or "regression".
        last_layer: whether the curvature is that of ``model.last_layer`` alone.
        subnetwork_indices: int64 ``[S]``, entries of the flat parameter vector; None for all.
        dict_key_x, dict_key_y: where inputs and labels stand in a mapping.
        stochastic: whether labels are drawn from the model: anew for every call, by torch's own generator.
        num_samples: how many for each datum.

    Cost: ``diag`` one backward pass for each class, or for each drawn label; ``full`` one product for each column.
    """

    def _operator(self, problem: Problem, options: dict[str, Any]) -> CurvatureOperator:
        return (
            MCFisherOperator.of(problem, **self._drawn(options))
            if self.stochastic
            else (GGNOperator.of(problem))
        )

    def _factors_of(self, options: dict[str, Any]) -> dict[str, Any] | None:
        return {"kind": "mc", **self._drawn(options)} if self.stochastic else {"kind": "exact"}

    def _drawn(self, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "samples": options.get("mc_samples", self.num_samples),
            "seed": int(torch.randint(2**62, (), device="cpu")),
        }


class CurvextEF(_Curvext, EFInterface):
    """The empirical Fisher matrix Σ_n g_n g_nᵀ of the true labels; of a regression ½ Σ g gᵀ, g of the squared error.

    Args:
        model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y: as for :class:`CurvextGGN`.
        stochastic, num_samples: accepted so that all backends have one signature; labels are the data's.

    Cost: ``diag`` one backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Any,
        last_layer: bool = False,
        subnetwork_indices: Tensor | None = None,
        dict_key_x: str = "input_ids",
        dict_key_y: str = "labels",
        stochastic: bool = False,
        num_samples: int = 1,
    ) -> None:
        super().__init__(model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y)
        self.stochastic = stochastic
        self.num_samples = num_samples

    def _operator(self, problem: Problem, options: dict[str, Any]) -> CurvatureOperator:
        return EmpiricalFisherOperator.of(problem)

    def _factors_of(self, options: dict[str, Any]) -> dict[str, Any] | None:
        return {"kind": "empirical"}


class CurvextHessian(_Curvext):
    """The Hessian of the loss, which may be indefinite.

    Args:
        model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y: as for :class:`CurvextGGN`.

    Cost: ``full`` one product for each column; ``eig_lowrank`` some tens of products.
    """

    def _operator(self, problem: Problem, options: dict[str, Any]) -> CurvatureOperator:
        return HessianOperator.of(problem)

    def diag(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuses: the diagonal of a Hessian costs as much as the matrix."""
        raise NoClosedFormError(
            "CurvextHessian.diag: no closed form that costs less than the matrix; use hessian_structure='full' "
            "(CurvextHessian.full), estimate it with curvext.diagonal, or use CurvextGGN.diag"
        )


# ---------------------------------------------------------------------- data


class _OnDevice:
    """The batches of a loader as pairs (x, y) on the device of the model.

    Args:
        loader: gives pairs, or mappings.
        key: of the labels in a mapping.
        device: of the model.
    """

    def __init__(self, loader: Any, key: str, device: torch.device) -> None:
        self._loader, self._key, self._device = loader, key, device
        # of a loader that shuffles; they are left as found
        self.generator = getattr(loader, "generator", None)
        self.sampler = getattr(loader, "sampler", None)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in self._loader:
            x, y = (batch, batch[self._key]) if isinstance(batch, Mapping) else batch
            yield _moved(x, self._device), y.to(self._device)


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, Mapping):
        return {key: _moved(value, device) for key, value in x.items()}
    return x.to(device) if isinstance(x, Tensor) else x


def _check_batch(x: Any, y: Any) -> None:
    if not isinstance(x, (Tensor, Mapping)):
        raise TypeError(f"x: expected a tensor or a mapping, got {type(x).__name__}")
    if not isinstance(y, Tensor):
        raise TypeError(f"y: expected a tensor, got {type(y).__name__}")
    if y.ndim == 0 or len(y) == 0:
        raise ValueError(f"y: expected at least one sample, got shape {list(y.shape)}")
    if isinstance(x, Tensor) and (x.ndim == 0 or len(x) != len(y)):
        raise ValueError(
            f"x, y: expected as many samples in both, got shapes {list(x.shape)} and {list(y.shape)}"
        )


# ---------------------------------------------------------------------- subnetworks, factors


def _touched(params: list[nn.Parameter], indices: Tensor) -> tuple[list[nn.Parameter], Tensor]:
    """The parameters that contain entries of a subnetwork, and the positions of its entries among theirs."""
    sizes = torch.tensor([p.numel() for p in params], device=indices.device)
    ends = sizes.cumsum(0)
    owner = torch.bucketize(indices, ends, right=True)
    is_touched = torch.zeros(len(params), dtype=torch.bool, device=indices.device)
    is_touched[owner] = True
    skipped = (sizes * ~is_touched).cumsum(0)  # entries of parameters that are left out, so far
    return [p for p, t in zip(params, is_touched.tolist(), strict=True) if t], (
        indices - skipped[owner]
    )


def _submatrix(operator: CurvatureOperator, chosen: Tensor) -> Tensor:
    """The chosen rows and columns of a matrix, by one product for each."""
    blocks = []
    for part in chosen.split(64):
        columns = torch.zeros(
            operator.size, len(part), dtype=operator.dtype, device=operator.device
        )
        columns[part.to(columns.device), torch.arange(len(part), device=columns.device)] = 1
        blocks.append(operator.matmat(columns)[chosen.to(columns.device)])
    return torch.cat(blocks, 1)


def _pairs(factors: Mapping[str, Factors], names: list[str], share: float) -> list[list[Tensor]]:
    """Factors in laplace-torch's form: for each parameter [B, A · share], or [B]."""
    found: list[list[Tensor]] = []
    for name in names:
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight" if stem else "weight"
        if last == "bias" and weight in factors and factors[weight].a is not None:
            found.append([_matrix(weight, factors[weight].g).clone()])  # as its inputs are ones
            continue
        block = factors.get(name)
        if block is None:
            raise NotImplementedError(
                f"{name!r} has no block of its own in Kronecker factors; {_INSTEAD}"
            )
        if block.a is not None:
            found.append([_matrix(name, block.g), _matrix(name, block.a) * share])
        else:
            found.append([_matrix(name, block.g)])
    return found


def _matrix(name: str, factor: Tensor) -> Tensor:
    if factor.ndim > 2:
        raise NotImplementedError(
            f"{name!r} has a factor for each of its groups, for which laplace's Kron has no form; {_INSTEAD}"
        )
    return torch.diag(factor) if factor.ndim == 1 else factor
