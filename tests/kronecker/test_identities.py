"""What is true of the factored operators whatever the model, over the grid of networks."""

from __future__ import annotations

import pytest
import torch
from cases import NETWORKS
from compare import assert_close
from models import CASES
from problems import loss_and_target, pose
from torch import nn

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["exact", "mc", "empirical"]
#: with ReLU some positions are reached by no gradient
FAST = [
    "mlp_inplace",
    "conv2d_groups",
    "transposed2d",
    "embedding",
    "tied",
    "encoder_layer",
    "lstm",
    "raw_parameters",
    "weight_norm",
    "sliced_parameter",
    "sequence_first_inside",
    "unused",
    "batch_norm_2d",
]


def true_matrix(risk: cx.EmpiricalRisk, kind: str) -> cx.LinearOperator:
    return {"exact": risk.fisher, "mc": risk.mc_fisher, "empirical": risk.empirical_fisher}[kind]()


def blocks_of(dense: torch.Tensor, K) -> torch.Tensor:
    """``dense`` with zeros between the blocks of K."""
    cut = torch.zeros_like(dense)
    for block in K.blocks.values():
        here = K._indices(block).unsqueeze(1)
        cut[here, here.T] = dense[here, here.T]
    return cut


def eigenvectors(block) -> torch.Tensor:
    """Its eigenvectors as rows, in the order of Λ."""
    spectral = block.spectral.completed()
    units = torch.eye(block.size, dtype=torch.float64)
    return block.form.vectors(spectral.back(units.view(-1, *spectral.values.shape)))


@pytest.mark.parametrize("name", CASES)
def test_eigenvalue_corrected_factors_are_the_diagonal_of_the_true_blocks_in_their_basis(name):
    p = pose(name)
    data = p.data if CASES[name].coupled else p.cut(2, 3)
    risk = cx.EmpiricalRisk(p.model, p.loss, data)
    kind = KINDS[len(name) % 3]  # each kind on a third of the grid; all on some below
    M = true_matrix(risk, kind).to_dense()
    for basis in ("kfac", "shampoo"):
        E = risk.ekfac(kind=kind, basis=basis)
        assert_close(E.trace(), M.trace(), "trace", scale=float(M.abs().max()))
        for block in E.blocks.values():
            if block.structure == "kronecker":
                here = E._indices(block)
                Q = eigenvectors(block)
                expected = ((Q @ M[here][:, here]) * Q).sum(1)
                assert_close(
                    block.spectral.completed().values.flatten(),
                    expected,
                    repr(block),
                    scale=float(M.abs().max()),
                )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAST)
def test_every_operator_is_symmetric_semidefinite_and_has_the_trace_it_should(name, kind):
    p = pose(name)
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(1, 4))
    M = true_matrix(risk, kind)
    true = M.to_dense()
    K, E = risk.kfac(kind=kind), risk.ekfac(kind=kind)
    S, root = risk.shampoo(kind=kind), risk.shampoo(kind=kind, form="root")
    for B in (K, E, S, root):
        dense = B.to_dense()
        assert torch.equal(dense, dense.T)
        assert float(torch.linalg.eigvalsh(dense)[0]) > -1e-12 * float(dense.abs().max())
        assert torch.equal(blocks_of(dense, B), dense)
    for B in (E, S):
        assert_close(B.trace(), M.trace(), type(B).__name__)
    cut = blocks_of(true, K)
    far, near = (float((B.to_dense() - cut).norm()) for B in (K, E))
    assert near <= far + 1e-10 * float(cut.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAST)
