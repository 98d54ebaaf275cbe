"""The compiled extension: how it is found, what is said where it is missing, how it is compiled; what wheels carry."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import curvext
from curvext import _build, _extension
from curvext.__main__ import main

ROOT = Path(__file__).resolve().parents[1]

#: a whole extension in a few lines, without torch's headers, so that it compiles in a second
SMALL = """
#include <Python.h>
static PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s}", "torch", "%s");
}
static PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, nullptr}, {nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods};
PyMODINIT_FUNC __attribute__((visibility("default"))) PyInit__C() { return PyModule_Create(&module); }
"""

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None
    or shutil.which("ninja", path=_build._environment(None)["PATH"]) is None,
    reason="needs a C++ compiler and ninja",
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of its own that holds csrc, and a cache folder of its own."""
    folder = tmp_path / "curvext"
    (folder / "csrc").mkdir(parents=True)
    (folder / "csrc" / "bindings.cpp").write_text(SMALL % torch.__version__)
    monkeypatch.setattr(_extension, "PACKAGE", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def copy(tmp_path):
    """The package without its extension, on a path of its own."""
    shutil.copytree(
        _extension.PACKAGE,
        tmp_path / "site" / "curvext",
        ignore=shutil.ignore_patterns("_C*", "__pycache__"),
    )
    return tmp_path / "site"


def run(copy: Path, script: Path) -> list[str]:
    """The warnings of a script that runs on the copy: lines of stderr that name one."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONWARNINGS": "always",
        "XDG_CACHE_HOME": str(copy / "cache"),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "ReferenceFallbackWarning" in line]


USE = """import torch
import curvext as cx

model, loss = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
data = (torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
cx.fisher_diagonal(model, loss, data)
cx.EmpiricalRisk(model, loss, data).hessian() @ torch.ones(8)
"""


def test_a_missing_extension_is_told_once_at_the_users_line_with_the_command(copy, tmp_path):
    script = tmp_path / "use.py"
    script.write_text(USE)
    (told,) = run(copy, script)
    assert told.startswith(f"{script}:6:")
    assert "python -m curvext build" in told and "have not been compiled" in told


def test_an_extension_that_does_not_load_is_told_as_such(copy, tmp_path):
    script = tmp_path / "use.py"
    script.write_text(USE)
    (copy / "curvext" / f"_C{_extension.SUFFIX}").write_bytes(b"of another torch")
    (told,) = run(copy, script)
    assert "does not load with torch" in told and "built against another torch" in told
    assert "python -m curvext build" in told


@pytest.mark.skipif(_extension.module is None, reason="needs the extension")
def test_an_extension_of_another_torch_is_refused_also_where_it_would_load(monkeypatch):
    (path, *_) = _extension.candidates()
    _extension.load(path)
    monkeypatch.setattr(torch, "__version__", "1.99.0")
    with pytest.raises(ImportError, match="it was built against torch 2"):
        _extension.load(path)


def test_the_cache_is_asked_after_the_package_and_for_this_torch_and_these_sources_alone(
    package, monkeypatch
):
    name = f"_C{_extension.SUFFIX}"
    kept = _extension.cache_folder() / "g++-12" / name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    assert _extension.candidates() == [kept]
    (package / name).write_bytes(b"")
    assert _extension.candidates() == [package / name, kept]
    (package / name).unlink()
    (package / "csrc" / "more.h").write_text("// another version")
    assert _extension.candidates() == []
    (package / "csrc" / "more.h").unlink()
    monkeypatch.setattr(torch, "__version__", "1.99.0")
    assert _extension.candidates() == []


# ---------------------------------------------------------------------- python -m curvext build


@needs_compiler
def test_build_compiles_into_the_package_and_says_each_file(package, capsys):
    main(["build", "--jobs", "1"])
    (built,) = package.glob("_C*")
    assert _extension.load(built).build_info() == {"torch": torch.__version__}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("compiling curvext") and said[1] == "  [1/1] bindings.cpp"
    assert said[-1].startswith(str(built))


@needs_compiler
def test_build_goes_to_the_cache_where_the_package_cannot_be_written(package, monkeypatch):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != package and access(path, mode)
    )
    built = _build.build(lambda line: None)
    assert not list(package.glob("_C*"))
    assert _extension.candidates() == [built]


@needs_compiler
def test_a_failed_compilation_quotes_the_compiler_and_leaves_the_old_extension(package, capsys):
    old = package / f"_C{_extension.SUFFIX}"
    old.write_bytes(b"old")
    (package / "csrc" / "bindings.cpp").write_text("int f() { return undeclared; }")
    with pytest.raises(SystemExit, match="1"):
        main(["build"])
    assert "undeclared" in capsys.readouterr().err
    assert old.read_bytes() == b"old"


@needs_compiler
def test_what_compiles_but_does_not_load_is_refused(package):
    (package / "csrc" / "bindings.cpp").write_text(SMALL % "1.2.3")
    with pytest.raises(_build.BuildError, match="does not load: .*built against torch 1.2.3"):
        _build.build(lambda line: None)
    assert not list(package.glob("_C*"))


@pytest.mark.parametrize(
    "missing, message",
    [
        ("ninja", "ninja is missing; install it with: python -m pip install ninja"),
        ("c++", "there is no C[+][+] compiler 'c[+][+]'"),
    ],
)
def test_a_missing_tool_is_named_with_the_way_to_it(package, monkeypatch, missing, message):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: None if name == missing else f"/bin/{name}"
    )
    with pytest.raises(_build.BuildError, match=message):
        _build.build()


def test_missing_sources_are_named(package):
    (package / "csrc" / "bindings.cpp").unlink()
    with pytest.raises(_build.BuildError, match="csrc with the C[+][+] sources is missing"):
        _build.build()


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"curvext {curvext.__version__}\n"


# ---------------------------------------------------------------------- what is distributed


def test_a_wheel_that_could_not_be_compiled_is_of_any_platform_and_carries_the_sources(tmp_path):
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "curvext"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_C*", "__pycache__")
        )
    environment = {**os.environ, "CXX": "false", "CC": "false", "CURVEXT_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NOT built" in done.stderr and "python -m curvext build" in done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    assert {
        "curvext/py.typed",
        "curvext/csrc/bindings.cpp",
        "curvext/csrc/cpu/isa/avx2.cpp",
    } <= names
    assert not [name for name in names if "/_C." in name or name.startswith("tests")]


def test_a_wheel_needs_nothing_but_the_system_and_what_make_wheel_leaves_to_torch():
    built = next((path for path in _extension.candidates() if path.is_file()), None)
    if built is None or shutil.which("readelf") is None:
        pytest.skip("needs the extension and readelf")
    told = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", told.stdout))
    left_out = re.findall(r"--exclude '(.+?)'", (ROOT / "Makefile").read_text())
    of_torch = {name for name in needed if any(fnmatch(name, pattern) for pattern in left_out)}
    assert "libtorch_cpu.so" in of_torch and "libgomp.so.1" in of_torch
    # what auditwheel lets a wheel of manylinux take from the system
    system = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0"}
    assert {n for n in needed - of_torch if not n.startswith("ld-linux")} <= system
