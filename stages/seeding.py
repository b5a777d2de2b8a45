"""Random draws that depend on where they are used, not on what was drawn before.

A generator is made afresh from (seed, purpose, iteration, ...), so a run resumed from a checkpoint
draws what an unbroken run draws, and no generator's state needs saving. All ranks draw the same
numbers and use their part of them, so the number of ranks changes nothing.
"""

import hashlib

import torch

EVERY_RANK = 0  # a rank in the seeds of runs on several processes; it preserves their draws


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose in the run, e.g. `generator_for(seed, "pass", 3)`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def endless_order(size: int, first: int, count: int, seed: int, purpose: str) -> list[int]:
    """Items `first` .. `first + count` of an endless walk over `size` items, epoch after epoch.

    Every epoch has an order of its own.
    """
    drawn: list[int] = []
    while len(drawn) < count:
        epoch, start = divmod(first + len(drawn), size)
        order = torch.randperm(size, generator=generator_for(seed, purpose, epoch))
        drawn += order[start : start + count - len(drawn)].tolist()
    return drawn
