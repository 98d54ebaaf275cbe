"""Plants errors one by one in a copy of the tree, and says which of them the tests do not see.

``python tools/mutate.py [--list FILE] [NAME ...]`` reads a list of errors (``tools/mutations.toml``): a text of a file,
what takes its place, and the tests that should fail. It works in a copy of the tree under ``build``; an error in C++ is
compiled there, the objects that depend on its file alone; one in ``csrc/cuda`` for the CPU, as
``tools/cuda_emulation.py`` does. The tree itself is never touched. The exit status is 1 if an
error survives, or if its tests fail without it; a test run that crashes has seen it. Needs Python 3.11, which reads
TOML.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
#: by the kind of an error, kept between runs, so that only what changed is compiled; Python alone needs no compiler
COPIES = {
    "python": ROOT / "build" / "mutations_python",
    "native": ROOT / "build" / "mutations",
    "emulated": ROOT / "build" / "mutations_cuda",
}
COMPILE = {
    "native": ["setup.py", "build_ext", "--inplace"],
    "emulated": ["tools/cuda_emulation.py", "--build"],
}
PYTEST = {
    "python": ["-m", "pytest"],
    "native": ["-m", "pytest"],
    "emulated": ["tools/cuda_emulation.py"],
}
LIST = ROOT / "tools" / "mutations.toml"
#: folders of which every file counts
COMPILED = ("csrc", "tools/emulation")
EMULATION = ROOT / "tools" / "emulation"


@dataclass(frozen=True)
class Mutation:
    """One error.

    Args:
        name: what is wrong, in a few words.
        file: from the root of the tree.
        text: what stands there, once.
        planted: what takes its place.
        tests: arguments of pytest, relative to the root.
    """

    name: str
    file: str
    text: str
    planted: str
    tests: list[str]

    @property
    def kind(self) -> str:
        if self.file.startswith("csrc/cuda/"):
            return "emulated"
        return "native" if self.file.startswith("csrc/") else "python"


def read(path: Path) -> list[Mutation]:
    with path.open("rb") as file:
        return [Mutation(**entry) for entry in tomllib.load(file)["mutation"]]


def planted(mutation: Mutation, text: str) -> str:
    """The file's text with the error.

    Raises:
        ValueError: its text is not there once, or the emulation has a file of its own in place of this one.
    """
    if mutation.kind == "emulated" and (EMULATION / Path(mutation.file).name).exists():
        raise ValueError(
            f"mutate: {mutation.name!r}: the emulation has its own {Path(mutation.file).name}, so nothing would change"
        )
    count = text.count(mutation.text)
    if count != 1:
        raise ValueError(
            f"mutate: {mutation.name!r}: {mutation.file} has its text {count} times, expected once: {mutation.text!r}"
        )
    return text.replace(mutation.text, mutation.planted)


def synchronise(copy: Path) -> None:
    """Makes the copy what the tree is; what did not change keeps its time, so that its object stays new.

    Sources that the tree no longer has are removed, as all that lie in a folder are compiled.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = listed.stdout.splitlines()
    for path in [p for folder in COMPILED for p in (copy / folder).rglob("*") if p.is_file()]:
        if path.relative_to(copy).as_posix() not in names:
            path.unlink()
    for name in names:
        source, target = ROOT / name, copy / name
        if not source.is_file():
            target.unlink(missing_ok=True)
        elif not target.exists() or source.read_bytes() != target.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def environment(copy: Path) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)  # ninja may lie there
    return os.environ | {
        "PYTHONPATH": str(copy),
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "CURVEXT_REQUIRE_EXTENSION": "1",
    }


def build(copy: Path, kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *COMPILE[kind]]
    return subprocess.run(
        command, cwd=copy, env=environment(copy), capture_output=True, text=True, check=False
    )


def give_extension(copy: Path, kind: str) -> None:
    """Compiles the copy's extension, or takes the tree's own."""
    if kind not in COMPILE:
        for library in ROOT.glob("curvext/_C*.so"):
            shutil.copyfile(library, copy / "curvext" / library.name)
        return
    done = build(copy, kind)
    if done.returncode:
        sys.exit(f"mutate: the copy does not compile\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def run(tests: list[str], copy: Path, kind: str) -> tuple[bool, str]:
    """Whether the tests pass, and the first that fails, or pytest's last line; a crash is a failure."""
    command = [sys.executable, *PYTEST[kind], "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *tests],
        cwd=copy,
        env=environment(copy),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    if done.returncode > 2:
        sys.exit(f"mutate: pytest {' '.join(tests)} did not run: {lines[-1]}")
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, (failed or lines)[-1]


def judge(mutation: Mutation, copy: Path) -> tuple[str, str]:
    """ "seen", "SURVIVES" or "DOES NOT COMPILE", and what told so."""
    path = copy / mutation.file
    clean = path.read_text()
    path.write_text(planted(mutation, clean))
    try:
        if mutation.kind in COMPILE:
            done = build(copy, mutation.kind)
            if done.returncode:
                return "DOES NOT COMPILE", (done.stdout + done.stderr)[-2000:]
        passes, line = run(mutation.tests, copy, mutation.kind)
        return ("SURVIVES" if passes else "seen"), line
    finally:
        path.write_text(clean)


def clean_tests_pass(mutations: list[Mutation], copy: Path) -> bool:
    """Whether the tests that errors of one kind ask pass without them: one that fails anyway sees nothing."""
    every = sorted({tuple(m.tests) for m in mutations})
    failed = [
        (tests, line)
        for tests in every
        for passes, line in [run(list(tests), copy, mutations[0].kind)]
        if not passes
    ]
    for tests, line in failed:
        print(f"mutate: fails without an error: {' '.join(tests)}: {line}")
    return not failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="plant only errors whose name or file has one of these"
    )
    parser.add_argument("--list", type=Path, default=LIST, help="the list of errors")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="do not run the tests without errors first: one that fails anyway counts as seeing",
    )
    options = parser.parse_args()
    mutations = read(options.list)
    if options.names:
        mutations = [m for m in mutations if any(n in m.name or n in m.file for n in options.names)]
    if not mutations:
        sys.exit(
            f"mutate: no error has one of these in its name or file: {' '.join(options.names)}"
        )
    for mutation in mutations:  # before anything is built
        planted(mutation, (ROOT / mutation.file).read_text())
    survivors, kinds_not_clean = 0, []
    for kind, copy in COPIES.items():
        # one file after the other: what was planted in it before is compiled away with what comes next
        planned = sorted((m for m in mutations if m.kind == kind), key=lambda m: m.file)
        if not planned:
            continue
        synchronise(copy)
        give_extension(copy, kind)
        if not options.trust and not clean_tests_pass(planned, copy):
            kinds_not_clean.append(kind)
            continue
        for mutation in planned:
            begin = time.monotonic()
            verdict, line = judge(mutation, copy)
            survivors += verdict != "seen"
            print(
                f"{verdict:9} {time.monotonic() - begin:5.0f} s  {mutation.file}: {mutation.name}\n          {line}",
                flush=True,
            )
    tried = [m for m in mutations if m.kind not in kinds_not_clean]
    unsure = ", by tests that were not run without errors" if options.trust else ""
    print(f"{len(tried) - survivors} of {len(tried)} errors are seen{unsure}")
    if kinds_not_clean:
        print(f"not tried, as tests fail without an error: {', '.join(kinds_not_clean)}")
    sys.exit(bool(survivors or kinds_not_clean))


if __name__ == "__main__":
    main()