def test_blocks_that_are_no_factors_are_those_of_the_matrix_itself(name, kind):
    p = pose(name)
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(3, 2))
    M = true_matrix(risk, kind).to_dense()
    K = risk.kfac(kind=kind)
    for block in K.blocks.values():
        if block.structure != "kronecker":
            here = K._indices(block)
            assert_close(
                block.to_dense(), M[here][:, here], repr(block), scale=float(M.abs().max())
            )


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("name", NETWORKS)
def test_neither_the_batches_nor_their_order_matter(name, approx):
    model, x = NETWORKS[name]()
    loss, y = loss_and_target("ce_weight", "mean", model(x))
    cut = [(x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:])]
    whole = cx.KFACOperator(model, loss, (x, y), kind="exact", approx=approx).to_dense()
    for data in (cut, cut[::-1]):
        assert_close(
            cx.KFACOperator(model, loss, data, kind="exact", approx=approx).to_dense(), whole
        )


def test_how_a_loader_pads_does_not_matter():
    """An embedding's padding row, and positions masked out of the loss, are no positions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    loss = nn.CrossEntropyLoss()
    tokens, labels = torch.randint(1, 7, (4, 3)), torch.randint(3, (4, 3))

    def flat(m, batch):
        return m(batch[0]).transpose(1, 2)

    def answers(extra):
        x = torch.cat([tokens, torch.zeros(4, extra, dtype=torch.long)], 1)
        y = torch.cat([labels, torch.full((4, extra), -100)], 1)
        risk = cx.EmpiricalRisk(model, loss, (x, y), forward=flat)
        return [
            B.to_dense()
            for kind in ("exact", "empirical")
            for B in (
                risk.kfac(kind=kind),
                risk.kfac(kind=kind, approx="reduce"),
                risk.ekfac(kind=kind),
                risk.shampoo(kind=kind),
            )
        ]

    for few, many in zip(answers(0), answers(5), strict=True):
        assert_close(many, few)
    counted = cx.EmpiricalRisk(
        model,
        loss,
        (
            torch.cat([tokens, torch.full((4, 3), 5)], 1),
            torch.cat([labels, torch.full((4, 3), -100)], 1),
        ),
        forward=flat,
    )
    assert not torch.allclose(counted.kfac(kind="exact", positions="all").to_dense(), answers(0)[0])


@pytest.mark.parametrize("name", ["mlp", "on_sequence"])
def test_one_datum_at_one_position_is_exact(name):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.tensor([1])
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    E = risk.empirical_fisher().to_dense()
    for B in (
        risk.kfac(kind="empirical"),
        risk.ekfac(kind="empirical"),
        risk.shampoo(kind="empirical"),
        risk.shampoo(kind="empirical", form="root"),
    ):
        assert_close(B.to_dense(), blocks_of(E, B), type(B).__name__)
    G = risk.ggn().to_dense()
    for B in (risk.kfac(kind="exact"), risk.ekfac(kind="exact"), risk.shampoo(kind="exact")):
        assert_close(B.to_dense(), blocks_of(G, B), type(B).__name__)


def test_a_linear_network_with_squared_error_is_exact():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
    K, G = risk.kfac(kind="exact"), risk.ggn().to_dense()
    assert_close(K.to_dense(), blocks_of(G, K))


def test_the_last_layer_with_squared_error_is_exact():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), [(x[:2], y[:2]), (x[2:], y[2:])], params="2.*")
    K = risk.kfac(kind="exact")
    assert_close(K.to_dense(), risk.ggn().to_dense())


def test_a_linear_network_on_independent_positions_is_exact_by_expand():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 7, 4, dtype=torch.float64), torch.randn(6, 7, 3, dtype=torch.float64)
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (x, y))
    K, G = risk.kfac(kind="exact", approx="expand"), risk.ggn().to_dense()
    assert_close(K.to_dense(), blocks_of(G, K))


def test_a_linear_network_whose_positions_are_averaged_is_exact_by_reduce():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(self.a(x)).mean(1)

    model = Averaged().double()
    x, y = torch.randn(6, 7, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (x, y))
    K, G = risk.kfac(kind="exact", approx="reduce"), risk.ggn().to_dense()
    assert_close(K.to_dense(), blocks_of(G, K))
    assert not torch.allclose(risk.kfac(kind="exact").to_dense(), K.to_dense())


def test_a_long_side_keeps_its_diagonal_and_a_large_exact_block_its_own():
    p = pose("encoder_layer")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3))
    full, cut = risk.kfac(kind="exact"), risk.kfac(kind="exact", max_dim=5)
    M = risk.fisher()
    for name, factors in cut.factors.items():
        whole = full.factors[name]
        if factors.a is None:
            if whole.g.shape[0] > 5:
                assert_close(factors.g, whole.g.diagonal(), name)
            continue
        for side, wanted in ((factors.a, whole.a), (factors.g, whole.g)):
            expected = wanted if len(wanted) <= 5 else wanted.diagonal()
            assert_close(side, expected, name)
    assert "diagonal" in cut.explain()
    for B in (
        risk.ekfac(kind="exact", max_dim=5),
        risk.ekfac(kind="exact", basis="shampoo", max_dim=5),
        risk.shampoo(kind="exact", max_dim=5),
    ):
        assert_close(B.trace(), M.trace(), type(B).__name__)
    diagonal = risk.ekfac(kind="exact", max_dim=1)
    assert_close(diagonal.diagonal(), M.diagonal(), "all axes")
    shampoo = risk.shampoo(kind="exact", max_dim=1)
    for name, factors in shampoo.factors.items():
        if factors.a is not None:
            whole = risk.shampoo(kind="exact").factors[name]
            assert_close(factors.g, whole.g.diagonal(), name)
            assert_close(factors.a, whole.a.diagonal(), name)


def test_a_table_looked_up_by_means_has_a_dense_side_and_its_diagonal_where_that_is_too_large():
    model, x = NETWORKS["embedding"]()
    loss, y = loss_and_target("ce", "mean", model(x))
    risk = cx.EmpiricalRisk(model, loss, (x, y))
    whole = risk.kfac(kind="empirical", approx="reduce").factors["0.weight"].a
    assert whole.shape == (6, 6)
    cut = risk.kfac(kind="empirical", approx="reduce", max_dim=5).factors["0.weight"].a
    assert_close(cut, whole.diagonal())
    sides = risk.shampoo(kind="empirical").factors["0.weight"]
    small = risk.shampoo(kind="empirical", max_dim=5).factors["0.weight"]
    assert_close(small.a, sides.a.diagonal())


@pytest.mark.parametrize("make", ["kfac", "ekfac", "shampoo"])
def test_a_loss_without_likelihood_is_refused_by_name(make):
    model = nn.Linear(4, 3)
    risk = cx.EmpiricalRisk(
        model,
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
        (torch.randn(5, 4), torch.rand(5, 3)),
    )
    for kind in ("exact", "mc"):
        with pytest.raises(ValueError, match=r"BlockDiagonalOperator with kind='ggn'"):
            getattr(risk, make)(kind=kind)
    assert getattr(risk, make)(kind="empirical").trace() > 0


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("kind", "ggn", "kind: expected one of 'exact', 'mc', 'empirical', got 'ggn'"),
        ("samples", 0, "samples: expected an integer of at least 1"),
        ("seed", 0.5, "seed: expected an integer"),
        ("approx", "both", "approx: expected one of 'expand', 'reduce'"),
        ("bias", None, "bias: expected one of 'joint', 'separate'"),
        ("positions", "some", "positions: expected one of 'reached', 'all'"),
        ("max_dim", 0, "max_dim: expected an integer of at least 1"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(option, value, words):
    data = (torch.randn(5, 4), torch.randint(3, (5,)))
    with pytest.raises(ValueError, match=f"KFACOperator: {words}"):
        cx.KFACOperator(nn.Linear(4, 3), nn.CrossEntropyLoss(), data, **{option: value})


def test_a_bias_that_stands_before_its_weight_is_the_first_of_the_block():
    class BiasFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(3, dtype=torch.float64))
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))

        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias)

    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    risk = cx.EmpiricalRisk(BiasFirst(), nn.MSELoss(), (x, y))
    K = risk.kfac(kind="exact")
    assert K.blocks["bias"].params == ("bias", "weight")
    assert_close(K.to_dense(), risk.ggn().to_dense())
