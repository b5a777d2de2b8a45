"""The memory of a stage by item, and a rank's share of it under each sharding."""

from dataclasses import dataclass, replace
from typing import get_args

from pipeline.launch.options import Sharding

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)
ADVISED: tuple[Sharding, ...] = ("zero2", "zero3", "zero3-offload")  # the simplest first
MOST_DEVICES = 1024


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes by item, on the device of one rank.

    `weights` are of the trained model with its base; `reward` has its base only where that is
    another one; `reference` and `critic` are their own parameters. `policy` is the size of PPO's
    policy, which is gathered to sample responses.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int
    activations: int  # with the logits: the larger of update and pretraining step
    cache: int = 0  # the KV cache with the logits and copied weights, during sampling
    critic: int = 0
    reference: int = 0
    reward: int = 0
    average: int = 0  # and other copies of what the policy trains
    policy: int = 0
    result: int = 0  # the chosen weights, loaded once more to be saved, on the CPU
    masters: int = 0  # the float32 copy of what DeepSpeed updates, if it makes one
    least: bool = False  # no smaller micro-batch is possible
    in_buckets: bool = True  # copies of a model reduce gradients in buckets of their own
    gathered: int = 0  # the rest of a sharded policy, during sampling
    host: int = 0  # on the CPU under offload, for all ranks of one host

    @property
    def models(self) -> int:
        """The weights of all models."""
        return self.weights + self.critic + self.reference + self.reward

    @property
    def permanent(self) -> int:
        """The items that are in memory all the time, without gradients."""
        return self.models + self.optimizer + self.average

    @property
    def total(self) -> int:
        """The peak."""
        temporary = max(self.activations, self.cache + self.gathered)
        return self.permanent + max(self.gradients + temporary, self.result)

    def sharded(self, how: Sharding, ranks: int) -> "StageMemory":
        """Return a rank's share (Rajbhandari et al. 2020, section 5), with unchanged activations.

        DeepSpeed keeps a float32 copy of the weights it updates beside those it computes with;
        FSDP2 does not.
        """
        if how == "none" or ranks == 1:
            return self
        if how == "ddp":
            return replace(self, gradients=self.gradients * (2 if self.in_buckets else 1))
        shard = replace(self, optimizer=(self.optimizer + self.masters) // ranks)
        if how == "zero1":
            return shard
        shard = replace(shard, gradients=self.gradients // ranks)
        if how == "zero2":
            return shard
        shard = replace(
            shard,
            weights=self.weights // ranks,
            critic=self.critic // ranks,
            reference=self.reference // ranks,
            reward=self.reward // ranks,
            average=self.average // ranks,
            gathered=self.policy - self.policy // ranks,
        )
        if how == "zero3":
            return shard
        if how == "fsdp2":
            return replace(shard, optimizer=self.optimizer // ranks)
        offloaded = shard.permanent - shard.average + shard.gradients
        alone = replace(shard, weights=0, critic=0, reference=0, reward=0)
        return replace(
            alone, optimizer=0, gradients=0, gathered=self.policy, host=offloaded * ranks
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """The simplest sharding under which a stage fits."""

    how: Sharding
    ranks: int
    memory: StageMemory


def placement(memory: StageMemory, room: int, devices: int) -> Placement | None:
    """Return the simplest sharding in which a rank's share fits `room`; None if none does.

    It uses the existing devices, else the smallest power of two of them, up to MOST_DEVICES.
    """
    if memory.total <= room:
        return Placement("none", 1, memory)
    more = [2**power for power in range(1, 20) if devices < 2**power <= MOST_DEVICES]
    for ranks in (devices, *more):
        for how in ADVISED:
            share = memory.sharded(how, ranks)
            if ranks > 1 and share.total <= room:
                return Placement(how, ranks, share)
    return None
