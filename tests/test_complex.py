"""Complex numbers inside a model with real parameters: every quantity against plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from oracles import Oracle
from torch import nn

import curvext as cx

I, O, N = 3, 4, 5  # inputs, outputs, samples


def complex_randn(*shape):
    return torch.randn(*shape, dtype=torch.complex128)


class Spectrum(nn.Linear):
    """The absolute value of a spectrum of real values."""

    def forward(self, x):
        return torch.fft.rfft(super().forward(x)).abs()


class Angles(nn.Linear):
    def forward(self, x):
        return torch.fft.rfft(super().forward(x) + torch.arange(O)).angle().sin()


class PairTimes(nn.Module):
    """A real parameter seen as complex numbers, times data that is complex."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(I, 2))
        self.head = nn.Linear(2 * I, O)

    def forward(self, x):
        z = torch.view_as_complex(self.w) * torch.complex(x, x.cos())
        return self.head(torch.view_as_real(z).flatten(1))


class PairDivided(PairTimes):
    def forward(self, x):
        z = torch.view_as_complex(self.w) / torch.complex(x, x.cos() + 2)
        return self.head(torch.view_as_real(z).flatten(1))


class DividedByPair(PairTimes):
    def forward(self, x):
        z = torch.complex(x, x.cos()) / (torch.view_as_complex(self.w) + 2)
        return self.head(torch.cat([z.real, z.imag], 1))


class PairAdded(PairTimes):
    def forward(self, x):
        z = torch.complex(x, x.cos()) - (1 + 2j) * torch.view_as_complex(self.w)
        return self.head(torch.view_as_real(z * z.conj().sin()).flatten(1))


class ComplexMatrix(nn.Module):
    """A matrix product with complex weights, kept as two real ones."""

    def __init__(self, product="mm"):
        super().__init__()
        self.re = nn.Parameter(torch.randn(I, O))
        self.im = nn.Parameter(torch.randn(I, O))
        self.bias = nn.Parameter(torch.randn(O, 2))
        self.product = product

    def forward(self, x):
        z, w = torch.complex(x, x.sin()), torch.complex(self.re, self.im)
        b = torch.view_as_complex(self.bias)
        if self.product == "mm":
            y = z @ w
        elif self.product == "addmm":
            y = torch.addmm(b, z, w)
        elif self.product == "left":
            y = (w.T @ z.T).T
        elif self.product == "bmm":
            y = torch.bmm(z.unsqueeze(1), w.expand(len(x), -1, -1)).squeeze(1)
        elif self.product == "conjugated":
            y = z @ w.conj() + b.conj()
        elif self.product == "linear":
            y = F.linear(z, w.T, b)
        else:
            y = torch.einsum("ni,io->no", z, w) * b
        return y.abs().square() + y.angle()


class ComplexConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(O, 1, 2, 2))
        self.b = nn.Parameter(torch.randn(O, 2))

    def forward(self, x):
        z = torch.complex(x, x.cos()).unsqueeze(1)
        y = F.conv1d(z, torch.view_as_complex(self.w), torch.view_as_complex(self.b))
        return y.tanh().abs().sum(2)


class RealWeightsOfComplexData(nn.Module):
    """A real weight times complex constants, then the real part: the engine casts a complex gradient to real."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(I))
        self.head = nn.Linear(I, O)

    def forward(self, x):
        z = self.w * torch.polar(torch.ones_like(x), x) + (self.w + 0j)
        return self.head((z.exp() * z.conj()).real) + self.head(z.imag)


class FourierMixing(nn.Module):
    """FNet's mixing, between a norm and a network."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(I, 6), nn.LayerNorm(6), nn.Linear(6, O)

    def forward(self, x):
        h = self.embed(x).view(len(x), 2, 3)
        mixed = torch.fft.fft2(h).real.reshape(len(x), 6)
        return self.out(torch.tanh(self.norm(mixed)))


class SpectralLayer(nn.Module):
    """A Fourier neural operator's layer: complex weights of a spectrum by einsum."""

    def __init__(self):
        super().__init__()
        self.lift, self.out = nn.Linear(1, 2), nn.Linear(8, O)
        self.weight = nn.Parameter(torch.randn(2, 2, 3, 2))

    def forward(self, x):
        h = self.lift(F.pad(x, (0, 1)).unsqueeze(2)).transpose(1, 2)  # [N, 2, 4]
        z = torch.einsum(
            "bix,iox->box", torch.fft.rfft(h), torch.view_as_complex(self.weight.contiguous())
        )
        return self.out(F.gelu(torch.fft.irfft(z, n=4)).flatten(1))


class Elementwise(nn.Linear):
    """A complex elementwise operation on a trained spectrum."""

    def __init__(self, operation):
        super().__init__(I, O)
        self.operation = operation

    def forward(self, x):
        y = super().forward(x)
        z = self.operation(torch.complex(y, y.cos()) / 3)
        return torch.view_as_real(z).sum(2) if z.is_complex() else z


