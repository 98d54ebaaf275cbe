"""Two and three processes for all files of tests here: starting them takes longer than most tests."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from ranks import Ranks

if not dist.is_available() or not dist.is_gloo_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", params=[2, 3])
def ranks(request):
    started = Ranks(request.param)
    yield started
    started.close()
