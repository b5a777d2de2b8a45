"""How much memory a stage needs, item by item, on one process or spread over several.

Weights, gradients, Adam's two moments and the moving average are float32. What is held all the time
adds up; of what comes and goes (keys and values while responses are drawn, activations during the
update) the largest counts.
"""

from dataclasses import dataclass, replace

from pipeline.launch.options import Sharding

SHARDINGS: tuple[Sharding, ...] = (
    "none", "ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"
)  # fmt: skip
ADVISED: tuple[Sharding, ...] = ("zero2", "zero3", "zero3-offload")  # the simplest first
FLOAT = 4  # bytes
MOST_DEVICES = 1024
MOMENTS = 2  # of Adam, a parameter
LOGIT_COPIES = 5  # of the logits, their gradients and what lies between, at the loss's peak


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes by item, on the device of one rank.

    `weights` are of the trained model with its base, `reward` has its base only where that is
    another one; `reference` and `critic` are what these have of their own. `policy` is what PPO's
    policy weighs, which has to be whole to draw responses.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int
    activations: int  # with the logits: the larger of update and pretraining step
    cache: int = 0  # keys and values with the logits, while responses are drawn
    critic: int = 0
    reference: int = 0
    reward: int = 0
    average: int = 0  # and other copies of what the policy trains
    policy: int = 0
    result: int = 0  # the chosen weights, read and loaded once more to be written, on the CPU
    least: bool = False  # whether no smaller micro-batch could be read
    in_buckets: bool = True  # whether copies of a model reduce gradients in buckets of their own
    gathered: int = 0  # the rest of a divided policy, while responses are drawn
    host: int = 0  # on the CPU, where something was moved there, for all ranks of one host

    @property
    def held(self) -> int:
        """What is there all the time, gradients aside."""
        models = self.weights + self.critic + self.reference + self.reward
        return models + self.optimizer + self.average

    @property
    def total(self) -> int:
        """The peak."""
        moving = max(self.activations, self.cache + self.gathered)
        return self.held + max(self.gradients + moving, self.result)

    def spread(self, how: Sharding, ranks: int) -> "Need":
        """A rank's share (Rajbhandari et al. 2020, section 5), activations a rank being the same.

        DeepSpeed keeps a float32 copy of the weights it updates beside those it computes with;
        FSDP2 does not.
        """
        if how == "none" or ranks == 1:
            return self
        if how == "ddp":
            return replace(self, gradients=self.gradients * (2 if self.in_buckets else 1))
        copied = self.optimizer + self.optimizer // MOMENTS
        shard = replace(self, optimizer=copied // ranks)
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
        moved = shard.held - shard.average + shard.gradients
        alone = replace(shard, weights=0, critic=0, reference=0, reward=0)
        return replace(alone, optimizer=0, gradients=0, gathered=self.policy, host=moved * ranks)


@dataclass(frozen=True, slots=True)
class Advice:
    """The least change under which a stage fits: how it is spread, over how many."""

    how: Sharding
    ranks: int
    need: Need


def advice(need: Need, room: int, devices: int) -> Advice | None:
    """The first way, simplest first, in which a rank's share fits `room`; None if none does.

    With the devices there are, else with the smallest power of two of them, up to MOST_DEVICES.
    """
    if need.total <= room:
        return Advice("none", 1, need)
    more = [2**power for power in range(1, 20) if devices < 2**power <= MOST_DEVICES]
    for ranks in (devices, *more):
        for how in ADVISED:
            share = need.spread(how, ranks)
            if ranks > 1 and share.total <= room:
                return Advice(how, ranks, share)
    return None


def trained(parameters: int, trainable: int) -> tuple[int, int, int]:
    """(weights, gradients, optimiser) in bytes."""
    return parameters * FLOAT, trainable * FLOAT, trainable * FLOAT * MOMENTS
