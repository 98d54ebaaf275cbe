"""Devices and instruction sets that every kernel test runs on."""

from collections.abc import Iterator

import pytest
import torch

from curvext import _extension

LEVELS = _extension.module.cpu.simd_levels() if _extension.module else ["reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A kernel of CUDA does not ask for the CPU's instruction set: its tests run beside one of them."""
    repeated = [item for item in items if _is_repeated(item)]
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if not _is_repeated(item)]


def _is_repeated(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("device") == "cuda" and parameters.get("simd", LEVELS[-1]) != LEVELS[-1]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=LEVELS)
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the CPU kernels on one instruction set, and gives back the best one afterwards."""
    if _extension.module is None:
        yield request.param
        return
    before = _extension.build_info()["simd"]
    _extension.module.cpu.use_simd(request.param)
    yield request.param
    _extension.module.cpu.use_simd(before)


@pytest.fixture(params=[True, False], ids=["tiles", "library"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which of the two makes plain products, whatever processor this is."""
    if _extension.module is None:
        pytest.skip("no native kernels")
    before = _extension.build_info()["products_by_tiles"]
    _extension.module.cpu.use_products_by_tiles(request.param)
    yield
    _extension.module.cpu.use_products_by_tiles(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parameters that a class of tests names itself: its ``shapes``, ``pieces`` and the letters of its ``sizes``."""
    for argument, cases in (("shape", "shapes"), ("piece", "pieces"), ("axis", "sizes")):
        if argument in metafunc.fixturenames and hasattr(metafunc.cls, cases):
            metafunc.parametrize(argument, list(getattr(metafunc.cls, cases)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
