"""What tests of the estimators share: one thread."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """One thread: the matrices are so small that handing work to a second takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
