"""How much memory a stage needs, item by item, on one process or spread over several.

Weights, gradients, Adam's two moments and the moving average are float32. What is held all the time
adds up; of what comes and goes (keys and values while responses are drawn, activations during the
update) the largest counts.
"""

from dataclasses import dataclass, replace
from typing import Literal

Spread = Literal["none", "ddp", "zero1", "zero2", "zero3", "zero3 + offload"]
SPREADS: tuple[Spread, ...] = ("none", "ddp", "zero1", "zero2", "zero3", "zero3 + offload")
FLOAT = 4  # bytes
MOST_DEVICES = 1024
MOMENTS = 2  # of Adam, a parameter
LOGIT_COPIES = 5  # of the logits, their gradients and what lies between, at the loss's peak


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes by item. `shardable`: whether DeepSpeed shards the stage (PPO's own loop it does not).

    `weights` are of the trained models with their bases; `frozen` is what reference and reward
    model have of their own.
    """

    stage: str
    weights: int
    frozen: int
    gradients: int
    optimizer: int
    average: int
    activations: int  # with the logits: the larger of update and pretraining step
    cache: int  # keys and values with the logits, while responses are drawn
    result: int = 0  # the chosen weights, read and loaded once more to be written, on the CPU
    shardable: bool = True
    host: int = 0  # on the CPU, where something was moved there

    @property
    def total(self) -> int:
        """The peak."""
        held = self.weights + self.frozen + self.optimizer + self.average
        return held + max(self.gradients + max(self.activations, self.cache), self.result)

    def spread(self, how: Spread, ranks: int) -> "Need":
        """A rank's share (Rajbhandari et al. 2020, section 5), activations a rank being the same.

        DeepSpeed keeps a float32 copy of the weights it updates beside those it computes with.
        """
        if how == "none" or ranks == 1:
            return self
        if how == "ddp":
            return replace(self, gradients=2 * self.gradients)  # and the buckets that are reduced
        copied = self.optimizer + self.optimizer // MOMENTS
        shard = replace(self, optimizer=copied // ranks)
        if how == "zero1":
            return shard
        shard = replace(shard, gradients=self.gradients // ranks)
        if how == "zero2":
            return shard
        shard = replace(shard, weights=self.weights // ranks)
        if how == "zero3":
            return shard
        host = shard.optimizer + shard.weights
        return replace(shard, optimizer=0, weights=0, host=host * ranks)


@dataclass(frozen=True, slots=True)
class Advice:
    """The least change under which a stage fits: how it is spread, over how many."""

    how: Spread
    ranks: int
    need: Need


def advice(need: Need, room: int, devices: int) -> Advice | None:
    """The first way, simplest first, in which a rank's share fits `room`; None if none does.

    With the devices there are, else with the smallest power of two of them, up to MOST_DEVICES.
    """
    if need.total <= room:
        return Advice("none", 1, need)
    ways: tuple[Spread, ...] = ("zero2", "zero3", "zero3 + offload") if need.shardable else ()
    more = [2**power for power in range(1, 20) if devices < 2**power <= MOST_DEVICES]
    for ranks in (devices, *more):
        for how in ways:
            share = need.spread(how, ranks)
            if ranks > 1 and share.total <= room:
                return Advice(how, ranks, share)
    return None


def trained(parameters: int, trainable: int) -> tuple[int, int, int]:
    """(weights, gradients, optimiser) in bytes."""
    return parameters * FLOAT, trainable * FLOAT, trainable * FLOAT * MOMENTS
