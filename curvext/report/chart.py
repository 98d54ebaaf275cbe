"""A spectral density as SVG: density on a logarithmic axis over eigenvalues."""

from __future__ import annotations

import math
from html import escape

from curvext.report.formatting import plain_number
from curvext.results import Density

#: the drawing's own units; on a phone one of them is about one pixel
WIDTH, HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 34


def density_chart(name: str, density: Density, marks: list[float], colour: str) -> str:
    """The density with its band of two standard errors, and a mark under each leading eigenvalue.

    The axis ends a little under the height of a single eigenvalue, so that each of them shows.
    """
    every = max(1, len(density.grid) // 500)  # finer detail than a pixel is invisible
    grid = density.grid[::every].tolist()
    values = density.density[::every].tolist()
    errors = density.standard_error[::every].tolist()
    left, right = grid[0], grid[-1]
    peak = 1 / (density.size * density.width * math.sqrt(2 * math.pi))
    high = math.log10(max(values))
    low = min(math.log10(peak / 4), high - 1)

    def x(t: float) -> float:
        return _LEFT + (t - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return HEIGHT - _BOTTOM - min(max(share, 0.0), 1.02) * (HEIGHT - _TOP - _BOTTOM)

    bottom = HEIGHT - _BOTTOM
    line = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(grid, values, strict=True))
    parts = [
        f'<polygon points="{x(left):.1f},{bottom} {line} {x(right):.1f},{bottom}" fill="{colour}" opacity=".14"/>'
    ]
    if all(math.isfinite(e) for e in errors) and any(errors):
        up = [
            f"{x(t):.1f},{y(v + 2 * e):.1f}" for t, v, e in zip(grid, values, errors, strict=True)
        ]
        down = [
            f"{x(t):.1f},{y(v - 2 * e):.1f}" for t, v, e in zip(grid, values, errors, strict=True)
        ]
        parts.append(
            f'<polygon points="{" ".join(up + down[::-1])}" fill="{colour}" opacity=".25"/>'
        )
    for decade in range(math.ceil(low), math.floor(high) + 1):
        at = y(10.0**decade)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>'
        )
        if (math.floor(high) - decade) % max(1, round((high - low) / 4)) == 0:
            label = f'10<tspan dy="-4" font-size="8">{str(decade).replace("-", "−")}</tspan>'
            parts.append(f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    if left < 0 < right:
        parts.append(
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{bottom}" class="zero"/>'
        )
    parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    parts += [
        f'<line x1="{x(m):.1f}" x2="{x(m):.1f}" y1="{bottom}" y2="{bottom - 7}" stroke="{colour}" stroke-width="1.5"/>'
        for m in marks
        if left <= m <= right
    ]
    parts.append(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>'
    )
    for tick in ticks(left, right):
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>'
        )
        parts.append(
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{plain_number(tick)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">eigenvalue</text>'
    )
    words = f"Spectral density of {name}, eigenvalues from {left:.3g} to {right:.3g}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def ticks(left: float, right: float) -> list[float]:
    """About four round numbers from left to right."""
    rough = (right - left) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.8)
    first = math.ceil(left / step)
    return [n * step for n in range(first, math.floor(right / step) + 1)]
