"""The spectrum of a small GPT's Hessian, on data that lies on several processes.

    torchrun --nproc-per-node 2 examples/gpt_spectrum.py       # or: make demo-distributed
    python examples/gpt_spectrum.py                            # one process

Each process has every other sequence. The answer is that of all sequences, not a mean of the processes' own
spectra, and the last lines hold it against one process that has them all.
"""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor, nn

import curvext as cx

SEQUENCES, LENGTH, LETTERS, WIDTH = 48, 12, 8, 16


class Block(nn.Module):
    """Causal attention and an MLP, each behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """Two blocks on letters and positions; logits of the next letter."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, LETTERS)

    def forward(self, text: Tensor) -> Tensor:
        x = self.letters(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return self.head(self.blocks(x))


def sequences() -> Tensor:
    """Letters that repeat with a period of two to five: what comes next can be copied from before."""
    generator = torch.Generator().manual_seed(1)
    motifs = torch.randint(LETTERS, (SEQUENCES, 5), generator=generator)
    periods = torch.randint(2, 6, (SEQUENCES, 1), generator=generator)
    return motifs.gather(1, torch.arange(LENGTH) % periods)


def trained(text: Tensor) -> GPT:
    """The same model on every process: the same seed and steps."""
    torch.manual_seed(0)
    model = GPT().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        logits = model(text)[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, text[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    """Trains, takes the spectrum over the processes, and compares it with that of one."""
    alone = "WORLD_SIZE" not in os.environ  # torchrun sets it
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    text = sequences()
    model, loss = trained(text), cx.CausalLMLoss()
    mine = text[rank::world]
    H = cx.HessianOperator(model, loss, (mine, mine), process_group=dist.group.WORLD)

    paths = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(paths)  # a long run would name a folder that stays
    top = cx.eigsh(H, 3, "LA", tol=1e-8, checkpoint=paths[0])
    density = cx.spectral_density(H, probes=2, steps=30)
    if rank == 0:
        print(f"{world} processes, {len(mine)} of {len(text)} sequences here, P = {H.shape[0]}")
        print(top)
        print(density)
        one = cx.HessianOperator(model, loss, (text, text))
        same = cx.eigsh(one, 3, "LA", tol=1e-8)
        off = float(((top.values - same.values).abs() / same.values).max())
        assert off < 1e-9, f"eigenvalues are {off:.1e} off"
        print(f"One process with all sequences has the same eigenvalues: {off:.0e} apart.")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
