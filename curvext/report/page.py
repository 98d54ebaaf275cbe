"""A report as one HTML page: no script, nothing loaded, readable on a phone and on paper.

One file because one page is written from top to bottom.
"""

from __future__ import annotations

from html import escape

from curvext.report.chart import density_chart
from curvext.report.formatting import plain_number, seconds
from curvext.report.measurements import Group, Report
from curvext.results import Equality, Estimate

#: by matrix; distinguishable with red-green blindness too (Okabe & Ito)
_COLOURS = {"H": "#0072b2", "G": "#007a5a", "G = F": "#007a5a", "F": "#a8559b", "F_emp": "#c04f00"}
_NAMES = {
    "H": "Hessian H",
    "G": "Gauss-Newton G",
    "G = F": "Gauss-Newton G = Fisher F",
    "F": "Fisher F",
    "F_emp": "empirical Fisher F<sub>emp</sub>",
}
#: further parts are added up under one name
_PARTS = 24

_STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--paper:#fff;--tint:#f6f8fa}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.25rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.25rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--rule)}
h3{font-size:.95rem;margin:0 0 .25rem}
p{margin:.4rem 0}
.soft,small,figcaption{color:var(--soft)}
small,figcaption{font-size:.8rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.5rem;margin:1rem 0}
.facts div{background:var(--tint);border-radius:.5rem;padding:.5rem .75rem}
.facts dt{color:var(--soft);font-size:.8rem}
.facts dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.verdict{font-size:1.6rem;font-weight:700;margin:.25rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem 1.5rem}
figure{margin:0}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--rule);stroke-width:.6}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .zero{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .25rem;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600;color:var(--soft)}
th:first-child,td:first-child{text-align:left}
td+td{white-space:nowrap}
td small{display:block;line-height:1.1}
sub{line-height:0}
ul{padding-left:1.1rem;margin:.5rem 0}
li{margin:.25rem 0}
.bars{display:grid;grid-template-columns:1fr;gap:.6rem}
.part{display:grid;grid-template-columns:minmax(0,14rem) 1fr;gap:.1rem .75rem;align-items:center}
.part b{font-weight:600;overflow-wrap:anywhere;line-height:1.2}
.part b small{font-weight:400;display:block}
.bar{display:grid;grid-template-columns:1fr 7.5rem;gap:.5rem;align-items:center;font-size:.78rem;color:var(--soft);
font-variant-numeric:tabular-nums}
.bar i{display:block;height:.55rem;border-radius:.2rem;min-width:1px}
.key{display:flex;flex-wrap:wrap;gap:.25rem 1rem;font-size:.85rem;margin:.4rem 0 .8rem}
.key i{display:inline-block;width:.8rem;height:.55rem;border-radius:.2rem;margin-right:.35rem}
@media(max-width:36rem){.part{grid-template-columns:1fr}h1{font-size:1.3rem}}
@media print{@page{margin:15mm}body{font-size:10pt}main{max-width:none;padding:0}h2{margin-top:1.25rem}
h2,h3{break-after:avoid}figure,tr,.part,.facts,li{break-inside:avoid}
.charts{grid-template-columns:1fr 1fr}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def as_html(report: Report) -> str:
    """The page."""
    title = escape(report.title)
    body = "".join(
        [
            f"<h1>Curvature of {title}</h1>",
            _facts(report),
            _verdict(report),
            _spectra(report),
            _leading(report),
            _comparison(report),
            _parts(report),
            _costs(report),
            _method(report),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Curvature of {title}</title><style>{_STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def _facts(report: Report) -> str:
    c = report.comparison
    facts = {
        "parameters P": f"{c.size:,}".replace(",", "\u202f"),
        "samples N": f"{report.samples:,}".replace(",", "\u202f"),
        "loss L": plain_number(c.value, 4),
        "gradient norm ‖∇L‖": plain_number(c.gradient_norm),
        "loss function": escape(report.loss),
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{cells}</dl>'


_MEANING = {
    "minimum": "A strict local minimum: the gradient vanishes and every eigenvalue of H is positive.",
    "maximum": "A local maximum: the gradient vanishes and every eigenvalue of H is negative.",
    "saddle": "A saddle: the gradient vanishes, and H curves upwards in some directions and downwards in others.",
    "degenerate": "The gradient vanishes, and some eigenvalues of H cannot be told from zero: "
    "second derivatives do not decide.",
    "not critical": "The gradient does not vanish, so the eigenvalues of H alone say nothing of a minimum.",
}


def _verdict(report: Report) -> str:
    p = report.point
    about = "" if p.exact else "about "
    rows = [
        (
            "smallest eigenvalue of H",
            f"{plain_number(p.smallest)} ± {plain_number(p.smallest_error, 1)}",
        ),
        (
            "largest eigenvalue of H",
            f"{plain_number(p.largest)} ± {plain_number(p.largest_error, 1)}",
        ),
        ("condition number", plain_number(p.condition_number)),
        ("negative eigenvalues", _share(p.negative_fraction, about)),
        ("negative share of Σ|λ|", _share(p.negative_share, about)),
        ("gradient counts as zero up to", plain_number(p.gradient_tolerance, 2)),
    ]
    cells = "".join(f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in rows)
    warning = "" if p.converged else "<p><b>Lanczos has not converged: take more products.</b></p>"
    return (
        f'<h2>The point</h2><p class="verdict">{escape(p.verdict)}</p><p>{_MEANING[p.verdict]}</p>'
        f'<p class="soft">{escape(p.evidence[:1].upper() + p.evidence[1:])}.</p>{warning}<table>{cells}</table>'
    )


def _share(value: float, about: str) -> str:
    return "–" if value != value else f"{about}{value:.1%}"


def _spectra(report: Report) -> str:
    figures = []
    for name, density in report.densities.items():
        marks = report.comparison.eigenvalues[name.split(" = ")[0]].tolist()
        chart = density_chart(name, density, marks, _COLOURS[name])
        figures.append(f"<figure><h3>{_NAMES[name]}</h3>{chart}</figure>")
    return (
        "<h2>Spectra</h2><p>The density of the eigenvalues on a logarithmic axis. The axis begins a "
        "little under the height of a single eigenvalue. Marks on it are the leading eigenvalues; "
        f'the shade is two standard errors.</p><div class="charts">{"".join(figures)}</div>'
    )


def _leading(report: Report) -> str:
    c = report.comparison
    names = [name for name in report.densities]
    columns = [
        list(zip(c.eigenvalues[k].tolist(), c.eigenvalue_errors[k].tolist(), strict=True))
        for k in (name.split(" = ")[0] for name in names)
    ]
    rows = []
    for i in range(max((len(column) for column in columns), default=0)):
        cells = "".join(
            f"<td>{plain_number(column[i][0], 4)}<small>± {plain_number(column[i][1], 1)}</small></td>"
            if i < len(column)
            else "<td></td>"
            for column in columns
        )
        rows.append(f"<tr><td>{i + 1}</td>{cells}</tr>")
    head = "".join(f"<th>{_short(name)}</th>" for name in names)
    return (
        "<h2>Leading eigenvalues</h2><p>The largest in magnitude. An eigenvalue lies within the bound of each, "
        f"the residual ‖A v − λ v‖.</p><table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    )


def _short(name: str) -> str:
    base, _, below = name.partition("_")
    return f"{base}<sub>{below}</sub>" if below else name


def _comparison(report: Report) -> str:
    c = report.comparison
    names = list(c.traces)
    head = "".join(f"<th>{_short(n)}</th>" for n in names)

    def row(label: str, cells: list[str]) -> str:
        return f"<tr><td>{label}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    figures = [
        row("trace", [_number(c.traces[n]) for n in names]),
        row("norm", [_number(c.norms[n]) for n in names]),
    ]
    apart = [
        row(_short(a), ["" if a == b else _number(c.distances[a, b]) for b in names]) for a in names
    ]
    overlap = [
        row(_short(a), ["" if a == b else _overlap(c.overlaps[a, b]) for b in names]) for a in names
    ]
    count = max((len(v) for v in c.eigenvalues.values()), default=0)
    said = "".join(f"<li>{_equality(e)}</li>" for e in c.equalities)
    missing = "".join(
        f"<li>There is no {_short(n)}: {escape(why)}.</li>" for n, why in c.refused.items()
    )
    return (
        f"<h2>The matrices compared</h2><ul>{said}{missing}</ul>"
        f"<table><tr><th></th>{head}</tr>{''.join(figures)}</table>"
        "<h3 style='margin-top:1rem'>Distance: ‖row − column‖ / ‖column‖, Frobenius</h3>"
        f"<table><tr><th></th>{head}</tr>{''.join(apart)}</table>"
        f"<h3 style='margin-top:1rem'>Overlap of the {count} leading eigenvectors</h3>"
        f"<p class='soft'>1 for the same space, {plain_number(count / max(1, c.size), 2)} for unrelated ones.</p>"
        f"<table><tr><th></th>{head}</tr>{''.join(overlap)}</table>"
    )


def _equality(equality: Equality) -> str:
    claim = " = ".join(_short(n) for n in equality.claim.split(" = "))
    rest = escape(str(equality).removeprefix(equality.claim))
    gap = "" if equality.gap is None or equality.holds else f" Distance {_inline(equality.gap)}."
    return f"<b>{claim}</b>{rest}.{gap}"


def _inline(estimate: Estimate) -> str:
    error = float(estimate.standard_error)
    value = plain_number(float(estimate.value))
    return value if error == 0 else f"{value} ± {plain_number(error, 1)}"


def _number(estimate: Estimate) -> str:
    error = float(estimate.standard_error)
    value = plain_number(float(estimate.value))
    return value if error == 0 else f"{value}<small>± {plain_number(error, 1)}</small>"


def _overlap(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _parts(report: Report) -> str:
    groups, note = list(report.groups), ""
    names = list(report.densities)
    if len(groups) > _PARTS:
        rank = sorted(groups, key=lambda g: -max(_size(s) for s in g.shares.values()))
        kept = set(id(g) for g in rank[:_PARTS])
        rest = [g for g in groups if id(g) not in kept]
        groups = [g for g in groups if id(g) in kept]
        size = sum(g.size for g in rest)
        note = (
            f"<p class='soft'>{len(rest)} more parts, {size} parameters in all, each with a smaller share than these: "
            + ", ".join(
                f"{sum(_size(g.shares[n]) for g in rest):.1%} of {_short(n)}" for n in names
            )
            + ".</p>"
        )
    key = "".join(
        f'<span><i style="background:{_COLOURS[n]}"></i>{_short(n)}</span>' for n in names
    )
    widest = max((_size(s) for g in groups for s in g.shares.values()), default=1.0) or 1.0
    rows = "".join(_part(g, names, widest, report.comparison.size) for g in groups)
    return (
        "<h2>Where the curvature is</h2><p>Each module's share of the trace: its block of the diagonal over "
        "the sum of all modules' magnitudes. Of H a share can be negative, which an outline shows. "
        f'± is the standard error over random probes; that of F<sub>emp</sub> is exact.</p><div class="key">{key}</div>'
        f'<div class="bars">{rows}</div>{note}'
    )


def _size(share: Estimate) -> float:
    return abs(float(share.value))


def _part(group: Group, names: list[str], widest: float, size: int) -> str:
    bars = []
    for name in names:
        share, colour = float(group.shares[name].value), _COLOURS[name]
        error = float(group.shares[name].standard_error)
        fill = f"background:{colour}" if share >= 0 else f"border:1.5px solid {colour}"
        number = f"{share:.1%}".replace("-", "−") + (f" ± {error:.1%}" if error else "")
        bars.append(
            f'<div class="bar"><i style="width:{100 * abs(share) / widest:.1f}%;{fill}"></i>'
            f"<span>{number}</span></div>"
        )
    head = f"{escape(group.name)}<small>{group.size} parameters, {group.size / size:.1%}</small>"
    return f'<div class="part"><b>{head}</b><div>{"".join(bars)}</div></div>'


def _costs(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(c.what)}</td><td>{seconds(c.seconds)}</td><td>{c.gradients:.2f}</td></tr>"
        for c in report.costs
    )
    return (
        "<h2>What it costs</h2><p>Measured here, medians of interleaved rounds, with the linearisation kept. "
        "The unit is one gradient of the same risk.</p>"
        f"<table><tr><th></th><th>time</th><th>gradients</th></tr>{rows}</table>"
    )


def _method(report: Report) -> str:
    probes = report.comparison.products
    density = sum(d.products for d in report.densities.values())
    machine = ", ".join(f"{escape(k)} {escape(v)}" for k, v in report.machine.items())
    return (
        "<h2>How it was measured</h2><p class='soft'>Exact products with each matrix, none of which was "
        f"formed unless it is small: {probes} for the comparison and {report.point.products} for the verdict. "
        f"Densities are by stochastic Lanczos quadrature ({density} products), eigenvalues by restarted Lanczos, "
        f"norms and traces of large matrices by random probes with the leading directions taken out. {machine}.</p>"
    )
