"""Random draws that depend on where they are used, not on what was drawn before.

A generator is made afresh from (seed, purpose, iteration, ...), so a run continued from a
checkpoint draws what an unbroken run draws, and no generator's state needs saving. All ranks draw
the same and use their part of it, so the number of ranks changes nothing.
"""

import hashlib

import torch

EVERY_RANK = 0  # where runs of several processes once had the rank; it keeps old draws


def generator_for(seed: int, *place: str | int) -> torch.Generator:
    """A CPU generator for one place in the run, e.g. `generator_for(seed, "turn", 3)`."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def endless_order(size: int, first: int, count: int, seed: int, purpose: str) -> list[int]:
    """Places `first` .. `first + count` of an endless walk over `size` things, pass after pass."""
    drawn: list[int] = []
    while len(drawn) < count:
        turn, place = divmod(first + len(drawn), size)
        order = torch.randperm(size, generator=generator_for(seed, purpose, turn))
        drawn += order[place : place + count - len(drawn)].tolist()
    return drawn
