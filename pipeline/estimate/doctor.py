"""An experiment's needs on this machine, as lines to print before anything is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.lengths import Lengths, text_lengths
from pipeline.estimate.machine import Machine, this_machine
from pipeline.estimate.memory import (
    SHARDINGS,
    Memory,
    ppo_memory,
    recommend,
    reward_memory,
    sft_memory,
)
from pipeline.estimate.model_size import model_size
from pipeline.estimate.time import decoding_bytes, ppo_flops, reward_flops, sft_flops
from pipeline.runs.manifest import checked_source
from stages.adapters.config import Full, LoRA
from stages.ppo.config import PPOConfig
from stages.sft.config import SFTConfig

LIBRARIES = 900 * 2**20  # Python with torch and transformers, on the CPU
USABLE = 0.92  # of the free memory
LIKELY = 0.4  # of the measured peak that training reaches, where models are not tiny
GIB = 2**30
ITEMS = (
    *("weights", "critic", "refer.", "reward", "grads", "Adam", "average", "gathered"),
    *("activ.", "cache", "peak"),
)


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """Memory, operations in matrix products, bytes of weights that decoding reads, disk."""

    stage: str
    memory: Memory
    disk: int
    flops: float
    decoding_bytes: float = 0.0


def estimate_stages(config: ExperimentConfig, lengths: Lengths) -> Iterator[StageEstimate]:
    """Yield estimates of sft, reward, ppo-init, ppo and ppo-ptx, those that the experiment has."""
    yield _sft("sft", config.sft, config, lengths)
    model = model_size(checked_source(reward_base(config)), config.reward.adaptation)
    memory, disk = reward_memory(model, config.reward, config, lengths)
    flops = reward_flops(model, config.reward, config, lengths)
    yield StageEstimate("reward", memory, disk, flops)
    if config.ppo_init is not None:
        yield _sft("ppo-init", config.ppo_init, config, lengths)
    for name, stage in (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx)):
        if stage is not None:
            yield _ppo(name, stage, config, lengths)


def reward_base(config: ExperimentConfig) -> str:
    """Return the name of the model that is as large as the reward model; SFT is as the base."""
    return config.model if config.reward_base in ("sft", "base") else config.reward_base


def _sft(name: str, stage: SFTConfig, config: ExperimentConfig, lengths: Lengths) -> StageEstimate:
    model = model_size(checked_source(config.model), stage.adaptation)
    memory, disk = sft_memory(model, stage, lengths)
    return StageEstimate(name, memory, disk, sft_flops(model, stage, lengths))


def _ppo(name: str, stage: PPOConfig, config: ExperimentConfig, lengths: Lengths) -> StageEstimate:
    policy = model_size(checked_source(config.model), stage.adaptation)
    critic = model_size(checked_source(reward_base(config)), config.reward.adaptation)
    memory, disk = ppo_memory(policy, critic, stage, config, lengths)
    flops = ppo_flops(policy, critic, stage, lengths)
    return StageEstimate(name, memory, disk, flops, decoding_bytes(policy, stage))


def experiment_needs(config: ExperimentConfig, ranks: int | None = None) -> Iterator[str]:
    """Yield memory, time and disk of every stage, and what to change where one does not fit.

    `ranks` are the processes to spread over; None: the devices of this machine.
    """
    machine, lengths = this_machine(Path()), text_lengths(config)
    devices = ranks or machine.devices
    estimates = list(estimate_stages(config, lengths))
    yield from _header(config, machine, lengths)
    spread = max(devices, 2)
    yield f"A rank's memory, GiB, over {spread} ranks (float32; the longest rows let through)"
    for estimate in estimates:
        yield _row(estimate.stage, *ITEMS)
        for sharding in SHARDINGS:
            items = _items(estimate.memory.per_rank(sharding, spread))
            yield _row("1 process" if sharding == "none" else sharding, *items)
    stages = [stage for stage in (config.ppo, config.ppo_ptx) if stage is not None]
    if "auto" in (config.reward.micro_prompts, *(stage.micro_batch_size for stage in stages)):
        yield "Where micro-batches are auto, activations are of one prompt's responses; a run takes"
        yield "more of them at once where memory is free."
    yield ""
    yield from _with_lora_lines(config, lengths, estimates)
    yield "Time: if every product ran at the measured peak, and at 40 % of it"
    for estimate in estimates:
        yield _time(estimate, machine)
    disk = sum(estimate.disk for estimate in estimates)
    yield ""
    yield f"Disk: {_gib(disk)} GiB of checkpoints and models; {_gib(machine.disk)} GiB free here"
    yield ""
    for estimate in estimates:
        yield f"{estimate.stage}: {_verdict(estimate.memory, machine, devices)}"


def with_lora(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with LoRA in every stage that trains."""
    stages = {
        "sft": config.sft,
        "reward": config.reward,
        "ppo_init": config.ppo_init,
        "ppo": config.ppo,
        "ppo_ptx": config.ppo_ptx,
    }
    lora = {"adaptation": LoRA()}
    changed = {
        name: stage.model_copy(update=lora) for name, stage in stages.items() if stage is not None
    }
    return config.model_copy(update=changed)


