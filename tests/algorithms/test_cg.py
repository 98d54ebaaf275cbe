"""Conjugate gradients against a dense solve, on matrices of prescribed spectrum."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from matrices import BlockMatrix, Matrix, vector, with_spectrum

import curvext as cx
from curvext.algorithms import conjugate_gradients


def solved(A: Matrix, b: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """The oracle: Gaussian elimination in float64."""
    dense = A.dense.double().cpu()
    return torch.linalg.solve(
        dense + damping * torch.eye(len(dense), dtype=torch.float64), b.double().cpu()
    )


SPECTRA = {
    "well conditioned": torch.linspace(1, 10, 80),
    "clustered": torch.cat(
        [torch.ones(60), 1 + 1e-7 * torch.arange(10), torch.tensor([50.0, 1e3])]
    ),
    "repeated": torch.cat([torch.full((40,), 2.0), torch.full((40,), 7.0)]),
    "ill conditioned": 10.0 ** torch.linspace(-4, 1, 70, dtype=torch.float64),
    "identity": torch.ones(30),
    "one": torch.tensor([3.0]),
    "two": torch.tensor([1e-3, 1.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_solution_is_that_of_a_dense_solve(name, damping, device):
    values = SPECTRA[name].double()
    A = with_spectrum(values, device=device)
    b = vector(len(values)).to(device)
    result = cx.cg(A, b, damping, tol=1e-11)
    assert result.converged
    condition = float((values.max() + damping) / (values.min() + damping))
    assert_close(result.x, solved(A, b, damping), tol=1e-10 * condition)


@pytest.mark.parametrize("kind", [Matrix, BlockMatrix])
def test_the_residual_is_the_true_one_and_every_product_is_counted(kind, device):
    A = with_spectrum(torch.linspace(1, 1e4, 90), torch.float32, device, kind=kind)
    b = vector(90).to(device, torch.float32)
    for options in (dict(tol=1e-3), dict(tol=1e-12, maxiter=40)):
        A.products = 0
        result = cx.cg(A, b, 0.5, **options)
        x = result.x.double().cpu()
        residual = b.double().cpu() - A.dense.double().cpu() @ x - 0.5 * x
        assert abs(result.residual_norm - float(residual.norm())) < 1e-5 * float(b.norm())
        assert result.converged == (options["tol"] == 1e-3)
        assert result.products == A.products


def test_repeated_eigenvalues_take_one_iteration_each():
    A = with_spectrum(SPECTRA["repeated"])
    assert cx.cg(A, vector(80)).iterations == 2


def test_the_condition_sets_the_pace():
    # ‖e_k‖_A ≤ 2 ((√κ − 1)/(√κ + 1))^k ‖e_0‖_A, and ‖r‖ is within √κ of it
    for condition in (10.0, 100.0):
        A = with_spectrum(torch.linspace(1, condition, 400))
        result = cx.cg(A, vector(400), tol=1e-6)
        rate = (condition**0.5 - 1) / (condition**0.5 + 1)
        bound = torch.log(torch.tensor(1e-6 / (2 * condition**0.5))) / torch.log(torch.tensor(rate))
        assert result.converged and result.iterations <= float(bound) + 1


def test_float32_goes_on_from_the_measured_residual():
    A = with_spectrum(10.0 ** torch.linspace(-3, 0, 200), torch.float32)
    b = (A.dense.double() @ vector(200)).float()
    result = cx.cg(A, b, tol=3e-6)
    assert result.converged
    assert float((b - A.dense @ result.x).norm()) <= 3.5e-6 * float(b.norm())


def test_a_far_start_costs_another_run_and_no_digits():
    A, b = with_spectrum(torch.linspace(1, 10, 60), torch.float32), vector(60).float()
    result = cx.cg(A, b, tol=1e-5, x0=1e4 * vector(60, seed=9).float())
    # the residual of the first run starts at 1e5 and cannot be trusted below 1e-2
    assert result.converged and result.products > result.iterations + 2
    assert float((b - A.dense @ result.x).norm()) <= 1.1e-5 * float(b.norm())


def test_bfloat16_products_keep_float32_vectors(device):
    A = with_spectrum(torch.linspace(1, 4, 60), torch.bfloat16, device)
    b = vector(60).to(device, torch.bfloat16)
    result = cx.cg(A, b)
    assert result.x.dtype is torch.float32 and result.converged
    assert_close(result.x, solved(A, b), tol=0.05)
    assert cx.cg(A, b.float()).x.dtype is torch.float32


def test_repeated_calls_give_repeated_bits(device):
    A = with_spectrum(SPECTRA["ill conditioned"], torch.float32, device)
    b = vector(70, 3).to(device, torch.float32)
    one, two = cx.cg(A, b, 1e-3), cx.cg(A, b, 1e-3)
    assert torch.equal(one.x, two.x) and torch.equal(one.iterations, two.iterations)


def test_the_right_hand_side_is_left_alone(device):
    A, b = with_spectrum(torch.ones(8), device=device), vector(8).to(device)
    before, start = b.clone(), torch.ones_like(b)
    cx.cg(A, b, x0=start)
    assert torch.equal(b, before) and torch.equal(start, torch.ones_like(b))


def test_an_operator_that_gives_its_argument_back_is_no_trap():
    class Same:
        shape, dtype, device = (9, 9), torch.float64, torch.device("cpu")

        def matvec(self, v):
            return v

    b = vector(9)
    assert_close(cx.cg(Same(), b, damping=1.0).x, b / 2)
    assert_close(cx.cg(cx.Identity(9), b, damping=1.0).x, b / 2)


# ---------------------------------------------------------------------- starts


def test_zero_right_hand_side_has_the_solution_zero():
    A = with_spectrum(torch.linspace(0, 1, 20))
    for x0 in (None, vector(20)):
        result = cx.cg(A, torch.zeros(20, dtype=torch.float64), x0=x0)
        assert result.converged and result.iterations == 0 and not result.x.any()


def test_a_start_at_the_solution_needs_no_iteration():
    A, b = with_spectrum(torch.linspace(1, 5, 30)), vector(30)
    exact = solved(A, b)
    result = cx.cg(A, b, x0=exact)
    assert result.iterations == 0 and result.converged and torch.equal(result.x, exact)
    near = cx.cg(A, b, x0=exact + 1e-6 * vector(30, seed=5))
    assert near.iterations < cx.cg(A, b).iterations
    assert_close(near.x, exact, tol=1e-9)


def test_no_iteration_gives_the_start_and_its_residual():
    A, b = with_spectrum(torch.linspace(1, 5, 30)), vector(30)
    nothing = cx.cg(A, b, maxiter=0)
    assert not nothing.x.any() and not nothing.converged and nothing.iterations == 0
    assert abs(nothing.residual_norm - float(b.norm())) < 1e-12
    assert torch.equal(cx.cg(A, b, maxiter=0, x0=b).x, b)


def test_maxiter_is_kept_to_and_told():
    A, b = with_spectrum(10.0 ** torch.linspace(-6, 0, 100)), vector(100)
    result = cx.cg(A, b, maxiter=7)
    assert result.iterations == 7 and not result.converged
    assert str(result).startswith("NOT converged: residual") and "raise maxiter" in str(result)


def test_a_solved_system_prints_itself():
    text = str(cx.cg(with_spectrum(torch.ones(5)), vector(5)))
    assert text.startswith("converged: residual") and "NOT" not in text


# ---------------------------------------------------------------------- negative curvature


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_negative_curvature_is_found_and_brought_back(dtype, device):
    A = with_spectrum(torch.linspace(-1, 4, 50), dtype, device)
    result = cx.cg(A, vector(50).to(device, dtype))
    d = result.negative_curvature.double().cpu()
    assert not result.converged
    assert abs(float(d.norm()) - 1) < 1e-6
    along = float(d @ A.dense.double().cpu() @ d)
    assert along <= 0 and abs(along - result.curvature) < 1e-5
    assert "NOT converged" in str(result) and "negative curvature" in str(result)


def test_the_last_iterate_before_negative_curvature_lowers_the_quadratic():
    A, b = with_spectrum(torch.linspace(-0.01, 4, 50)), vector(50)
    result = cx.cg(A, b)
    x = result.x
    assert result.negative_curvature is not None and result.iterations > 0
    assert float(x @ A.dense @ x / 2 - b @ x) < 0
    assert abs(result.residual_norm - float((b - A.dense @ x).norm())) < 1e-12


def test_at_a_maximum_the_first_direction_is_negative():
    result = cx.cg(with_spectrum(-torch.ones(6)), vector(6))
    assert result.iterations == 0 and not result.x.any()
    assert abs(result.curvature + 1) < 1e-12
    assert_close(result.negative_curvature, vector(6) / vector(6).norm())


def test_damping_takes_negative_curvature_away():
    A, b = with_spectrum(torch.linspace(-1, 4, 50)), vector(50)
    result = cx.cg(A, b, damping=1.5)
    assert result.converged and result.negative_curvature is None
    assert_close(result.x, solved(A, b, 1.5), tol=1e-9)


def test_a_direction_without_curvature_is_told_as_such():
    # exactly without: of a rotated matrix rounding decides on which side of zero the curvature lies
    A = Matrix(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).diag())
    null = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    result = cx.cg(A, null)
    assert not result.converged
    assert_close(result.negative_curvature.abs(), null.abs(), tol=1e-7)
    assert abs(result.curvature) < 1e-15


def test_a_direction_whose_curvature_is_only_rounding_ends_the_run():
    # the third direction is the null space, found to rounding: its curvature is some 1e-17, of either sign
    A = Matrix(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64).diag())
    result = cx.cg(A, torch.ones(3, dtype=torch.float64))
    assert not result.converged and result.iterations == 2
    null = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert_close(result.negative_curvature, null, tol=1e-7)
    assert abs(result.curvature) < 1e-15
    residual = torch.ones(3, dtype=torch.float64) - A.dense @ result.x
    assert abs(result.residual_norm - float(residual.norm())) < 1e-12


def test_zero_matrix_has_no_curvature_anywhere():
    result = cx.cg(with_spectrum(torch.zeros(5)), vector(5))
    assert result.negative_curvature is not None and result.curvature == 0 and not result.x.any()
    assert_close(cx.cg(with_spectrum(torch.zeros(5)), vector(5), damping=2.0).x, vector(5) / 2)


def test_a_singular_system_is_solved_where_it_can_be():
    A = with_spectrum(torch.cat([torch.zeros(20), torch.linspace(1, 3, 20)]))
    b = A.dense @ vector(40)
    result = cx.cg(A, b)
    assert result.converged and result.negative_curvature is None
    assert_close(result.x, torch.linalg.pinv(A.dense, rtol=1e-10) @ b, tol=1e-9)


# ---------------------------------------------------------------------- blocks


@pytest.mark.parametrize("kind", [Matrix, BlockMatrix])
def test_a_block_gives_what_its_columns_give_alone(kind, device):
    A = with_spectrum(torch.linspace(0.1, 10, 60), device=device, kind=kind)
    B = vector(60, 4).to(device)
    B[:, 1] = 0
    B[:, 2] = A.dense @ B[:, 2] * 1e3  # converges at another time
    B[:, 3] = torch.linalg.eigh(A.dense).eigenvectors[:, 7]  # in one iteration
    block = cx.cg(A, B, 0.01)
    assert block.x.shape == B.shape and block.converged.all()
    for k in range(4):
        alone = cx.cg(A, B[:, k], 0.01)
        assert_close(block.x[:, k], alone.x, tol=1e-9)
        assert abs(int(block.iterations[k]) - alone.iterations) <= 1
    assert block.iterations[1] == 0 and block.iterations[3] < 5 < block.iterations[0]
    assert block.negative_curvature is None


def test_columns_that_have_converged_take_no_more_products():
    A = with_spectrum(torch.linspace(1, 100, 60), kind=BlockMatrix)
    B = vector(60, 2)
    B[:, 0] = torch.linalg.eigh(A.dense).eigenvectors[:, 0]
    result = cx.cg(A, B)
    assert result.products == A.products
    assert A.products <= int(result.iterations.sum()) + 4


def test_one_column_of_negative_curvature_leaves_the_others_to_converge():
    A = with_spectrum(torch.linspace(-1, 4, 50))
    vectors = torch.linalg.eigh(A.dense).eigenvectors
    B = torch.stack([vectors[:, 0], vectors[:, 40]], 1)  # eigenvalues −1 and 3.1
    result = cx.cg(A, B)
    assert result.converged.tolist() == [False, True]
    assert_close(result.negative_curvature[:, 0].abs(), vectors[:, 0].abs(), tol=1e-6)
    assert not result.negative_curvature[:, 1].any()
    assert result.curvature[1].isnan() and abs(result.curvature[0] + 1) < 1e-9
    lines = str(result).splitlines()
    assert lines[0].startswith("2 systems")
    assert "NOT converged" in lines[1] and "NOT" not in lines[2]


def test_no_columns_are_solved_at_once():
    result = cx.cg(with_spectrum(torch.ones(5)), torch.zeros(5, 0, dtype=torch.float64))
    assert result.x.shape == (5, 0) and result.products == 0


@pytest.mark.parametrize("every", [3, 8])
def test_how_often_the_host_looks_changes_nothing_but_products(every, monkeypatch):
    A = with_spectrum(torch.linspace(-1, 4, 50))
    vectors = torch.linalg.eigh(A.dense).eigenvectors
    B = torch.stack([vectors[:, 20:].sum(1), vectors[:, 0], vectors[:, 40], vector(50)], 1)
    look_every = conjugate_gradients.LOOK_EVERY
    for maxiter in (1, 11, None):
        monkeypatch.setitem(look_every, "cpu", 1)
        often = cx.cg(A, B, maxiter=maxiter)
        monkeypatch.setitem(look_every, "cpu", every)
        seldom = cx.cg(A, B, maxiter=maxiter)
        assert often.iterations.tolist() == seldom.iterations.tolist()
        assert often.converged.tolist() == seldom.converged.tolist()
        assert_close(seldom.x, often.x)
        assert_close(seldom.negative_curvature, often.negative_curvature)
        assert_close(seldom.curvature.nan_to_num(), often.curvature.nan_to_num())


# ---------------------------------------------------------------------- preconditioners


def _scaled() -> tuple[Matrix, torch.Tensor]:
    """A matrix that is badly scaled, and so a case for its diagonal."""
    A = with_spectrum(torch.linspace(1, 2, 120))
    scale = 10.0 ** torch.linspace(0, 3, 120, dtype=torch.float64)
    return Matrix(A.dense * scale * scale[:, None]), vector(120)


def test_a_preconditioner_saves_iterations_and_keeps_the_answer():
    A, b = _scaled()
    diagonal = A.dense.diagonal().clone()
    plain = cx.cg(A, b, tol=1e-10)
    forms = [diagonal, Matrix(torch.diag(1 / diagonal)), lambda r: r / diagonal]
    for preconditioner in forms:
        result = cx.cg(A, b, tol=1e-10, preconditioner=preconditioner)
        assert result.converged and result.iterations < plain.iterations / 5
        assert_close(result.x, solved(A, b), tol=1e-8)


def test_the_exact_inverse_takes_one_iteration():
    A = with_spectrum(torch.linspace(1, 1e3, 40))
    inverse = Matrix(torch.linalg.inv(A.dense))
    assert cx.cg(A, vector(40), tol=1e-9, preconditioner=inverse).iterations == 1


def test_a_preconditioner_serves_a_block():
    A, _ = _scaled()
    B = vector(120, 3)
    result = cx.cg(A, B, tol=1e-10, preconditioner=A.dense.diagonal())
    assert result.converged.all()
    assert_close(result.x, torch.linalg.solve(A.dense, B), tol=1e-8)


def test_a_preconditioner_does_not_hide_negative_curvature():
    A = with_spectrum(torch.linspace(-1, 4, 50))
    result = cx.cg(A, vector(50), preconditioner=torch.linspace(1, 2, 50, dtype=torch.float64))
    d = result.negative_curvature
    assert float(d @ A.dense @ d) <= 0


# ---------------------------------------------------------------------- bad calls


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(b=torch.zeros(4, dtype=torch.float64)), ValueError, r"b: expected shape \[5\] or \[5, K\], got \[4\]"),
        (dict(b=torch.zeros(5, 1, 1, dtype=torch.float64)), ValueError, "b: expected shape"),
        (dict(b=torch.ones(5)), TypeError, "b: expected dtype torch.float64, got torch.float32"),
        (dict(b=[1.0] * 5), TypeError, "b: expected a tensor, got list"),
        (dict(b=torch.full((5,), torch.nan, dtype=torch.float64)), ValueError, "b: contains nan or inf"),
        (dict(b=torch.ones(5, dtype=torch.float64, device="meta")), ValueError, "b: expected device cpu, got meta"),
        (dict(x0=torch.ones(5, 1, dtype=torch.float64)), ValueError, r"x0: expected shape \[5\], got \[5, 1\]"),
        (dict(x0=torch.full((5,), torch.inf, dtype=torch.float64)), ValueError, "x0: contains nan"),
        (dict(damping=-1.0), ValueError, "damping: expected a finite λ >= 0 .*, got -1.0"),
        (dict(damping=float("nan")), ValueError, "damping"),
        (dict(tol=-1e-3), ValueError, "tol: expected"),
        (dict(maxiter=-1), ValueError, "maxiter: expected an integer of at least 0, got -1"),
        (dict(maxiter="3"), ValueError, "cg: maxiter: expected an integer of at least 0, got '3'"),
        (dict(maxiter=2.5), ValueError, "cg: maxiter: expected an integer of at least 0, got 2.5"),
        (dict(damping="a"), TypeError, "cg: damping: expected a finite λ >= 0 .*, got 'a'"),
        (dict(damping="1"), TypeError, "cg: damping: expected a finite λ >= 0 .*, got '1'"),
        (dict(tol=[0.1]), TypeError, "cg: tol: expected a finite number >= 0, got"),
        (dict(b=torch.ones(5, dtype=torch.float64).to_sparse()), TypeError, "b: expected a dense tensor, got .*sparse"),
        (dict(preconditioner=torch.ones(4)), ValueError, r"preconditioner: expected a diagonal \[5\]"),
        (dict(preconditioner=torch.zeros(5)), ValueError, "preconditioner: a diagonal must be positive"),
        (dict(preconditioner=torch.ones(5).to_sparse()), TypeError, "preconditioner: expected a dense tensor"),
        (dict(preconditioner=3), TypeError, "preconditioner: expected a diagonal"),
        (dict(preconditioner=lambda r: r[:2]), ValueError, r"preconditioner: returned \[2\]"),
        (dict(preconditioner=lambda r: -r), ValueError, "preconditioner: not positive definite"),
        (dict(A=object()), TypeError, "cg: A must have shape, dtype, device and matvec; object has no"),
        (dict(A=Matrix(torch.ones(5, 4))), ValueError, r"A must be square, got shape \(5, 4\)"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_is_wrong(change, error, words):
    call = {"A": with_spectrum(torch.ones(5)), "b": vector(5), **change}
    with pytest.raises(error, match=words):
        cx.cg(**call)


def test_nan_from_a_product_is_no_convergence():
    A = with_spectrum(torch.ones(5))
    A.dense[0, 0] = torch.nan
    result = cx.cg(A, vector(5))
    assert not result.converged and result.iterations == 1


def test_nan_on_cuda_comes_back_visibly():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    b = torch.full((5,), torch.nan, dtype=torch.float64, device="cuda")
    result = cx.cg(with_spectrum(torch.ones(5), device="cuda"), b)
    assert not result.converged


def test_named_vectors_go_in_and_come_out():
    model = torch.nn.Linear(3, 2).double()
    data = (torch.randn(6, 3).double(), torch.randint(2, (6,)))
    G = cx.GGNOperator(model, torch.nn.CrossEntropyLoss(), data)
    b = torch.randn(8).double()
    floor = {name: torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    flat = cx.cg(G, b, damping=0.1, preconditioner=G.flatten(floor), tol=1e-10)
    named = cx.cg(G, G.split(b), damping=0.1, x0=G.split(0 * b), preconditioner=floor, tol=1e-10)
    assert set(named.x) == {"weight", "bias"}
    torch.testing.assert_close(G.flatten(named.x), flat.x, rtol=0, atol=1e-9)
    assert named.converged and str(named).startswith("converged")
    bent = cx.cg(-1 * G, G.split(b))
    assert bent.negative_curvature["weight"].shape == (2, 3)
    with pytest.raises(ValueError, match="the names do not fit: missing"):
        cx.cg(G, {"weight": b})


def test_named_vectors_need_an_operator_that_knows_the_names():
    class Plain:
        shape, dtype, device = (2, 2), torch.float64, torch.device("cpu")

        def matvec(self, v):
            return v

    with pytest.raises(TypeError, match="cg: b: expected a tensor, as Plain has no flatten"):
        cx.cg(Plain(), {"weight": torch.ones(2).double()})
