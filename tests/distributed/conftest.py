"""Two and three processes for each file of tests here."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from ranks import Ranks

if not dist.is_available() or not dist.is_gloo_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request):
    started = Ranks(request.param)
    yield started
    started.close()
