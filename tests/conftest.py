"""What every test shares: two threads, a device, and float32 that is not rounded to TF32.

That warnings are errors stands in pyproject.toml.
"""

from __future__ import annotations

import signal

import pytest
import torch
from workspaces import workspace

from curvext.gradients import convolution
from curvext.operations import attention_formulas as attention


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=100, help="random networks of test_fuzz.py")
    parser.addoption("--fuzz-seed", type=int, default=0, help="of the first of them")
    parser.addoption(
        "--all-networks",
        action="store_true",
        help="every network, where a test takes some of each kind",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)
    torch.backends.cudnn.allow_tf32 = False  # PyTorch lets cuDNN round, but no other product
    # a run that is cut off says what had failed until then
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device once; a test on an absent one is skipped, and so counted."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    """Fixed seeds before a test, and the global switches of PyTorch as they were after it."""
    torch.manual_seed(0)
    before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    yield
    after = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    assert after == before, f"(default dtype, grad mode, threads) were {before}, are {after}"


@pytest.fixture
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> int:
    """4 KiB for whatever takes its work in pieces, so that what a test can afford comes in several."""
    size = 4096
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(convolution._CHUNK_BYTES, device, size)
        monkeypatch.setitem(attention._CHUNK, device, size // 8)  # elements
    with workspace(size):
        yield size


@pytest.fixture
def one_thread():
    """One thread, where tensors are so small that handing work to a second takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
