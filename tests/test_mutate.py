"""The list of planted errors stands: each of its texts is in its file once, and its tests are there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tools" / "mutate.py"
specification = importlib.util.spec_from_file_location("mutate", SOURCE)
tool = importlib.util.module_from_spec(specification)
sys.modules["mutate"] = tool  # where dataclasses look for annotations
specification.loader.exec_module(tool)
MUTATIONS = tool.read(tool.LIST)


def test_the_list_has_errors_of_every_kind():
    kinds = [m.kind for m in MUTATIONS]
    assert kinds.count("native") >= 10
    assert kinds.count("python") >= 25
    assert kinds.count("emulated") >= 5
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.name for m in MUTATIONS])
def test_an_error_can_still_be_planted(mutation):
    text = (ROOT / mutation.file).read_text()
    assert tool.planted(mutation, text) != text
    files = [word for word in mutation.tests if word.endswith(".py")]
    assert files and all((ROOT / name).is_file() for name in files)


def test_a_text_that_is_not_there_once_is_refused():
    mutation = tool.Mutation("x", "f.py", "a", "b", [])
    for text in ("", "a a"):
        with pytest.raises(ValueError, match="'x': f.py has its text [02] times, expected once"):
            tool.planted(mutation, text)


@pytest.mark.parametrize("verdict, value", [("seen", 1), ("SURVIVES", 2)])
def test_an_error_that_no_test_sees_is_told_and_the_file_put_back(verdict, value, tmp_path):
    (tmp_path / "code.py").write_text("VALUE = 2\n")
    (tmp_path / "test_code.py").write_text(
        f"import code_under_test\n\ndef test_it():\n    assert code_under_test.VALUE >= {3 - value}\n"
    )
    (tmp_path / "code.py").rename(tmp_path / "code_under_test.py")
    mutation = tool.Mutation(
        "less", "code_under_test.py", "VALUE = 2", "VALUE = 1", ["test_code.py"]
    )
    assert tool.judge(mutation, tmp_path)[0] == verdict
    assert (tmp_path / "code_under_test.py").read_text() == "VALUE = 2\n"


def test_a_test_that_crashes_has_seen_the_error(tmp_path):
    (tmp_path / "under_test.py").write_text("VALUE = 2\n")
    (tmp_path / "test_code.py").write_text(
        "import os, under_test\n\ndef test_it():\n    under_test.VALUE == 2 or os.abort()\n"
    )
    mutation = tool.Mutation("less", "under_test.py", "VALUE = 2", "VALUE = 1", ["test_code.py"])
    assert tool.judge(mutation, tmp_path)[0] == "seen"


def test_an_error_in_a_file_that_the_emulation_replaces_is_refused():
    (own, *_) = sorted(
        p.name for p in (ROOT / "csrc/cuda").iterdir() if (tool.EMULATION / p.name).exists()
    )
    mutation = tool.Mutation("x", f"csrc/cuda/{own}", "a", "b", [])
    with pytest.raises(ValueError, match="the emulation has its own"):
        tool.planted(mutation, "a")


def test_sources_that_the_tree_no_longer_has_leave_the_copy(tmp_path):
    stale = tmp_path / "csrc" / "cuda" / "gone.cu"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    tool.synchronise(tmp_path)
    assert not stale.exists() and (tmp_path / "csrc" / "kernels.inc").is_file()


def test_a_name_that_no_error_has_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mutate.py", "no error is called this"])
    with pytest.raises(SystemExit, match="no error has one of these"):
        tool.main()
