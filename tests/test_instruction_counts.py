"""Instructions of two CPU kernels, counted by valgrind; skipped, and so counted, where it is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "tools" / "instruction_counts.py"
specification = importlib.util.spec_from_file_location("instruction_counts", SOURCE)
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        tool.check_available()
        tool.expected()
    except tool.Unavailable as why:
        pytest.skip(f"instructions are not counted: {why}")
    return tool.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def found(program) -> dict[str, int]:
    return tool.counts(program)


def test_no_kernel_takes_more_instructions_than_is_written_down(found):
    assert tool.differences(found, tool.expected()) == []


def test_a_second_count_is_the_same(program, found):
    assert tool.counts(program) == found


def test_a_slower_build_is_caught(found, tmp_path):
    slower = tool.counts(tool.build(tmp_path, ("-std=c++20", "-O1", "-Wno-psabi")))
    assert tool.differences(slower, found)


def test_a_difference_names_the_kernel_and_both_counts():
    before = dict.fromkeys(tool.KERNELS, 1000)
    words = tool.differences({**before, "outer_square": 1100}, before)
    assert words == ["outer_square: 1100 instructions, expected 1000 (+10.0%, tolerance 3%)"]
    assert tool.differences({**before, "outer_square": 1029}, before) == []