def _header(config: ExperimentConfig, machine: Machine, lengths: Lengths) -> Iterator[str]:
    yield f"{config.name}: base {config.model}, reward model on {reward_base(config)}"
    yield (
        f"{machine.device}: {_gib(machine.room)} GiB free; "
        f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s in float32 products, "
        f"{machine.read_bytes_per_s / GIB:,.0f} GiB/s read"
    )
    if lengths.demonstrations.assumed:
        yield "The data are not here: counts and lengths of the paper (appendix A) stand in."
    yield ""


def _row(name: str, *cells: str) -> str:
    return f"{name:<15}" + "".join(f"{cell:>9}" for cell in cells)


def _items(memory: Memory) -> Iterator[str]:
    """Yield a cell an item; one that does not occur in the stage is blank."""
    models = (memory.weights, memory.critic, memory.reference, memory.reward)
    passing = (memory.gathered, memory.activations, memory.cache)
    trained = (memory.gradients, memory.optimizer, memory.average)
    for size in (*models, *trained, *passing, memory.peak):
        yield _gib(size) if size else ""


def _with_lora_lines(
    config: ExperimentConfig, lengths: Lengths, estimates: list[StageEstimate]
) -> Iterator[str]:
    """Yield the same stages with LoRA, where they train every weight."""
    stages = [config.sft, config.reward, config.ppo, config.ppo_ptx]
    if any(stage is not None and not isinstance(stage.adaptation, Full) for stage in stages):
        return
    lora = estimate_stages(with_lora(config), lengths)
    cells = [
        f"{light.stage} {_gib(light.memory.peak)} (not {_gib(full.memory.peak)})"
        for light, full in zip(lora, estimates, strict=True)
    ]
    yield "With LoRA of rank 16 on all linear layers, peak in GiB: " + ", ".join(cells)
    yield ""


def _time(estimate: StageEstimate, machine: Machine) -> str:
    decoding = estimate.decoding_bytes / machine.read_bytes_per_s
    least = estimate.flops / machine.flops_per_s + decoding
    likely = estimate.flops / (LIKELY * machine.flops_per_s) + decoding
    durations = f"{_duration(least):>14}{_duration(likely):>14}"
    return f"{estimate.stage:<10}{durations}    {estimate.flops:.1e} operations"


def _verdict(memory: Memory, machine: Machine, devices: int) -> str:
    room = int(machine.room * USABLE) - (0 if machine.on_gpu else LIBRARIES)
    choice = recommend(memory, room, devices)
    if choice is None:
        return (
            f"does not fit ({_gib(memory.peak)} GiB, {_gib(max(room, 0))} usable): "
            f"{_remedy(memory)}"
        )
    if choice.sharding == "none":
        return "fits as it is"
    host = f", {_gib(choice.memory.host)} GiB on the hosts" if choice.memory.host else ""
    more = "" if choice.ranks <= devices else f", on {choice.ranks} devices like this one"
    return (
        f"fits with --sharding {choice.sharding} --processes {choice.ranks}{host} "
        f"({_gib(choice.memory.peak)} GiB a rank){more}"
    )


def _remedy(memory: Memory) -> str:
    """Return advice for the largest item of a stage."""
    if max(memory.activations, memory.cache) > memory.peak / 2:
        if memory.cache > memory.activations:
            return "lower sampling.batch_size, shorten the texts, or take larger devices"
        smaller = "" if memory.smallest else "lower the micro-batch, "
        return f"{smaller}shorten the texts, or take larger devices"
    return "restrict it (adaptation: {family: lora}), or take larger devices"


def _duration(seconds: float) -> str:
    for unit, length in (("years", 3.156e7), ("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 0.95 * GIB else f"{size / GIB:.3f}"
