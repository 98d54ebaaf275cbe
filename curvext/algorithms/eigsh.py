"""Some eigenpairs of a symmetric operator, by thick-restart Lanczos.

One file because search, restart and locking work on one basis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from curvext.algorithms import draws
from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.lanczos import BREAKDOWN, multiply
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.together import together
from curvext.arguments import as_integer, as_number, as_seed, check_dense
from curvext.progress import Progress
from curvext.results import EigenResult

#: up to this many rows the matrix is formed by P products and decomposed
DENSE_ROWS = 64
#: up to this many rows it is formed when P products did not suffice: at most 128 MiB
FORMED_ROWS = 4096
#: columns of the basis that are rotated at a time on a restart
_PANEL = 1 << 18


@together
def eigsh(
    A: SymmetricOperator,
    k: int,
    which: str = "LM",
    seed: int = 0,
    tol: float | None = None,
    maxiter: int | None = None,
    ncv: int | None = None,
    v0: Tensor | None = None,
    verify: bool = True,
    progress: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> EigenResult:
    """``k`` eigenpairs of a symmetric operator from products alone, at the ends of its spectrum.

    A Krylov space from one vector holds one vector of each eigenspace, so Lanczos alone finds a
    repeated eigenvalue once. When ``k`` pairs have converged they are therefore set aside and the
    search goes on from a new random vector orthogonal to them, until what that finds lies behind the
    ``k``, error included. That is evidence and no proof; ``verify=False`` leaves it out.

    Where P ≤ 64 or P ≤ 2 ncv, and ``maxiter`` allows it, the matrix is formed by P products and
    decomposed: exact, and no dearer. So it is for P ≤ 4096 where P products have not been enough.

    Args:
        A: any curvext operator, or an object with ``shape`` (P, P), ``dtype``, ``device`` and ``matvec``.
        k: how many, 1 to P.
        which: "LM" the largest in magnitude, "LA" the largest, "SA" the smallest (most negative), "BE"
            half from each end, one more from the top where k is odd. Those nearest zero are inside the
            spectrum of an indefinite matrix, where Lanczos does not resolve them.
        seed: of the random vectors, which are the same on every device and for every sharding.
        tol: a pair has converged when ‖A v − λ v‖ ≤ tol · max|λ|, the largest that was met;
            None for eps^⅔ of A's dtype (4e-11 in float64, 2e-5 in float32, 4e-2 in bfloat16).
        maxiter: products at most, save one more for each pair to measure its residual; None for 100 ncv.
        ncv: vectors held, k + 2 at least; None for max(2 k + 1, 20).
        v0: start from this ``[P]`` and not from a random vector, as from an eigenvector of a matrix nearby.
        verify: look for missed copies of repeated eigenvalues.
        progress: show a bar (needs tqdm).
        checkpoint: a path. A state is written there at each restart, and an interrupted call that is made again with
            the same arguments goes on from it.

    Returns:
        EigenResult(values [k] ascending, vectors [P, k], residuals, converged, products), in A's dtype, in
        float32 for a narrower one. The residuals are measured, and decide ``converged``. Of an A with ``inner`` and
        ``entries`` the vectors are ``[P_r, k]``, the entries of this process.

    Raises:
        TypeError: A lacks an attribute; ``v0`` has another dtype.
        ValueError: an argument is out of range, or the state at ``checkpoint`` is of another run or damaged.
        OSError: that state cannot be read or written.

    Cost: 20 to a few hundred products; each also reads the vectors held twice. Memory: ncv + 3 vectors, or 3 k.
    On CUDA one synchronisation for each restart. Where a Krylov space ends inside of a cycle, the CPU
    notes it at once, CUDA at the end of the cycle, and the products until then are wasted.

    Source: Wu & Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss()
        >>> x = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> cx.eigsh(cx.GGNOperator(model, loss, (x, torch.zeros(3, 1))), 2, "LA").values
        tensor([2.6667, 6.0000])
    """
    products = Products(A, "eigsh", like=v0 if isinstance(v0, Tensor) else None, sharded=True)
    if v0 is not None:
        check_dense("eigsh: v0", v0)
        v0 = products.local(v0)
    request = _checked(products, k, which, tol, maxiter, ncv, v0, seed)
    state = Checkpoint(
        checkpoint,
        products,
        k=request.k,
        which=which,
        seed=request.seed,
        tol=request.tol,
        maxiter=request.maxiter,
        ncv=request.ncv,
        v0=v0,
        verify=bool(verify),
    )
    few = products.size <= max(DENSE_ROWS, 2 * request.ncv)
    if few and (maxiter is None or request.maxiter >= products.size):
        return _dense(products, request)
    with Progress(progress, request.maxiter, "eigsh") as bar:
        search = _Search(products, request, verify)
        if not search.restore(state):
            search.start(v0)
        if search.run(state, bar):
            return _result(products, request, search)
    return _dense(products, request)


@dataclass(frozen=True)
class _Request:
    k: int
    which: str
    tol: float
    maxiter: int
    ncv: int
    seed: int

    def wanted(self, values: Tensor, extra: int = 0) -> Tensor:
        """Which of ``values``, ascending, are asked for, and the next ``extra``: ascending indices."""
        k, n = self.k + extra, len(values)
        if self.which == "LA":
            return torch.arange(n - k, n, device="cpu")
        if self.which == "SA":
            return torch.arange(k, device="cpu")
        if self.which == "BE":
            return torch.cat(
                [
                    torch.arange(k // 2, device="cpu"),
                    torch.arange(n - (k + 1) // 2, n, device="cpu"),
                ]
            )
        return values.abs().sort(stable=True).indices[n - k :].sort().values

    def differ(self, one: Tensor, other: Tensor, slack: float) -> bool:
        """Whether two sets of k values are not equally extreme; +λ and −λ are where magnitude counts."""
        if self.which == "LM":
            one, other = one.abs().sort().values, other.abs().sort().values
        return bool(((one - other).abs() > slack).any())


def _checked(
    products: Products,
    k: int,
    which: str,
    tol: float | None,
    maxiter: int | None,
    ncv: int | None,
    v0: Tensor | None,
    seed: int,
) -> _Request:
    size = products.size
    k = as_integer("eigsh: k", k, 1, size, f"A is {size} x {size}")
    if which not in ("LM", "LA", "SA", "BE"):
        raise ValueError(
            f"eigsh: which: expected 'LM', 'LA', 'SA' or 'BE', got {which!r}; eigenvalues nearest "
            "zero are inside the spectrum, where Lanczos on products of A does not resolve them"
        )
    if tol is None:
        tol = torch.finfo(products.dtype).eps ** (2 / 3)
    tol = as_number("eigsh: tol", tol, "a number >= 0", lambda value: value >= 0)
    if ncv is None:
        ncv = max(2 * k + 1, 20)
    ncv = as_integer("eigsh: ncv", ncv, k + 2, why="k + 2 vectors")
    if maxiter is None:
        maxiter = 100 * ncv
    maxiter = as_integer("eigsh: maxiter", maxiter, k + 1, why="more products than k")
    if v0 is not None:
        if v0.shape != (products.vectors.local,):
            wanted = products.vectors.local
            raise ValueError(f"eigsh: v0: expected shape [{wanted}], got {list(v0.shape)}")
        if v0.dtype not in (products.dtype, products.working):
            raise TypeError(f"eigsh: v0: expected dtype {products.dtype}, got {v0.dtype}")
        if v0.device != products.device:
            raise ValueError(f"eigsh: v0: expected device {products.device}, got {v0.device}")
    products.agree()
    vectors = products.vectors
    if v0 is not None and not (vectors.all_finite(v0) and vectors.any(v0 != 0)):
        raise ValueError("eigsh: v0: expected finite entries, not all zero")
    return _Request(k, which, tol, maxiter, ncv, as_seed("eigsh: seed", seed))


def _dense(products: Products, request: _Request) -> EigenResult:
    """The pairs asked for out of all those of the matrix, formed by P products."""
    dense = products.dense()
    values, vectors = torch.linalg.eigh(dense)
    slack = request.tol * values.abs().max()
    at = request.wanted(values.cpu()).to(values.device)
    values, vectors = values[at].to(products.working), vectors[:, at].to(products.working)
    residuals = (dense @ vectors.double() - vectors.double() * values).norm(dim=0)
    return EigenResult(
        values,
        products.vectors.mine(vectors),
        residuals.to(products.working),
        bool((residuals <= slack).all()),
        products.count,
    )


class _Search:
    """A basis Q of at most ncv rows, one vector ahead, and T = Q A Qᵀ.

    After a restart T is an arrow: the kept Ritz values on the diagonal, their couplings with the vector
    ahead in one row and column; what is added then is tridiagonal.
    """

    def __init__(self, products: Products, request: _Request, verify: bool) -> None:
        m = request.ncv
        self.products = products
        self.request = request
        self.vectors = products.vectors
        #: random vectors drawn so far
        self.drawn = 0
        self.basis = torch.empty(
            m + 1, self.vectors.local, dtype=products.working, device=products.device
        )
        self.scratch = torch.empty_like(self.basis[:1])
        self.projected = torch.zeros(m + 1, m + 1, dtype=torch.float64, device=products.device)
        #: rows of the basis whose products are known
        self.rows = 0
        #: max of |α| + β, the scale against which β counts as rounding
        self.reach = self.projected.new_zeros(())
        #: the largest |Ritz value| met
        self.scale = 0.0
        #: whether copies of repeated eigenvalues are still to be looked for
        self.verify = verify
        #: the values that were set aside, while others are looked for
        self.aside: Tensor | None = None

    def save(self, state: Checkpoint) -> None:
        """Writes what is needed to go on after a restart."""
        if not (state and bool(self.projected.isfinite().all())):
            return
        numbers = {
            "projected": self.projected,
            "rows": self.rows,
            "drawn": self.drawn,
            "reach": self.reach,
            "scale": torch.tensor(self.scale, dtype=torch.float64, device="cpu"),
            "verify": self.verify,
            "aside": [] if self.aside is None else self.aside,
        }
        state.save(numbers, {"basis": self.basis[: self.rows + 1]})

    def restore(self, state: Checkpoint) -> bool:
        """Takes the state of a checkpoint, if it has one."""
        basis, numbers = state.rows("basis"), state.numbers
        if basis is None:
            return False
        self.basis[: len(basis)] = basis
        self.projected.copy_(numbers["projected"])
        self.reach = numbers["reach"].to(self.reach)
        self.rows, self.drawn = int(numbers["rows"]), int(numbers["drawn"])
        self.scale, self.verify = float(numbers["scale"]), bool(numbers["verify"])
        self.aside = numbers["aside"] if len(numbers["aside"]) else None
        return True

    def start(self, v0: Tensor | None) -> None:
        """Writes the first vector into row 0."""
        if v0 is None:
            self.fresh()
        else:
            self.basis[0] = v0
            self.basis[0] /= self._orthogonalised(0).to(self.basis.dtype)

    def fresh(self) -> None:
        """Puts a random vector, orthogonal to all rows, ahead; nothing couples it to them."""
        ahead = self.basis[self.rows]
        numbers = range(self.drawn, self.drawn + 1)
        ahead.copy_(draws.normals(self.vectors, self.request.seed, numbers)[0])
        self.drawn += 1
        for _ in range(2):
            ahead /= self._orthogonalised(self.rows).to(ahead.dtype)
        self.projected[self.rows, : self.rows] = 0
        self.projected[: self.rows, self.rows] = 0

    def _orthogonalised(self, row: int) -> Tensor:
        """Makes a row of the basis orthogonal to those before it; its length then."""
        return self.vectors.orthogonalise(self.basis, row, self.scratch)

    def fill(self, limit: int, note: Callable[[], None]) -> None:
        """Products until the basis is full or ``limit`` products are done in all."""
        while self.rows < self.request.ncv and self.products.count < limit:
            ended = self._extend(limit, note)
            if ended is not None:
                self.rows = ended
                self.fresh()

    def _extend(self, limit: int, note: Callable[[], None]) -> int | None:
        """Lanczos steps; the number of rows after which the Krylov space ended, or None.

        Where the residual is only rounding, zeros take its place and all that follows is zero: on CUDA
        it is read once, at the end.
        """
        basis, T = self.basis, self.projected
        eps = torch.finfo(basis.dtype).eps
        first = self.rows
        last = min(self.request.ncv, first + limit - self.products.count)
        for j in range(first, last):
            row = basis[j : j + 1]
            ahead = multiply(self.products, row)
            if j == first:  # an arrow: coupled with all rows, by known amounts and rounding
                self.vectors.remove(ahead[0], basis[:j])
            else:
                ahead.addcmul_(basis[j - 1], T[j, j - 1].to(ahead.dtype), value=-1)
            alpha = self.vectors.dots([(row, ahead)], self.scratch)[0][0]
            basis[j + 1] = ahead[0].addcmul_(row[0], alpha.to(ahead.dtype), value=-1)
            beta = self._orthogonalised(j + 1)
            self.reach = torch.maximum(self.reach, alpha.abs() + beta)
            there = beta > BREAKDOWN * eps * self.reach
            basis[j + 1] *= torch.where(there, 1 / beta, 0.0).to(basis.dtype)
            T[j, j] = alpha
            T[j, j + 1] = T[j + 1, j] = beta * there
            note()
            if basis.device.type == "cpu" and not there:
                last = j + 1
                break
        self.rows = last
        zeros = (T.diagonal(1)[first:last] == 0).nonzero()
        return first + int(zeros[0]) + 1 if len(zeros) else None

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, ascending, their vectors in terms of the rows, and their couplings to the vector ahead."""
        m = self.rows
        T = self.projected.cpu()
        values, rotation = torch.linalg.eigh(T[:m, :m])
        self.scale = max(self.scale, float(values.abs().max()))
        return values, rotation, T[m, :m] @ rotation

    def keep(self, values: Tensor, rotation: Tensor, couplings: Tensor) -> None:
        """Restarts with some Ritz vectors, the columns of ``rotation``, and the vector ahead."""
        m, count = rotation.shape
        turn = rotation.T.to(self.basis)
        for panel in self.basis.split(_PANEL, dim=1):
            panel[:count] = turn @ panel[:m]
        if count < m:
            self.basis[count] = self.basis[m]
        T = torch.zeros_like(self.projected, device="cpu")
        T[:count, :count] = torch.diag(values)
        T[count, :count] = couplings
        T[:count, count] = couplings
        self.projected.copy_(T)
        self.rows = count

    def run(self, state: Checkpoint, bar: Progress) -> bool:
        """Cycles until all pairs asked for have converged and no other is found beyond them.

        Returns:
            False where P products have not been enough and P more give all eigenpairs.
        """
        request, products = self.request, self.products

        def note() -> None:
            bar.to(products.count)

        while True:
            self.fill(request.maxiter, note)
            values, rotation, couplings = self.ritz()
            at, error = request.wanted(values), couplings.abs()
            slack = max(request.tol, 4 * torch.finfo(products.dtype).eps) * self.scale
            # half, since what is measured in the end is this and rounding
            converged = bool((error[at] <= slack / 2).all())
            if converged and self.verify and self.aside is not None:
                again = not request.differ(values[at], self.aside, 2 * slack)
                self.verify = not (again and self._behind(values, error, at, slack))
                if again and self.verify:
                    converged = False  # the others are not known well enough yet
            if products.count >= request.maxiter or (converged and not self.verify):
                self.keep(values[at], rotation[:, at], couplings[at])
                return True
            size = products.size
            if size <= min(FORMED_ROWS, products.count, request.maxiter - products.count):
                return False
            if converged:
                self.aside = values[at]
                self.keep(self.aside, rotation[:, at], torch.zeros_like(self.aside))
                self.fresh()
            else:
                more = request.wanted(values, extra=(self.rows - request.k) // 2)
                self.keep(values[more], rotation[:, more], couplings[more])
            self.save(state)

    def _behind(self, values: Tensor, error: Tensor, at: Tensor, slack: float) -> bool:
        """Whether no other Ritz value would be among those asked for if it were off by its error."""
        others = torch.ones(len(values), dtype=torch.bool, device="cpu")
        others[at] = False
        rest, found = others.nonzero()[:, 0], values[at]
        for i, sign in ((rest[0], -1), (rest[-1], 1)):
            moved = torch.cat([found, (values[i] + sign * error[i]).view(1)]).sort().values
            best = moved[self.request.wanted(moved)]
            if error[i] > slack and self.request.differ(best, found, 2 * slack):
                return False
        return True


def _result(products: Products, request: _Request, search: _Search) -> EigenResult:
    """The pairs of a search, reorthonormalised and rotated once more, with measured residuals."""
    rows = search.basis[: search.rows].clone()
    del search.basis
    images = multiply(products, rows)
    factor = torch.linalg.cholesky(products.vectors.inner(rows.T, rows.T))
    unit = torch.linalg.inv(factor)
    inside = unit @ products.vectors.inner(rows.T, images.T) @ unit.T
    values, turn = torch.linalg.eigh((inside + inside.T) / 2)
    turn = (turn.T @ unit).to(rows.dtype)
    rows, images = turn @ rows, turn @ images
    images.addcmul_(rows, values.to(rows.dtype).unsqueeze(1), value=-1)
    residuals = products.vectors.dots([(images, images)])[0].sqrt()
    scale = max(search.scale, float(values.abs().max()))
    return EigenResult(
        values.to(rows.dtype),
        rows.T,
        residuals.to(rows.dtype),
        bool((residuals <= request.tol * scale).all()),
        products.count,
    )
