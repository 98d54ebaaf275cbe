"""Student's t distribution, for the errors of means of few samples."""

from __future__ import annotations

import math
from statistics import NormalDist


def two_sided_quantile(level: float, degrees: float) -> float:
    """t with P(|T| ≤ t) = ``level`` for T of so many degrees of freedom; of the normal distribution for inf.

    Args:
        level: between 0 and 1, neither included.
        degrees: a whole number of at least 1, or inf.

    Source: Abramowitz & Stegun (1964), 26.7.3 and 26.7.4: a finite sum in θ = atan(t/√ν), inverted by bisection.

    Example:
        >>> from curvext.student import two_sided_quantile
        >>> round(two_sided_quantile(0.95, 3), 4)
        3.1824
    """
    if math.isinf(degrees):
        return NormalDist().inv_cdf((1 + level) / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # more halvings than a float64 has bits
        middle = (low + high) / 2
        if _mass(middle, int(degrees)) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _mass(angle: float, degrees: int) -> float:
    """P(|T| ≤ √ν tan θ)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
