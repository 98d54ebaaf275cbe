"""Every block of Python in README.md and docs/ runs; a page is one program."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(page: Path) -> int:
    """Runs the blocks of a page and tells how many; a failure names the page and its line."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        lines_before = text[: block.start(1)].count("\n")
        code = compile("\n" * lines_before + block.group(1), str(page), "exec")
        exec(code, namespace)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_on_the_page_runs(page: Path) -> None:
    run_blocks(page)


def test_the_pages_that_teach_have_code() -> None:
    with_code = {page.name for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))}
    assert {
        "README.md",
        "which_matrix.md",
        "conventions.md",
        "how_it_works.md",
        "recipes.md",
    } <= with_code


def test_a_wrong_block_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text("text\n```python\na = 1\n```\n```python\nassert a == 2\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page)


def test_links_between_pages_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:)([^)#]+)")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in link.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readme_quotes_the_figures_of_the_committed_benchmark():
    kept = json.loads((ROOT / "benchmarks/results/cpu-2core-cascade-lake/models.json").read_text())
    ratio = {(row["network"], row["quantity"]): row["gradients"] for row in kept["rows"]}
    table = re.findall(
        r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(table) == 8
    for label, *cells in table:
        quantity = label.replace("per-sample gradient norms", "norms").replace(", kept", " kept")
        quantity = quantity.replace(", from scratch", "")
        for network, cell in zip(("mlp", "cnn", "gpt"), cells, strict=True):
            assert cell == f"{ratio[network, quantity]:.2f}", (label, network)
