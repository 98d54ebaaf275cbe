"""Every block of Python in README.md and docs/ runs; a page is one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import curvext as cx
from curvext import errors, kernels, results

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK_TO_HEADING = re.compile(r"\]\((?!https?:)([^)#]+)#([^)]+)\)")
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


def without_a_page(names: list[str], package: str) -> list[str]:
    """Public names that no page documents by a directive, and kernels without a section."""
    text = {p: p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md")}
    documented = {name for t in text.values() for name in re.findall(r"^::: (\S+)", t, re.M)}
    sections = re.findall(r"^## (\w+)$", text[ROOT / "docs" / "kernels.md"], re.M)
    return [
        name
        for name in names
        if not {f"{package}.{name}", f"{package}.results.{name}"} & documented
        and not (package == "curvext.kernels" and name in sections)
    ]


def test_every_public_name_has_a_page():
    assert without_a_page([n for n in cx.__all__ if n != "__version__"], "curvext") == []
    assert without_a_page(kernels.__all__, "curvext.kernels") == []
    for module in (results, errors):
        classes = [c for c in vars(module).values() if isinstance(c, type)]
        own = [c.__name__ for c in classes if c.__module__.startswith(module.__name__)]
        own = [name for name in own if not name.startswith("_")]
        assert own and without_a_page(own, module.__name__) == []


def test_a_name_without_a_page_is_caught():
    assert without_a_page(["EmpiricalRisk", "Undocumented"], "curvext") == ["Undocumented"]


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        name = str(page.relative_to(ROOT / "docs"))
        assert f": {name}" in nav, f"{name} is not in mkdocs.yml"


def test_the_entry_page_reaches_every_page_in_one_step():
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    of_architecture = {page for page in pages if page.startswith("decisions/")}
    assert pages - of_architecture - {"index.md"} == set(linked)


def anchor(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_into_a_page_name_one_of_its_headings():
    for page in PAGES:
        for target, heading in LINK_TO_HEADING.findall(page.read_text(encoding="utf-8")):
            text = (page.parent / target).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert heading in {anchor(h) for h in headings}, f"{page.name}: {target}#{heading}"
