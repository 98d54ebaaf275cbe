"""The page and the tree cannot drift apart: who imports whom, and every kernel whole."""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "curvext"

#: bottom to top; the same level are strangers, but a package is one unit
LEVELS = [
    {"torch_internals", "_extension"},
    {
        "arguments",
        "attributes",
        "dtypes",
        "errors",
        "fingerprints",
        "finite",
        "memory",
        "progress",
        "randomness",
    }
    | {"_C", "_compile", "_version"},
    {"reading", "reference", "space", "data", "cache", "storage", "processes", "plotting"}
    | {"student"},
    {"kernels", "_build", "results"},
    {"losses", "graph", "samples"},
    {"gradients"},
    {"operations"},
    {"evaluation"},
    {"per_sample", "products"},
    {"problem", "training"},
    {"options"},
    {"operators", "algorithms"},
    {"kronecker", "check"},
    {"risk"},
    {"report", "laplace"},
    {"__main__"},
]
#: algorithms see only shape, dtype, device and matvec; they and the operators are strangers
ALGORITHMS_MAY_IMPORT = {"arguments", "dtypes", "errors", "kernels", "progress", "results"}
#: third-party packages that are optional, so that they may be imported where they are used
OPTIONAL = {"scipy", "numpy", "tqdm", "transformers", "matplotlib", "safetensors", "sklearn"}


