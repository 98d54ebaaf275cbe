"""The checks of csrc/checks.h for the references, so that both give the same errors."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_dtype(function: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            f"{function}: {argument} has dtype {tensor.dtype}, expected float64, float32, bfloat16 or float16"
        )


def check_alike(
    function: str, argument: str, tensor: Tensor, other_argument: str, other: Tensor
) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{function}: {argument} has dtype {tensor.dtype} but {other_argument} has {other.dtype}, "
            "expected the same dtype"
        )
    check_device(function, argument, tensor, other_argument, other)


def check_device(
    function: str, argument: str, tensor: Tensor, other_argument: str, other: Tensor
) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{function}: {argument} is on {tensor.device} but {other_argument} is on {other.device}, "
            "expected the same device"
        )


def check_outer_pair(function: str, a: Tensor, g: Tensor) -> None:
    """a [N,S,I] and g [V,N,S,O], the pair that every outer-product kernel takes."""
    if a.dim() != 3:
        raise ValueError(f"{function}: a has shape {list(a.shape)}, expected [N, S, I]")
    if g.dim() != 4:
        raise ValueError(f"{function}: g has shape {list(g.shape)}, expected [V, N, S, O]")
    if g.shape[1:3] != a.shape[:2]:
        raise ValueError(
            f"{function}: g has shape {list(g.shape)}, expected [V, {a.shape[0]}, {a.shape[1]}, O] "
            f"beside a of shape {list(a.shape)}"
        )
    check_dtype(function, "a", a)
    check_alike(function, "g", g, "a", a)


def check_outer_windows(function: str, a: Tensor, g: Tensor) -> None:
    """The pair, where a may also be [N,S1,S2,I1,I2], windows of a strided tensor: S = S1 S2, I = I1 I2."""
    if a.dim() != 5:
        check_outer_pair(function, a, g)
        return
    samples, lines, line = a.shape[:3]
    if g.dim() != 4 or g.shape[1:3] != (samples, lines * line):
        raise ValueError(
            f"{function}: g has shape {list(g.shape)}, expected [V, {samples}, {lines * line}, O] "
            f"beside windows a of shape {list(a.shape)}"
        )
    check_dtype(function, "a", a)
    check_alike(function, "g", g, "a", a)


def check_alike_or_accumulated(
    function: str, argument: str, tensor: Tensor, other_argument: str, other: Tensor
) -> None:
    accumulated = dtype_of_sums(other.dtype)
    if tensor.dtype not in (other.dtype, accumulated):
        raise TypeError(
            f"{function}: {argument} has dtype {tensor.dtype}, expected {other.dtype} as {other_argument} "
            f"or {accumulated}"
        )
    check_device(function, argument, tensor, other_argument, other)


def check_outer_cov(function: str, x: Tensor, w: Tensor) -> None:
    """x [M,D] and a weight w [M] for each of its rows."""
    if x.dim() != 2:
        raise ValueError(f"{function}: x has shape {list(x.shape)}, expected [M, D]")
    if w.dim() != 1 or w.shape[0] != x.shape[0]:
        raise ValueError(
            f"{function}: w has shape {list(w.shape)}, expected [{x.shape[0]}], a weight for each row of x"
        )
    check_dtype(function, "x", x)
    check_alike_or_accumulated(function, "w", w, "x", x)


def check_outer_dot(function: str, a: Tensor, g: Tensor, W: Tensor) -> None:
    """The pair, and K matrices W [K,O,I] of the shape of its gradients."""
    check_outer_pair(function, a, g)
    if W.dim() != 3 or W.shape[1] != g.shape[3] or W.shape[2] != a.shape[2]:
        raise ValueError(
            f"{function}: W has shape {list(W.shape)}, expected [K, {g.shape[3]}, {a.shape[2]}] "
            f"beside a of shape {list(a.shape)} and g of shape {list(g.shape)}"
        )
    check_alike_or_accumulated(function, "W", W, "a", a)


def check_outer_gram(function: str, a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> None:
    """a [N,S,I] and g [N,S,O] with a2 [N',S',I] and g2 [N',S',O]: one vector for each datum."""
    if a.dim() != 3:
        raise ValueError(f"{function}: a has shape {list(a.shape)}, expected [N, S, I]")
    if g.dim() != 3 or g.shape[:2] != a.shape[:2]:
        raise ValueError(
            f"{function}: g has shape {list(g.shape)}, expected [{a.shape[0]}, {a.shape[1]}, O] "
            f"beside a of shape {list(a.shape)}"
        )
    if a2.dim() != 3 or a2.shape[2] != a.shape[2]:
        raise ValueError(
            f"{function}: a2 has shape {list(a2.shape)}, expected [N', S', {a.shape[2]}] "
            f"beside a of shape {list(a.shape)}"
        )
    if g2.dim() != 3 or g2.shape[:2] != a2.shape[:2] or g2.shape[2] != g.shape[2]:
        raise ValueError(
            f"{function}: g2 has shape {list(g2.shape)}, expected [{a2.shape[0]}, {a2.shape[1]}, {g.shape[2]}] "
            f"beside a2 of shape {list(a2.shape)} and g of shape {list(g.shape)}"
        )
    check_dtype(function, "a", a)
    for name, tensor in (("g", g), ("a2", a2), ("g2", g2)):
        check_alike(function, name, tensor, "a", a)


def check_outer_sum(function: str, a: Tensor, g: Tensor, c: Tensor) -> None:
    """The pair, and K weights c [K,V,N] of each of its gradients."""
    check_outer_pair(function, a, g)
    if c.dim() != 3 or c.shape[1:] != g.shape[:2]:
        raise ValueError(
            f"{function}: c has shape {list(c.shape)}, expected [K, {g.shape[0]}, {g.shape[1]}] "
            f"beside g of shape {list(g.shape)}"
        )
    check_alike_or_accumulated(function, "c", c, "a", a)


def check_weights(function: str, w: Tensor, z: Tensor) -> None:
    """The dtypes and devices of z and of its weights w."""
    check_dtype(function, "z", z)
    check_alike_or_accumulated(function, "w", w, "z", z)


def check_softmax(function: str, z: Tensor, w: Tensor, dim: int) -> None:
    """z with a class dimension, w of z's shape without it."""
    if z.dim() < 1:
        raise ValueError(f"{function}: z is a scalar, expected logits with a class dimension")
    if not -z.dim() <= dim < z.dim():
        raise ValueError(
            f"{function}: dim is {dim}, expected a dimension of z of shape {list(z.shape)}"
        )
    positions = list(z.shape)
    del positions[dim]
    if list(w.shape) != positions:
        raise ValueError(
            f"{function}: w has shape {list(w.shape)}, expected {positions}, "
            "the shape of z without its class dimension"
        )
    check_weights(function, w, z)


