"""Several processes with a shard of the data each: messages, sums and shared errors; and shards of parameters."""

from curvext.processes.group import ALONE, Group, collective
from curvext.processes.held import HeldParameters
from curvext.processes.sharded import held_parameters
from curvext.processes.shards import LocalVectors
from curvext.processes.words import Saying, Words
from curvext.processes.wrappers import check_loader, unwrapped

__all__ = [
    "ALONE",
    "Group",
    "HeldParameters",
    "LocalVectors",
    "Saying",
    "Words",
    "check_loader",
    "collective",
    "held_parameters",
    "unwrapped",
]
