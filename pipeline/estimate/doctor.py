"""Memory, time and disk of an experiment on this machine, as lines of `rlhf doctor CONFIG`."""

from collections.abc import Iterator

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.lengths import Lengths, lengths
from pipeline.estimate.machine import Machine, this_machine
from pipeline.estimate.stages import (
    SHARDINGS,
    StageEstimate,
    StageMemory,
    placement,
    reward_base,
    stage_estimates,
)
from stages.adapters.config import Full, LoRA

LIBRARIES = 900 * 2**20  # Python with torch and transformers, on the CPU
USABLE = 0.92  # of the free memory
LIKELY = 0.4  # of the measured peak that training reaches, where models are not tiny
GIB = 2**30


def estimate_lines(config: ExperimentConfig, ranks: int | None = None) -> Iterator[str]:
    """Yield memory, time and disk of every stage, and a remedy where one does not fit.

    `ranks` are the processes to shard over; None: the devices of this machine.
    """
    machine, sizes = this_machine(), lengths(config)
    devices = ranks or machine.devices
    estimates = list(stage_estimates(config, sizes))
    yield from _about(config, machine, sizes)
    spread = max(devices, 2)
    yield f"A rank's memory, GiB, over {spread} ranks (float32; the longest rows allowed)"
    for estimate in estimates:
        yield from _memory(estimate.memory, spread)
    ppo = (config.ppo, config.ppo_ptx)
    sizes_of_batches = [
        *(() if config.reward is None else (config.reward.micro_prompts,)),
        *(one.micro_batch_size for one in ppo if one is not None),
    ]
    if "auto" in sizes_of_batches:
        yield "Where micro-batches are auto, activations are of one prompt's responses; a run"
        yield "processes more of them at once where memory is free."
    yield ""
    yield from _with_lora(config, sizes, estimates)
    yield "Time: if every product ran at the measured peak, and at 40 % of it"
    for estimate in estimates:
        yield _time(estimate, machine)
    disk = sum(estimate.disk for estimate in estimates)
    yield ""
    yield f"Disk: {_gib(disk)} GiB of checkpoints and models; {_gib(machine.disk)} GiB free here"
    yield ""
    for estimate in estimates:
        yield _verdict(estimate.memory, machine, devices)


_ITEMS = (
    *("weights", "critic", "refer.", "reward", "grads", "Adam", "average"),
    *("gathered", "activ.", "cache", "peak"),
)


def _about(config: ExperimentConfig, machine: Machine, sizes: Lengths) -> Iterator[str]:
    other = config.reward_model
    reward = f"on {reward_base(config)}" if other is None else other
    yield f"{config.name}: base {config.model}, reward model {reward}"
    yield (
        f"{machine.device}: {_gib(machine.room)} GiB free; "
        f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s in float32 products, "
        f"{machine.read_bytes_per_s / GIB:,.0f} GiB/s read"
    )
    if sizes.demonstrations.assumed:
        yield "The data are not here: counts and lengths of the paper (appendix A) stand in."
    yield ""


def _row(name: str, *cells: str) -> str:
    return f"{name:<15}" + "".join(f"{cell:>9}" for cell in cells)


def _memory(memory: StageMemory, ranks: int) -> Iterator[str]:
    """Yield a row a sharding; items that the stage lacks are blank."""
    yield _row(memory.stage, *_ITEMS)
    for how in SHARDINGS:
        yield _row("1 process" if how == "none" else how, *_items(memory.sharded(how, ranks)))


def _items(memory: StageMemory) -> Iterator[str]:
    models = (memory.weights, memory.critic, memory.reference, memory.reward)
    temporary = (memory.gathered, memory.activations, memory.cache)
    for size in (
        *models,
        memory.gradients,
        memory.optimizer,
        memory.average,
        *temporary,
        memory.total,
    ):
        yield _gib(size) if size else ""


def _with_lora(
    config: ExperimentConfig, sizes: Lengths, estimates: list[StageEstimate]
) -> Iterator[str]:
    """Yield the same stages with LoRA, where they train every weight."""
    everything = [config.sft, config.reward, config.ppo, config.ppo_ptx]
    if any(one is not None and not isinstance(one.adaptation, Full) for one in everything):
        return
    lighter = stage_estimates(with_lora(config), sizes)
    cells = [
        f"{estimate.memory.stage} {_gib(estimate.memory.total)} (not {_gib(whole.memory.total)})"
        for estimate, whole in zip(lighter, estimates, strict=True)
    ]
    yield "With LoRA of rank 16 on all linear layers, peak in GiB: " + ", ".join(cells)
    yield ""


def with_lora(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with LoRA in every stage that trains."""
    lora = {"adaptation": LoRA()}
    stages = {
        "sft": config.sft,
        "reward": config.reward,
        "ppo_init": config.ppo_init,
        "ppo": config.ppo,
        "ppo_ptx": config.ppo_ptx,
    }
    changed = {
        name: stage.model_copy(update=lora) for name, stage in stages.items() if stage is not None
    }
    return config.model_copy(update=changed)


def _time(estimate: StageEstimate, machine: Machine) -> str:
    decoding = estimate.read_bytes / machine.read_bytes_per_s
    least = estimate.flops / machine.flops_per_s + decoding
    likely = estimate.flops / (LIKELY * machine.flops_per_s) + decoding
    spans = f"{_span(least):>14}{_span(likely):>14}"
    return f"{estimate.memory.stage:<10}{spans}    {estimate.flops:.1e} operations"


def _verdict(memory: StageMemory, machine: Machine, devices: int) -> str:
    room = int(machine.room * USABLE) - (0 if machine.on_gpu else LIBRARIES)
    chosen = placement(memory, room, devices)
    if chosen is None:
        return (
            f"{memory.stage}: does not fit "
            f"({_gib(memory.total)} GiB, {_gib(max(room, 0))} usable): "
            f"{_lighter(memory)}"
        )
    if chosen.how == "none":
        return f"{memory.stage}: fits as it is"
    on_hosts = f", {_gib(chosen.memory.host)} GiB on the hosts" if chosen.memory.host else ""
    here = "" if chosen.ranks <= devices else f", on {chosen.ranks} devices like this one"
    return (
        f"{memory.stage}: fits with --sharding {chosen.how} --processes {chosen.ranks}{on_hosts} "
        f"({_gib(chosen.memory.total)} GiB a rank){here}"
    )


def _lighter(memory: StageMemory) -> str:
    """Return the change that reduces the largest item of a stage."""
    if max(memory.activations, memory.cache) > memory.total / 2:
        if memory.cache > memory.activations:
            return "lower sampling.batch_size, shorten the texts, or take larger devices"
        smaller = "" if memory.least else "lower the micro-batch, "
        return f"{smaller}shorten the texts, or take larger devices"
    return "restrict it (adaptation: {family: lora}), or take larger devices"


def _span(seconds: float) -> str:
    for unit, length in (("years", 3.156e7), ("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 0.95 * GIB else f"{size / GIB:.3f}"
