"""What an experiment needs on this machine, as lines to print before anything is loaded."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.demands import Demand, demands, reward_base
from pipeline.estimate.lengths import Lengths, lengths
from pipeline.estimate.machine import Machine, this_machine
from pipeline.estimate.memory import SHARDINGS, Need, advice
from stages.adapters.config import Full, LoRA

LIBRARIES = 900 * 2**20  # Python with torch and transformers, on the CPU
USABLE = 0.92  # of the free memory
LIKELY = 0.4  # of the measured peak that training reaches, where models are not tiny
GIB = 2**30


def needs(config: ExperimentConfig, ranks: int | None = None) -> Iterator[str]:
    """Memory, time and disk of every stage, and what to change where one does not fit.

    `ranks` are the processes to spread over; None: the devices of this machine.
    """
    machine, sizes = this_machine(Path()), lengths(config)
    devices = ranks or machine.devices
    found = list(demands(config, sizes))
    yield from _about(config, machine, sizes)
    spread = max(devices, 2)
    yield f"A rank's memory, GiB, over {spread} ranks (float32; the longest rows let through)"
    for demand in found:
        yield from _memory(demand.memory, spread)
    ppo = (config.ppo, config.ppo_ptx)
    told = [config.reward.micro_prompts, *(one.micro_batch_size for one in ppo if one is not None)]
    if "auto" in told:
        yield "Where micro-batches are auto, activations are of one prompt's responses; a run reads"
        yield "more of them at once where memory is free."
    yield ""
    yield from _restricted(config, sizes, found)
    yield "Time: if every product ran at the measured peak, and at 40 % of it"
    for demand in found:
        yield _time(demand, machine)
    disk = sum(demand.disk for demand in found)
    yield ""
    yield f"Disk: {_gib(disk)} GiB of checkpoints and models; {_gib(machine.disk)} GiB free here"
    yield ""
    for demand in found:
        yield _verdict(demand.memory, machine, devices)


_ITEMS = ("weights", "critic", "refer.", "reward", "grads", "Adam", "average", "gathered",
          "activ.", "cache", "peak")  # fmt: skip


def _about(config: ExperimentConfig, machine: Machine, sizes: Lengths) -> Iterator[str]:
    yield f"{config.name}: base {config.model}, reward model on {reward_base(config)}"
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


def _memory(need: Need, ranks: int) -> Iterator[str]:
    """A row a sharding; what does not occur in the stage is left blank."""
    yield _row(need.stage, *_ITEMS)
    for how in SHARDINGS:
        yield _row("1 process" if how == "none" else how, *_items(need.spread(how, ranks)))


def _items(need: Need) -> Iterator[str]:
    models = (need.weights, need.critic, need.reference, need.reward)
    moving = (need.gathered, need.activations, need.cache)
    for size in (*models, need.gradients, need.optimizer, need.average, *moving, need.total):
        yield _gib(size) if size else ""


def _restricted(config: ExperimentConfig, sizes: Lengths, found: list[Demand]) -> Iterator[str]:
    """The same stages with LoRA, where they move every weight."""
    everything = [config.sft, config.reward, config.ppo, config.ppo_ptx]
    if any(one is not None and not isinstance(one.adaptation, Full) for one in everything):
        return
    lighter = demands(with_lora(config), sizes)
    cells = [
        f"{demand.memory.stage} {_gib(demand.memory.total)} (not {_gib(whole.memory.total)})"
        for demand, whole in zip(lighter, found, strict=True)
    ]
    yield "With LoRA of rank 16 on all linear layers, peak in GiB: " + ", ".join(cells)
    yield ""


def with_lora(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with LoRA in every stage that trains."""
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


def _time(demand: Demand, machine: Machine) -> str:
    decoding = demand.read_bytes / machine.read_bytes_per_s
    least = demand.flops / machine.flops_per_s + decoding
    likely = demand.flops / (LIKELY * machine.flops_per_s) + decoding
    spans = f"{_span(least):>14}{_span(likely):>14}"
    return f"{demand.memory.stage:<10}{spans}    {demand.flops:.1e} operations"


def _verdict(need: Need, machine: Machine, devices: int) -> str:
    room = int(machine.room * USABLE) - (0 if machine.on_gpu else LIBRARIES)
    chosen = advice(need, room, devices)
    if chosen is None:
        return (
            f"{need.stage}: does not fit ({_gib(need.total)} GiB, {_gib(max(room, 0))} usable): "
            f"{_lighter(need)}"
        )
    if chosen.how == "none":
        return f"{need.stage}: fits as it is"
    moved = f", {_gib(chosen.need.host)} GiB on the hosts" if chosen.need.host else ""
    here = "" if chosen.ranks <= devices else f", on {chosen.ranks} devices like this one"
    return (
        f"{need.stage}: fits with --sharding {chosen.how} --processes {chosen.ranks}{moved} "
        f"({_gib(chosen.need.total)} GiB a rank){here}"
    )


def _lighter(need: Need) -> str:
    """What makes the most of a stage smaller."""
    if max(need.activations, need.cache) > need.total / 2:
        if need.cache > need.activations:
            return "lower sampling.batch_size, shorten the texts, or take larger devices"
        smaller = "" if need.least else "lower the micro-batch, "
        return f"{smaller}shorten the texts, or take larger devices"
    return "restrict it (adaptation: {family: lora}), or take larger devices"


def _span(seconds: float) -> str:
    for unit, length in (("years", 3.156e7), ("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 0.95 * GIB else f"{size / GIB:.3f}"