def check_elements(function: str, z: Tensor, w: Tensor) -> None:
    """Losses that act on each output alone: w has z's shape."""
    if w.shape != z.shape:
        raise ValueError(f"{function}: w has shape {list(w.shape)}, expected {list(z.shape)} as z")
    check_weights(function, w, z)


def check_vectors(function: str, z: Tensor, argument: str, u: Tensor) -> None:
    """Vectors [K, *z.shape] beside z."""
    if u.dim() != z.dim() + 1 or u.shape[1:] != z.shape:
        raise ValueError(
            f"{function}: {argument} has shape {list(u.shape)}, expected [K, *z.shape] "
            f"with z.shape = {list(z.shape)}"
        )
    check_alike(function, argument, u, "z", z)


def check_target(
    function: str, z: Tensor, target: Tensor, w: Tensor, spread: Tensor | None, dim: int
) -> None:
    """A target of class indices with a spread, or of the mass of each class."""
    indices = target.dtype == torch.int64
    if not indices and target.dtype != z.dtype:
        raise TypeError(
            f"{function}: target has dtype {target.dtype}, expected class indices of int64 "
            f"or the mass of each class in {z.dtype} as z"
        )
    expected = list((w if indices else z).shape)
    if list(target.shape) != expected:
        hint = ", an index for each position" if indices else " as z"
        raise ValueError(
            f"{function}: target has shape {list(target.shape)}, expected {expected}{hint}"
        )
    check_device(function, "target", target, "z", z)
    if spread is None:
        return
    if not indices:
        raise ValueError(
            f"{function}: spread is given beside the mass of each class, expected it beside indices"
        )
    if list(spread.shape) != [z.shape[dim]]:
        raise ValueError(
            f"{function}: spread has shape {list(spread.shape)}, expected [{z.shape[dim]}], "
            "one value for each class"
        )
    check_alike_or_accumulated(function, "spread", spread, "z", z)


def check_labels(function: str, label: Tensor, w: Tensor, classes: int) -> None:
    """Indices of classes; any where w is 0."""
    wrong = ((label < 0) | (label >= classes)) & (w != 0)
    if bool(wrong.any()):
        at = int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"{function}: target has the index {int(label.flatten()[at])} at a position of weight "
            f"{float(w.flatten()[at])}, expected 0 to {classes - 1}"
        )
