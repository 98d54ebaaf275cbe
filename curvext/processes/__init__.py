"""Several processes with a shard of the data each: messages, sums and shared errors."""

from curvext.processes.group import ALONE, Group, collective
from curvext.processes.words import Saying, Words
from curvext.processes.wrappers import check_loader, unwrapped

__all__ = ["ALONE", "Group", "Saying", "Words", "check_loader", "collective", "unwrapped"]
