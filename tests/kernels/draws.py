"""The random numbers of the sampling kernels, and the tests that all of those pass."""

from __future__ import annotations

import torch
from outputs import Inputs

MASK = 2**64 - 1


def hashed(*counters: int) -> int:
    """The chain of SplitMix64 finalisers in Python's own integers."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    state = mixed((counters[0] + golden) & MASK)
    for counter in counters[1:]:
        state = mixed(state ^ ((counter * golden) & MASK))
    return state


def uniform(*counters: int) -> float:
    """A number in (0, 1) for (seed, draw, datum, position, ...)."""
    return ((hashed(*counters) >> 12) + 0.5) * 2.0**-52


class Sampled:
    """Tests of a kernel that draws, over those of its family."""

    def check_cuts(self, inputs: Inputs) -> None:
        """The draws of a batch are those of its parts."""
        whole = self.kernel(**inputs)
        n = inputs["z"].shape[0]
        for cut in (1, n // 2, n - 1):
            parts = [
                self.kernel(
                    **(
                        inputs
                        | {"z": inputs["z"][at], "w": inputs["w"][at]}
                        | {"first": inputs["first"] + (at.start or 0)}
                    )
                )
                for at in (slice(None, cut), slice(cut, None))
            ]
            assert torch.equal(torch.cat(parts), whole)

    def check_counters(self, inputs: Inputs) -> None:
        """Another seed, draw or first datum gives other draws; so does a seed of any size."""
        whole = self.kernel(**inputs)
        for name in ("seed", "draw", "first"):
            assert not torch.equal(self.kernel(**(inputs | {name: inputs[name] + 1})), whole)
        far = inputs | {"seed": inputs["seed"] + 2**64}
        assert torch.equal(self.kernel(**far), whole)
