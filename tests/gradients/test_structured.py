"""Uses in reduced precision: what they hold is taken as it is, and what is made of it is exact to float32."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close

from curvext.gradients.convolution import ConvolutionGradient
from curvext.gradients.dense import DenseGradient
from curvext.gradients.joined import SumGradient, TiedGradient, join
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.rows import RowsGradient

N, S = 5, 3
TABLE = torch.Size((6, 4))
INDEX = torch.tensor([[0, 1, 1], [2, 2, 2], [5, 0, 3], [4, 4, 0], [1, 2, 3]])


def _outer(draw):
    return OuterGradient(draw(N, S, 4), draw(N, S, 6))


def _rows(draw):
    return RowsGradient(INDEX, draw(N, S, 4), TABLE)


def _convolution(draw, groups=1, images=1, dilation=1):
    positions = (4 - dilation) // 2 + 1
    return ConvolutionGradient(
        draw(N, images, 4, 5, 5),
        draw(N, images, 6, positions, positions),
        torch.Size((6, 4 // groups, 2, 2)),
        stride=(2, 2),
        padding=(0, 0),
        dilation=(dilation, dilation),
        groups=groups,
    )


USES = {
    "direct": lambda draw: DenseGradient(draw(N, 4, 3)),
    "direct scalar": lambda draw: DenseGradient(draw(N)),
    "outer": _outer,
    "outer transposed": lambda draw: OuterGradient(draw(N, S, 4), draw(N, S, 6), transposed=True),
    "outer of one position": lambda draw: OuterGradient(draw(N, 1, 4), draw(N, 1, 6)),
    "rows": _rows,
    "convolution": _convolution,
    "convolution in groups": lambda draw: _convolution(draw, groups=2),
    "convolution of several images": lambda draw: _convolution(draw, images=2, dilation=2),
    "sum": lambda draw: SumGradient([DenseGradient(draw(N, 6, 4)), _outer(draw)], N),
    "tied": lambda draw: TiedGradient(_outer(draw), _rows(draw), N),
    "joined": lambda draw: join([_outer(draw), _outer(draw)], N),
}


def made(name, held, dtype, device, seed=0):
    """A use of values that bfloat16 has, held in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(shape, generator=generator).to(held)
        return values.to(device, dtype)

    use = USES[name](draw)
    if hasattr(use, "index"):
        use.index = use.index.to(device)
    for part in getattr(use, "_uses", ()):
        if hasattr(part, "index"):
            part.index = part.index.to(device)
    return use


@pytest.mark.parametrize("vectors", ["held", "float32"])
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", USES)
def test_a_use_takes_vectors_of_its_dtype_or_float32_and_sums_in_float32(
    name, held, vectors, device
):
    use, exact = (made(name, held, dtype, device) for dtype in (held, torch.float64))
    other, exact_other = (made(name, held, dtype, device, 1) for dtype in (held, torch.float64))
    rows = exact.rows()
    shape = use.sample(0).shape
    of_vectors = held if vectors == "held" else torch.float32
    W = torch.randn(2, *shape).to(device, of_vectors)
    c = torch.randn(2, N).to(device, of_vectors)

    def check(got, expected, what):
        assert got.dtype is torch.float32, what
        assert_close(got, expected, what)

    check(use.dot(W), rows @ W.double().reshape(2, -1).T, "dot")
    check(use.weighted_sum(c).reshape(2, -1), c.double() @ rows, "weighted sum")
    check(use.norm(), rows.square().sum(1), "norm")
    check(use.square().flatten(), rows.square().sum(0), "square")
    check(use.gram(other), rows @ exact_other.rows().T, "gram")
    if name.startswith("direct"):  # written out as they are
        assert torch.equal(use.rows().double(), rows)
    else:
        check(use.rows(), rows, "rows")
        check(use.sample(1).flatten(), rows[1], "sample")


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", [n for n in USES if n.split()[0] in ("direct", "outer", "convolution")]
)
def test_the_squares_for_several_vectors_are_those_of_each(name, held, device):
    uses = [made(name, held, held, device, seed) for seed in range(3)]
    for use in uses:  # one input, several gradients
        for attribute in ("a", "_inner"):
            if hasattr(use, attribute):
                setattr(use, attribute, getattr(uses[0], attribute))
    got = uses[0].square_of(torch.stack([use.pulled_back for use in uses]))
    assert_close(got, torch.stack([use.square() for use in uses]).sum(0), name)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_taken_in_pieces_is_that_of_each_sample(
    groups, images, device, small_workspace
):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    inner, outer = draw(N, images, 4, 9, 9), draw(N, images, 6, 5, 5)
    shape = torch.Size((6, 4 // groups, 3, 3))
    options = dict(stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=groups)
    assert inner[0].nbytes * 2 > small_workspace  # at most one sample to a piece
    use = ConvolutionGradient(inner, outer, shape, **options)
    gradients = torch.stack(
        [
            torch.nn.grad.conv2d_weight(inner[n], shape, outer[n], **options).flatten()
            for n in range(N)
        ]
    )
    assert_close(use.square().flatten(), gradients.square().sum(0), "square")
    assert_close(use.norm(), gradients.square().sum(1), "norm")
