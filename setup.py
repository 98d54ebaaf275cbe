"""Builds ``curvext._C``: the CPU kernels always, the CUDA kernels where torch and a toolkit allow it.

What is compiled, and how, is in ``curvext/_compile.py``. Where torch or a working compiler is missing the installation
goes on without the extension, and ``python -m curvext build`` compiles it later, from the sources that every
distribution carries. ``CURVEXT_REQUIRE_EXTENSION=1`` makes that an error; ``CURVEXT_NO_EXTENSION=1`` compiles nothing,
for an installation that only adds packages to one whose extension is there.

A wheel with the extension has the tag of its Python and platform, one without it the tag py3-none-any. pip's cache
knows wheels by their tags alone and prefers the narrower: so the two never have one name. A suffix of the version
would not do: pip refuses a source distribution from an index whose metadata state another version than its file name.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, ExecError, PlatformError

ROOT = Path(__file__).resolve().parent
FAILURES = (
    CCompilerError,
    ExecError,
    OSError,
    PlatformError,
    RuntimeError,
    subprocess.SubprocessError,
)
REQUIRED = os.environ.get("CURVEXT_REQUIRE_EXTENSION") == "1"


def say_not_built(why: str) -> None:
    """Says it on the terminal too: pip shows the output of a build only with -v."""
    words = (
        f"\ncurvext: the native kernels were NOT built: {why}.\n"
        "curvext works without them, more slowly. After the installation compile them with\n"
        "    python -m curvext build\n"
    )
    print(words, file=sys.stderr)
    # no terminal, as in CI, is no error
    with suppress(OSError), open("/dev/tty", "w") as terminal:
        if not sys.stderr.isatty():
            terminal.write(words)


class BuildWithSources(build_py):
    """Puts the C++ and CUDA sources beside the modules, for ``python -m curvext build``."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "curvext" / "csrc"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", target)

    def get_outputs(self, include_bytecode=True):
        copied = [
            str(Path(self.build_lib) / "curvext" / path.relative_to(ROOT))
            for path in (ROOT / "csrc").rglob("*")
            if path.is_file()
        ]
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else copied)


def compiling():
    """What to compile the extension of, as keywords of ``setup``; nothing where torch is missing."""
    if os.environ.get("CURVEXT_NO_EXTENSION") == "1":
        if REQUIRED:
            sys.exit(
                "setup.py: CURVEXT_NO_EXTENSION=1 and CURVEXT_REQUIRE_EXTENSION=1 contradict each other"
            )
        return {}
    try:
        import torch  # noqa: F401
    except ImportError:
        if REQUIRED:
            raise
        say_not_built("torch is not there while it is built, as it is in pip's isolated builds")
        return {}
    # by its path: importing the package would load what is to be built
    spec = importlib.util.spec_from_file_location(
        "_curvext_compile", ROOT / "curvext" / "_compile.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class OptionalBuild(module.BuildExtension):
        """Lets the installation go on where nothing can be compiled."""

        def run(self):
            try:
                super().run()
            except FAILURES as error:
                if REQUIRED:
                    raise
                self.go_on_without(error)

        def go_on_without(self, error):
            self.extensions = self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True
            say_not_built(str(error).strip().splitlines()[-1] if str(error) else repr(error))

    return {
        "ext_modules": [module.extension(ROOT)],
        "cmdclass": {"build_ext": OptionalBuild, "build_py": BuildWithSources},
    }


setup(**{"cmdclass": {"build_py": BuildWithSources}, **compiling()})