def unit_of(path: Path) -> str:
    """The unit of the import table a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py"))
UNITS = sorted({unit_of(p) for p in FILES} - {"__init__"})  # the door may import all


def imports(path: Path, source: str | None = None) -> list[tuple[str, int, bool]]:
    """(module, line, whether at the top level) of every import that happens at run time."""
    tree = ast.parse(path.read_text() if source is None else source)
    found: list[tuple[str, int, bool]] = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = absolute(path, child)
                if module == "curvext":
                    found.extend(
                        (f"curvext.{alias.name}", child.lineno, top) for alias in child.names
                    )
                else:
                    found.append((module, child.lineno, top))
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            walk(child, top and not inside)

    walk(tree, True)
    return found


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module a ``from ... import`` reads, without leading dots."""
    if node.level == 0:
        return node.module or ""
    package = ("curvext", *path.relative_to(PACKAGE).parts[:-1])
    return ".".join(
        [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
    )


def level_of(unit: str) -> int:
    for level, units in enumerate(LEVELS):
        if unit in units:
            return level
    raise AssertionError(
        f"curvext.{unit} has no place in the import table of this test; give it one"
    )


def forbidden(unit: str, target: str) -> str | None:
    """Why ``unit`` may not import ``target``, or None where it may."""
    if unit == target or unit == "__init__":
        return None
    if unit == "algorithms":
        return (
            None
            if target in ALGORITHMS_MAY_IMPORT
            else "algorithms see only shape, dtype, device, matvec"
        )
    if target == "algorithms":
        return (
            None
            if unit in ("report", "laplace", "__main__")
            else "only the user puts algorithms and operators together"
        )
    if unit == "reference":
        return "reference is the truth and imports torch only"
    if target == "__init__" or target not in {u for level in LEVELS for u in level} | set(UNITS):
        return f"{target} is no unit of the package"
    if level_of(target) >= level_of(unit):
        return f"{target} is not below {unit}"
    return None


def violations(path: Path, unit: str, source: str | None = None) -> list[str]:
    found = []
    for module, line, top in imports(path, source):
        first, *rest = module.split(".")
        if first == "curvext" and rest and (why := forbidden(unit, rest[0])):
            found.append(f"{path.name}:{line}: {unit} imports {module}: {why}")
        if not top and first not in OPTIONAL:
            found.append(f"{path.name}:{line}: {module} is imported inside a function")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    assert violations(path, unit_of(path)) == []


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_has_a_place_in_the_import_table(unit):
    assert 0 <= level_of(unit) < len(LEVELS)


@pytest.mark.parametrize(
    "unit, source, count",
    [
        ("losses", "from curvext.per_sample.backward_pass import BackwardPass", 1),
        ("space", "import curvext.data", 1),
        ("reference", "from curvext.errors import NoClosedFormError", 1),
        ("algorithms", "from curvext.operators import GGNOperator", 1),
        ("operators", "from curvext.algorithms import cg", 1),
        ("data", "def f():\n    import json", 1),
        ("data", "def f():\n    from curvext.risk import EmpiricalRisk", 2),
        ("data", "from .problem import Problem", 1),
        ("data", "from . import risk", 1),
        ("operators", "def f():\n    import scipy.sparse", 0),
        ("risk", "from curvext.operators import GGNOperator", 0),
        (
            "losses",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from curvext.risk import EmpiricalRisk",
            0,
        ),
    ],
)
def test_a_planted_import_is_seen(unit, source, count):
    assert len(violations(PACKAGE / "planted.py", unit, source)) == count


def test_reference_imports_torch_only():
    for path in (PACKAGE / "reference").glob("*.py"):
        outside = {m.split(".")[0] for m, _, _ in imports(path)} - {
            "torch",
            "__future__",
            "math",
            "typing",
            "collections",
            "curvext",
        }
        inside = {
            m
            for m, _, _ in imports(path)
            if m.startswith("curvext") and not m.startswith("curvext.reference")
        }
        assert not outside and not inside, f"{path.name}: {outside | inside}"


def test_nothing_is_called_utils():
    assert not [p for p in FILES if re.search(r"util|helper|common|misc", p.stem)]


# ---------------------------------------------------------------------- kernels


KERNELS = sorted(
    m.name for m in pkgutil.iter_modules([str(PACKAGE / "kernels")]) if not m.name.startswith("_")
)
PLACES = {
    "CPU source": "csrc/cpu/{k}.cpp",
    "CUDA source": "csrc/cuda/{k}.cu",
    "Python door": "curvext/kernels/{k}.py",
    "reference": "curvext/reference/{k}.py",
    "test": "tests/kernels/test_{k}.py",
    "benchmark": "benchmarks/kernels/{k}.py",
}


def test_there_are_kernels():
    assert KERNELS, "curvext/kernels has no kernel"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_whole(kernel, place):
    assert (ROOT / PLACES[place].format(k=kernel)).is_file(), PLACES[place].format(k=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_declared_and_documented(kernel):
    assert re.search(rf"\b{kernel}\b", (ROOT / "csrc/kernels.inc").read_text()), "csrc/kernels.inc"
    assert re.search(rf"^#+ .*\b{kernel}\b", (ROOT / "docs/kernels.md").read_text(), re.M), (
        "docs/kernels.md"
    )


@pytest.mark.parametrize(
    "folder, pattern",
    [
        ("csrc/cpu", "*.cpp"),
        ("csrc/cuda", "*.cu"),
        ("curvext/reference", "*.py"),
        ("tests/kernels", "test_*.py"),
        ("benchmarks/kernels", "*.py"),
    ],
)
def test_no_part_of_a_kernel_stands_alone(folder, pattern):
    strays = []
    for path in (ROOT / folder).glob(pattern):
        name = path.stem.removeprefix("test_") if folder == "tests/kernels" else path.stem
        if name not in KERNELS and not name.startswith("_") and name not in ("isa", "bounds"):
            strays.append(path.name)
    assert not strays, f"{folder}: {strays}"


def test_every_source_of_the_cpu_is_compiled():
    included = re.findall(r'#include "cpu/(\w+\.cpp)"', (ROOT / "csrc/cpu.cpp").read_text())
    assert sorted(included) == sorted(p.name for p in (ROOT / "csrc/cpu").glob("*.cpp"))


# ---------------------------------------------------------------------- devices


#: what makes a tensor, or draws numbers, on the default device unless told where
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace"),
    *("logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor"),
    *("sparse_coo_tensor", "tensor", "tril_indices", "triu_indices", "zeros", "Generator"),
}


def without_device(path: Path, source: str | None = None) -> list[str]:
    """The calls of factories that say of no device where."""
    found = []
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        module, name = node.func.value, node.func.attr
        if not isinstance(module, ast.Name) or module.id != "torch" or name not in FACTORIES:
            continue
        told = {k.arg for k in node.keywords} & {"device", None}  # None: **options
        if not told and not (name == "Generator" and node.args):
            found.append(f"{path.name}:{node.lineno}: torch.{name} without device=")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_factory_call_names_its_device(path):
    assert without_device(path) == []


@pytest.mark.parametrize(
    "source, count",
    [
        ("torch.zeros(3)", 1),
        ("torch.zeros(3, device=x.device)", 0),
        ("torch.zeros(3, **where)", 0),
        ("torch.Generator().manual_seed(0)", 1),
        ("torch.Generator('cpu')", 0),
        ("x.new_zeros(3), torch.zeros_like(x)", 0),
        ("f(torch.randperm(n, generator=g))", 1),
    ],
)
def test_a_factory_call_without_device_is_seen(source, count):
    assert len(without_device(PACKAGE / "planted.py", source)) == count


# ---------------------------------------------------------------------- operations


#: what a node's name looks like
NODE_NAME = re.compile(r"\w*Backward\d+|\w+Backward\b")
#: the files that read what PyTorch's nodes hold
READERS = {"operations/node.py", "graph/autograd_graph.py"}


def node_names(path: Path, source: str | None = None) -> list[str]:
    """The names of nodes in the strings of a file, docstrings included."""
    tree = ast.parse(path.read_text() if source is None else source)
    return [
        f"{path.name}:{node.lineno}: {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in NODE_NAME.findall(node.value)
    ]


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if unit_of(p) != "operations"],
    ids=lambda p: p.stem,
)
def test_what_depends_on_an_operation_stands_in_operations(path):
    assert node_names(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nodes_are_read_in_one_place(path):
    if str(path.relative_to(PACKAGE)) not in READERS:
        private = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        assert "_input_metadata" not in private
        assert not {a for a in private if a.startswith("_saved_")}
        assert '"_saved_' not in path.read_text()


@pytest.mark.parametrize(
    "source, count", [('x == "MmBackward0"', 1), ("f'{x}Backward0'", 1), ("'backward pass'", 0)]
)
def test_a_planted_node_name_is_seen(source, count):
    assert len(node_names(PACKAGE / "planted.py", source)) == count


# ---------------------------------------------------------------------- private PyTorch


#: fields of PyTorch's objects that its documentation does not name
PRIVATE_FIELDS = {
    *("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"),
    *("_backward_hooks", "_backward_pre_hooks", "_version", "_base", "_indices", "_values"),
    *("_input_metadata", "_raw_saved_self", "_is_compiling_flag", "_checkpoint_hook"),
    *("_cache_enabled", "_orig_mod", "_schema", "next_id"),
}
#: where private PyTorch may be read or written, and why; other places ask these
PRIVATE_PLACES = {
    "torch_internals/": "the room for it",
    "operations/": "reads what nodes saved, and calls attention and softmax by their private names",
    "graph/": "reads PyTorch's graph",
    "products/compiled.py": "works on a trace: pytree, and operations by their names",
    "products/partition.py": "reads the schema of traced operations",
    "per_sample/parcels.py": "_parameters is a field of the library's own class there",
    "per_sample/reductions.py": "torch._foreach_mul_, which PyTorch's optimizers call too",
}


def private_names(path: Path, source: str | None = None) -> list[str]:
    """Where a file reads what PyTorch does not document: underscored names below torch, and fields of its objects."""
    tree = ast.parse(path.read_text() if source is None else source)
    found, of_torch = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.split(".")[0] == "torch"]
            of_torch |= {alias.asname or "torch" for alias in names}
            full = [alias.name for alias in names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            of_torch |= {alias.asname or alias.name for alias in node.names}
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [f"{node.lineno}: {name}" for name in full if _is_private(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, names = _chain(node)
            if _names_a_field(names[-1]):
                if owner not in ("self", "cls") or len(names) > 1:
                    found.append(f"{node.lineno}: {names[-1]}")
            elif owner in of_torch and _is_private(names[-1]):
                found.append(f"{node.lineno}: {owner}.{'.'.join(names)}")
        elif isinstance(node, ast.Constant) and _names_a_field(node.value):
            found.append(f"{node.lineno}: {node.value!r}")
    return sorted(set(found))


def _names_a_field(value: object) -> bool:
    return isinstance(value, str) and (value in PRIVATE_FIELDS or value.startswith("_saved_"))


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _chain(node: ast.expr) -> tuple[str, list[str]]:
    """``a.b.c`` as a and [b, c]; whatever else is on the left has no name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return node.id if isinstance(node, ast.Name) else "", names


def place_of(path: Path) -> str | None:
    """Which of PRIVATE_PLACES a file belongs to."""
    name = path.relative_to(PACKAGE).as_posix()
    return next((place for place in PRIVATE_PLACES if name.startswith(place)), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_pytorch_is_read_in_its_rooms_only(path):
    if place_of(path) is None:
        assert private_names(path) == []


@pytest.mark.parametrize("place", PRIVATE_PLACES)
def test_no_room_for_private_pytorch_stands_empty(place):
    assert any(private_names(path) for path in FILES if place_of(path) == place)


@pytest.mark.parametrize(
    "source, count",
    [
        ("import torch\ntorch._C._nn.gelu", 2),
        ("import torch\ntorch.nn.functional.gelu(x)", 0),
        ("import torch.utils._pytree", 1),
        ("from torch.utils import _pytree as pytree", 1),
        ("from torch.utils import checkpoint\ncheckpoint._frame", 1),
        ("p._backward_hooks = None", 1),
        ("self._parameters = []", 0),
        ("self.model._parameters", 1),
        ("node._saved_self", 1),
        ("getattr(node, f'_saved_{name}')", 1),
        ("setattr(module, '_buffers', {})", 1),
        ("RemovableHandle.next_id", 1),
        ("operator._columns(x)", 0),
        ("import torch\ntorch.__version__", 0),
    ],
)
def test_a_planted_private_name_is_seen(source, count):
    assert len(private_names(PACKAGE / "planted.py", source)) == count


# ---------------------------------------------------------------------- size


#: a longer file says at its head why it is one: in its docstring, in words that begin so
LONG, REASON = 250, "One file because "


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_long_file_says_why(path):
    source = path.read_text()
    lines = source.count("\n")
    head = ast.get_docstring(ast.parse(source)) or ""
    assert lines <= LONG or REASON in head, f"{lines} lines"
