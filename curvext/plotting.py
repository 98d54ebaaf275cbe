"""Pictures of results, with matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from curvext.arguments import check_dense


def axes_of(caller: str, axes: Any) -> Any:
    """The axes given, or those of a new figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as missing:
        raise ImportError(
            f"{caller}: matplotlib is missing; install it with: python -m pip install matplotlib"
        ) from missing
    return plt.subplots()[1]


def plot_shares(named: Mapping[str, Tensor], axes: Any = None) -> Any:
    """Bars of each parameter's share of a diagonal: Σ |entries| of it over that of all, in the order given.

    Args:
        named: ``{name: tensor}``, as :func:`curvext.fisher_diagonal` gives it, or ``A.split`` of a flat diagonal.
        axes: matplotlib axes to draw on; None for a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: ``named`` is no mapping of tensors.
        ValueError: it is empty, or all entries are zero, or their sum is not finite.
        ImportError: matplotlib is missing.

    Example:
        >>> import matplotlib, torch, curvext as cx
        >>> matplotlib.use("agg")
        >>> axes = cx.plot_shares({"weight": torch.tensor([1.0, 2.0]), "bias": torch.tensor([1.0])})
        >>> [float(bar.get_width()) for bar in axes.patches]
        [0.75, 0.25]
    """
    if not isinstance(named, Mapping):
        raise TypeError(
            f"plot_shares: named: expected {{name: tensor}}, got {type(named).__name__}"
        )
    for name, tensor in named.items():
        check_dense(f"plot_shares: named: {name!r}", tensor)
    sums = [float(t.abs().double().sum()) for t in named.values()]
    total = sum(sums)
    if not 0 < total < float("inf"):
        raise ValueError(
            f"plot_shares: named: expected entries that are finite and not all zero; their magnitudes add to {total}"
        )
    axes = axes_of("plot_shares", axes)
    axes.barh(list(named), [s / total for s in sums])
    axes.invert_yaxis()  # the first parameter on top
    axes.set_xlabel("share of the diagonal")
    return axes
