"""Bars are shown where one is asked for, and nowhere else."""

from __future__ import annotations

import sys

import pytest
from matrices import vector, with_spectrum

import curvext as cx

CALLS = {
    "cg": lambda progress: cx.cg(with_spectrum([1.0, 2.0, 5.0]), vector(3), progress=progress),
    "eigsh": lambda progress: cx.eigsh(with_spectrum(range(200)), 2, progress=progress),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bar_counts_products_where_one_is_asked_for(name, capsys):
    pytest.importorskip("tqdm")
    shown = CALLS[name](True)
    assert name in capsys.readouterr().err
    silent = CALLS[name](False)
    assert capsys.readouterr().err == ""
    assert shown.products == silent.products


@pytest.mark.parametrize("name", CALLS)
def test_without_tqdm_a_bar_is_refused_and_nothing_else(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    CALLS[name](False)
    with pytest.raises(ImportError, match=f"{name}: progress=True needs tqdm: pip install"):
        CALLS[name](True)