ELEMENTWISE = {
    "abs": torch.abs,
    "square": torch.square,
    "pow": lambda z: z**3,
    "power": lambda z: (z + 2) ** 1.5,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cosh": torch.cosh,
    "reciprocal": torch.reciprocal,
    "sgn": torch.sgn,
    "conj": lambda z: z.conj() * (2 - 1j),
    "neg": lambda z: -z,
    "mean": lambda z: z.mean(1, keepdim=True).expand_as(z) * z,
    "softmax_of_abs": lambda z: torch.softmax(z.abs(), 1),
    "stacked": lambda z: torch.stack([z, z.conj()]).prod(0),
    "where": lambda z: torch.where(z.real > 0, z, z * z.conj()),
    "cumsum": lambda z: z.cumsum(1),
    "angle": torch.angle,
    "real_times_imag": lambda z: z.real * z.imag,
    "polar": lambda z: torch.polar(z.abs(), z.angle() * 2),
}
MODELS = {
    "spectrum": lambda: Spectrum(I, O),
    "angles": lambda: Angles(I, O),
    "pair_times": PairTimes,
    "pair_divided": PairDivided,
    "divided_by_pair": DividedByPair,
    "pair_added": PairAdded,
    **{
        f"matrix_{product}": (lambda product=product: ComplexMatrix(product))
        for product in ("mm", "addmm", "left", "bmm", "conjugated", "linear", "einsum")
    },
    "convolution": ComplexConvolution,
    "real_weights": RealWeightsOfComplexData,
    "fourier_mixing": FourierMixing,
    "spectral_layer": SpectralLayer,
    **{
        f"elementwise_{name}": (lambda operation=operation: Elementwise(operation))
        for name, operation in ELEMENTWISE.items()
    },
}


def posed(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    x = torch.randn(N, I, dtype=torch.float64)
    y = torch.randn(model(x).shape, dtype=torch.float64)
    return model, x, y, Oracle(model, nn.MSELoss(), x, y)


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", MODELS)
def test_complex_values_inside_a_model_leave_every_quantity_exact(name):
    model, x, y, oracle = posed(name)
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (x, y))
    V = torch.randn(oracle.size, 3)
    G, H, truth = oracle.ggn(), oracle.hvp(V), oracle.sample_gradients()
    assert_close(risk.gradient(), oracle.gradient(), "gradient")
    assert_close(risk.ggn() @ V, G @ V, "G v")
    assert_close(risk.ggn().diagonal(), G.diagonal(), "diagonal of G")
    assert_close(risk.hessian() @ V, H, "H v", scale=float((G @ V).abs().max()))
    assert_close(risk.model_curvature() @ V, H - G @ V, "R v", scale=float((G @ V).abs().max()))
    E = risk.empirical_fisher()
    assert_close(E @ V, truth.T @ (truth @ V) / N, "F_emp v")
    assert_close(E.diagonal(), truth.square().mean(0), "diagonal of F_emp")
    assert_close(E.gradient_norms(), truth.norm(dim=1), "norms")
    assert_close(E.gram(), truth @ truth.T, "Gram matrix")
    assert_close(risk.fisher() @ V, G @ V, "F v")


def test_complex_values_in_several_batches_agree_with_one():
    model, x, y, oracle = posed("spectral_layer")
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
    v = torch.randn(oracle.size)
    assert_close(risk.ggn() @ v, oracle.ggn() @ v)
    assert_close(risk.empirical_fisher() @ v, oracle.empirical_fisher() @ v)


def test_complex_data_is_taken_and_looked_at():
    model = nn.Linear(2 * I, O)

    def forward(m, b):
        return m(torch.view_as_real(b[0]).flatten(1))

    z, y = complex_randn(N, I), torch.randn(N, O)
    oracle = Oracle(model, nn.MSELoss(), torch.view_as_real(z).flatten(1), y)
    v = torch.randn(oracle.size)
    assert_close(cx.GGNOperator(model, nn.MSELoss(), (z, y), forward=forward) @ v, oracle.ggn() @ v)
    z[0, 0] = complex(0, float("nan"))
    with pytest.raises(ValueError, match="data: .*nan or inf"):
        cx.GGNOperator(model, nn.MSELoss(), (z, y), forward=forward) @ v


def test_complex_parameters_and_complex_outputs_are_refused_with_a_way_out():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(complex_randn(I))
            self.b = nn.Parameter(torch.randn(1))

        def forward(self, x):
            return self.w * x + self.b

    batch = (torch.randn(N, I), torch.randn(N, I))
    with pytest.raises(TypeError, match="'w' has dtype torch.complex128.*view_as_complex.*params="):
        cx.EmpiricalRisk(Complex(), nn.MSELoss(), batch)
    with pytest.raises(TypeError, match="output has dtype torch.complex128.*view_as_real"):
        cx.EmpiricalRisk(Complex(), nn.MSELoss(), batch, params="b").gradient()
