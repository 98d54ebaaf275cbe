"""The spectrum of a small GPT's Hessian, on data that lies on several processes.

    torchrun --nproc-per-node 2 examples/gpt_spectrum.py       # or: make demo-distributed
    python examples/gpt_spectrum.py                            # one process

Each process has every other sequence. The answer is that of all sequences, not a mean of the processes' own
spectra, and the last lines hold it against one process that has them all.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext

import torch
import torch.distributed as dist
from text import LOSS, LanguageModel, learn
from torch import Tensor, nn

import curvext as cx

SEQUENCES, LENGTH, LETTERS, WIDTH = 48, 12, 8, 16


def sequences() -> Tensor:
    """Letters that repeat with a period of two to five: what comes next can be copied from before."""
    generator = torch.Generator().manual_seed(1)
    motifs = torch.randint(LETTERS, (SEQUENCES, 5), generator=generator)
    periods = torch.randint(2, 6, (SEQUENCES, 1), generator=generator)
    return motifs.gather(1, torch.arange(LENGTH) % periods)


def trained(text: Tensor) -> nn.Module:
    """The same model on every process: the same seed and steps."""
    torch.manual_seed(0)
    model = LanguageModel(WIDTH, layers=2, heads=2, length=LENGTH).double()
    return learn(model, lambda: text, 80).eval()


def main() -> None:
    """Trains, takes the spectrum over the processes, and compares it with that of one."""
    alone = "WORLD_SIZE" not in os.environ  # torchrun sets it
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    text = sequences()
    model = trained(text)
    mine = text[rank::world]
    H = cx.HessianOperator(model, LOSS, (mine, mine), process_group=dist.group.WORLD)

    # a long run would name a folder that stays
    with tempfile.TemporaryDirectory() if rank == 0 else nullcontext("") as folder:
        folders = [folder]
        dist.broadcast_object_list(folders)
        top = cx.eigsh(H, 3, "LA", tol=1e-8, checkpoint=folders[0])
        dist.barrier()
    density = cx.spectral_density(H, probes=2, steps=30)
    if rank == 0:
        print(f"{world} processes, {len(mine)} of {len(text)} sequences here, P = {H.shape[0]}")
        print(top)
        print(density)
        one = cx.HessianOperator(model, LOSS, (text, text))
        same = cx.eigsh(one, 3, "LA", tol=1e-8)
        off = float(((top.values - same.values).abs() / same.values).max())
        assert off < 1e-9, f"eigenvalues are {off:.1e} off"
        print(f"One process with all sequences has the same eigenvalues: {off:.0e} apart.")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
