"""How much memory is free for kept items."""

from __future__ import annotations

import os

import torch


def available_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on ``device`` now: free GPU memory, or the system's available RAM."""
    if device.type == "cuda":
        # memory that PyTorch has reserved is free for its tensors, though not for other processes
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 4
    except (AttributeError, ValueError, OSError):
        return 2 << 30  # no Linux or POSIX interface: a modest guess
