"""Reports: figures against dense matrices, a page that stands alone, and the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import curvext as cx
from curvext.__main__ import main
from curvext.report import as_html, as_json, measure
from curvext.report.chart import density_chart, ticks
from curvext.report.formatting import plain_number, seconds

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]

USERS_MODULE = """
import torch
import curvext as cx

def risk():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    data = torch.randn(12, 3).double(), torch.randint(2, (12,))
    return cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)

def number():
    return 3

def broken():
    raise TypeError("the user's own mistake")
"""


def classification():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    data = (torch.randn(40, 6).double(), torch.randint(4, (40,)))
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


def regression(loss):
    torch.manual_seed(1)
    data = (torch.randn(20, 2).double(), torch.randn(20, 1).double())
    options = {} if isinstance(loss, nn.Module) else {"reduction": "mean"}
    return cx.EmpiricalRisk(nn.Linear(2, 1).double(), loss, data, **options)


def quartic(output, target):
    return (output - target).pow(4).mean()


@pytest.fixture(scope="module")
def report():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    measured = measure(classification(), "two < layers", rounds=2)
    torch.set_num_threads(before)
    return measured


class Page(HTMLParser):
    """What a page contains; an element that is not closed where it should be raises."""

    VOID = ("meta", "br", "line", "polygon", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.words.append(words)


def test_the_parts_have_the_traces_of_their_blocks(report):
    risk = classification()
    assert [(g.name, g.size) for g in report.groups] == [("0", 56), ("2", 36)]
    dense = {
        "H": risk.hessian().to_dense(),
        "G = F": risk.ggn().to_dense(),
        "F_emp": risk.empirical_fisher().to_dense(),
    }
    for name, matrix in dense.items():
        diagonal = matrix.diagonal().split([56, 36])
        for group, entries in zip(report.groups, diagonal, strict=True):
            trace, share = group.traces[name], group.shares[name]
            off = abs(float(trace.value - entries.sum()))
            assert off <= 3.5 * float(trace.standard_error) + 1e-12
            truth = float(entries.sum() / sum(abs(d.sum()) for d in diagonal))
            assert abs(float(share.value) - truth) <= 3.5 * float(share.standard_error) + 1e-12
        assert sum(abs(float(g.shares[name].value)) for g in report.groups) == pytest.approx(1)
    assert all(float(g.traces["F_emp"].standard_error) == 0 for g in report.groups)
    assert all(float(g.traces["H"].standard_error) > 0 for g in report.groups)


def test_the_figures_are_those_of_the_library(report):
    risk = classification()
    assert str(report.comparison) == str(cx.compare(risk))
    assert report.point.verdict == cx.critical_point(risk).verdict == "not critical"
    assert report.samples == 40 and report.loss == "cross-entropy, mean"
    assert list(report.densities) == ["H", "G = F", "F_emp"]
    assert report.costs[0].gradients == 1
    assert all(c.seconds > 0 and c.gradients > 0 for c in report.costs)
    assert len(report.costs) == 6


def test_a_loss_without_likelihood_has_a_report_too():
    report = measure(regression(quartic), rounds=1)
    assert list(report.densities) == ["H", "G", "F_emp"] and report.loss == "custom, mean"
    text = " ".join(Page(as_html(report)).words)
    assert "does not say of which distribution" in text and "is not defined: there is no F" in text


def test_the_page_stands_alone(report):
    text = as_html(report)
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", text)
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes
    assert "@media print" in text
    assert page.tags.count("svg") == 3 and "two &lt; layers" in text and "two < layers" not in text
    words = " ".join(page.words)
    for expected in (
        "not critical",
        "Leading eigenvalues",
        "Where the curvature is",
        "What it costs",
    ):
        assert expected in words
    assert len(text) < 200_000


def test_no_part_of_the_page_has_a_fixed_width_over_a_phones(report):
    text = as_html(report)
    widths = [float(n) * 16 for n in re.findall(r"min(?:max)?\((?:100%,)?([\d.]+)rem", text)]
    assert [w for w in widths if w > 358] == []
    assert not re.search(r"(?<!max-)(?<!-)width:\d{3,}px", text)


def test_many_parts_are_cut_to_the_largest():
    torch.manual_seed(1)
    layers = [layer for _ in range(30) for layer in (nn.Linear(2, 2), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(2, 2)).double()
    data = (torch.randn(10, 2).double(), torch.randint(2, (10,)))
    report = measure(cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data), rounds=1)
    assert len(report.groups) == 31
    text = as_html(report)
    assert text.count('class="part"') == 24 and "7 more parts, 42 parameters in all" in text


def test_json_holds_the_same_figures(report):
    read = json.loads(as_json(report))
    assert read["point"]["verdict"] == "not critical" and "direction" not in read["point"]
    distance = read["comparison"]["distances"]["H, G"]
    assert distance["value"] == float(report.comparison.distances["H", "G"].value)
    assert len(read["densities"]["H"]["grid"]) == len(report.densities["H"].grid)
    assert [g["name"] for g in read["groups"]] == ["0", "2"]
    # ‖G − F_emp‖ / ‖F_emp‖ is inf where every residual is zero: no number in JSON
    fitted = regression(nn.MSELoss())
    with torch.no_grad():
        fitted._model.weight.zero_(), fitted._model.bias.zero_()
    zero = cx.EmpiricalRisk(
        fitted._model, nn.MSELoss(), (torch.randn(9, 2).double(), torch.zeros(9, 1).double())
    )
    read = json.loads(as_json(measure(zero, rounds=1)))
    assert read["comparison"]["distances"]["G, F_emp"]["value"] is None


def test_a_chart_shows_every_isolated_eigenvalue():
    values = torch.cat([torch.zeros(500), torch.tensor([1.0, 3.0])])
    A = cx.Identity(502)
    A = type(
        "Diagonal",
        (),
        {
            "shape": A.shape,
            "dtype": torch.float64,
            "device": "cpu",
            "matvec": lambda self, v: values * v,
        },
    )()
    svg = density_chart("A", cx.spectral_density(A, 10, 60), [1.0, 3.0], "#123456")
    line = re.search(r'<polyline points="([^"]+)"', svg).group(1)
    points = [tuple(map(float, p.split(","))) for p in line.split()]
    bottom = max(y for _, y in points)
    peaks = [
        x
        for (x0, y0), (x, y), (x1, y1) in zip(points, points[1:], points[2:], strict=False)
        if y < y0 and y <= y1 and y < bottom - 1
    ]
    assert len(peaks) == 3
    assert (peaks[1] - peaks[0]) / (peaks[2] - peaks[0]) == pytest.approx(1 / 3, abs=0.02)
    assert svg.count('stroke="#123456"') == 3, "the line and two marks"


@pytest.mark.parametrize(
    "left, right", [(0.0, 1.0), (-0.3, 17.0), (1e-9, 2e-9), (-5e6, -1e6), (0.999, 1.001)]
)
def test_ticks_are_round_few_and_inside(left, right):
    found = ticks(left, right)
    assert (
        2 <= len(found) <= 7
        and left <= found[0]
        and found[-1] <= right * (1 + 1e-9 * (right > 0)) + 1e-30
    )


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"), (1.5, "1.5"), (-0.25, "−0.25"), (12345.6, "12346"), (1e-4, "1·10⁻⁴"),
        (-2.34e-12, "−2.34·10⁻¹²"), (float("inf"), "∞"), (float("nan"), "–"), (1.2e7, "1.2·10⁷"),
    ],
)  # fmt: skip
def test_numbers_read_as_by_hand(value, text):
    assert plain_number(value) == text


def test_times_read_in_their_unit():
    assert [seconds(t) for t in (2.0, 0.0123, 4.5e-6)] == ["2 s", "12.3 ms", "4.5 µs"]


def run(folder, *arguments):
    """The command in a folder of the user's, as a process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "curvext", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def test_the_command_reports_on_a_users_risk(tmp_path):
    (tmp_path / "mine.py").write_text(USERS_MODULE)
    done = run(tmp_path, "report", "mine:risk", "-o", "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "page.html\n" and "comparing the matrices" in done.stderr
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert "Curvature of mine:risk" in " ".join(page.words)


def test_the_demo_is_reported_on(tmp_path, capsys):
    pytest.importorskip("sklearn")
    main(["report", "--demo", "-o", str(tmp_path / "demo.json"), "--steps", "20", "--probes", "4"])
    read = json.loads((tmp_path / "demo.json").read_text("utf-8"))
    assert read["comparison"]["size"] == 2410 and read["samples"] == 1797
    assert read["comparison"]["value"] < 0.1, "it has learned the digits"
    assert capsys.readouterr().out.strip().endswith("demo.json")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["mine:risk", "-o", "page.txt"],
            r"-o: expected a file name that ends in .html or .json, got 'page.txt'",
        ),
        (["mine:risk", "-o", "absent/page.html"], "-o: there is no folder 'absent'"),
        (["mine", "-o", "a.html"], "expected module:function, got 'mine'"),
        (["mine:absent", "-o", "a.html"], "mine has no function 'absent'"),
        (["absent:risk", "-o", "a.html"], "there is no module 'absent' here or on the path"),
        (
            ["mine:number", "-o", "a.html"],
            r"mine:number must return a curvext.EmpiricalRisk, it returned int",
        ),
        (["-o", "a.html"], "expected either module:function or --demo"),
        (["mine:risk", "--demo"], "expected either module:function or --demo"),
        (
            ["mine:risk", "--leading", "0"],
            "error: argument --leading: expected an integer of at least 1, got '0'",
        ),
        (["mine:risk", "--probes", "1"], "error: argument --probes: expected .* 2, got '1'"),
        (["mine:risk", "--steps", "-3"], "error: argument --steps: expected .* 1, got '-3'"),
        (["mine:risk", "--steps", "x"], "error: argument --steps: expected .* 1, got 'x'"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    arguments, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine.py").write_text(USERS_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="2"):
        main(["report", *arguments])
    assert re.search(f"curvext report: {message}", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.html"))


def test_the_users_own_mistakes_keep_their_traceback(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(USERS_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(TypeError, match="the user's own mistake"):
        main(["report", "mine:broken", "-o", "a.html"])


def test_only_a_risk_can_be_measured():
    with pytest.raises(
        TypeError, match="report: expected a curvext.EmpiricalRisk, got HessianOperator"
    ):
        measure(classification().hessian())


def test_info_is_still_told(capsys):
    main(["info"])
    assert f"curvext    {cx.__version__}" in capsys.readouterr().out
