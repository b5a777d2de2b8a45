"""Memory, time and disk of an experiment, as lines of `rlhf doctor CONFIG`."""

import textwrap
from collections.abc import Iterator

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.changes import on_a_card, smaller
from pipeline.estimate.lengths import Lengths, lengths
from pipeline.estimate.machine import Machine, a_card, this_machine
from pipeline.estimate.sharded import SHARDINGS, StageMemory, placement
from pipeline.estimate.stages import StageEstimate, reward_base, stage_estimates

LIBRARIES = 900 * 2**20  # Python with torch and transformers, on the CPU
USABLE = 0.92  # of the free memory
LIKELY = 0.4  # of the measured peak that training reaches, where models are not tiny
GIB = 2**30


def estimate_lines(
    config: ExperimentConfig, *, gpu_gib: float | None = None, ranks: int | None = None
) -> Iterator[str]:
    """Yield memory, time and disk of every stage, and a remedy where one does not fit.

    `gpu_gib` is the memory of a GPU that is not here; None: this machine. `ranks` are the processes
    to shard over; None: the devices there are.
    """
    machine, sizes = this_machine() if gpu_gib is None else a_card(gpu_gib), lengths(config)
    if gpu_gib is not None:
        config = on_a_card(config)
    devices = ranks or machine.devices
    yield from _about(config, machine, sizes)
    yield "GiB in one process, for the longest rows allowed"
    yield _row("", *_ITEMS, "peak")
    estimates = []
    for estimate in stage_estimates(config, sizes, on_gpu=machine.on_gpu):  # seconds each
        estimates.append(estimate)
        yield _items(estimate.memory)
    yield ""
    yield from _peaks([estimate.memory for estimate in estimates], max(devices, 2))
    if _is_auto(config):
        yield "Where micro-batches are auto, activations are of one prompt's responses;"
        yield "a run processes more of them at once where memory is free."
        yield ""
    if machine.flops_per_s:
        yield "Time: if every product ran at the measured peak, and at 40 % of it"
        for estimate in estimates:
            yield _time(estimate, machine)
        yield ""
    disk = sum(estimate.disk for estimate in estimates)
    yield f"Disk: {_gib(disk)} GiB of checkpoints and models; {_gib(machine.disk)} GiB free here"
    yield ""
    room = int(machine.room * USABLE) - (0 if machine.on_gpu else LIBRARIES)
    memories = [estimate.memory for estimate in estimates]
    unfit = {one.stage: one for one in memories if one.total > room}
    fitting = _fitting(config, sizes, unfit, room, on_gpu=machine.on_gpu)
    for memory in memories:
        yield from _verdict(memory, room, devices, fitting.get(memory.stage))


def _is_auto(config: ExperimentConfig) -> bool:
    """Return True where a stage fits its micro-batches to the memory there is."""
    sizes = [one.micro_batch_size for one in (config.ppo, config.ppo_ptx) if one is not None]
    return "auto" in (sizes if config.reward is None else [config.reward.micro_prompts, *sizes])


def _about(config: ExperimentConfig, machine: Machine, sizes: Lengths) -> Iterator[str]:
    other = config.reward_model
    reward = f"on {reward_base(config)}" if other is None else other
    yield f"{config.name}: base {config.model}, reward model {reward}"
    yield f"{machine.device}: {_gib(machine.room)} GiB free"
    if machine.flops_per_s:
        yield (
            f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s in float32 products, "
            f"{machine.read_bytes_per_s / GIB:,.0f} GiB/s read"
        )
    if sizes.demonstrations.assumed:
        yield "The data are not here: counts and lengths of the paper (appendix A) stand in."
    yield ""


_ITEMS = ("weights", "critic", "refer.", "reward", "grads", "Adam", "copies", "activ.", "cache")


def _items(memory: StageMemory) -> str:
    items = (
        *(memory.weights, memory.critic, memory.reference, memory.reward),
        *(memory.gradients, memory.optimizer, memory.average),
        *(memory.activations, memory.cache, memory.total),
    )
    return _row(memory.stage, *(_gib(size) if size else "" for size in items))


def _peaks(stages: list[StageMemory], ranks: int) -> Iterator[str]:
    """Yield the peak of each sharding."""
    yield f"Peak of a rank, GiB, over {ranks} ranks"
    ways = [how for how in SHARDINGS if how != "none"]
    yield _row("", *(f"{how:>{len(how) + 2}}" for how in ways))
    for memory in stages:
        peaks = {how: _gib(memory.sharded(how, ranks).total) for how in ways}
        yield _row(memory.stage, *(f"{peak:>{len(how) + 2}}" for how, peak in peaks.items()))
    yield ""


def _row(name: str, *cells: str) -> str:
    return f"{name:<9}" + "".join(f"{cell:>7}" for cell in cells)


def _time(estimate: StageEstimate, machine: Machine) -> str:
    decoding = estimate.read_bytes / machine.read_bytes_per_s
    least = estimate.flops / machine.flops_per_s + decoding
    likely = estimate.flops / (LIKELY * machine.flops_per_s) + decoding
    spans = f"{_span(least):>14}{_span(likely):>14}"
    return f"{estimate.memory.stage:<10}{spans}    {estimate.flops:.1e} operations"


def _fitting(
    config: ExperimentConfig,
    sizes: Lengths,
    unfit: dict[str, StageMemory],
    room: int,
    *,
    on_gpu: bool,
) -> dict[str, tuple[str, StageMemory]]:
    """Return the mildest change with which each of these stages fits, if there is one."""
    fitting: dict[str, tuple[str, StageMemory]] = {}
    for words, changed in smaller(config) if unfit else ():
        for estimate in stage_estimates(changed, sizes, on_gpu=on_gpu):
            memory = estimate.memory
            if memory.stage in unfit and memory.total <= room:
                fitting.setdefault(memory.stage, (words, memory))
        if len(fitting) == len(unfit):
            break
    return fitting


def _verdict(
    memory: StageMemory, room: int, devices: int, fitting: tuple[str, StageMemory] | None
) -> Iterator[str]:
    """Yield whether a stage fits, and what to do where it does not."""
    if memory.total <= room:
        yield f"{memory.stage}: fits as it is"
        return
    yield (
        f"{memory.stage}: does not fit ({_gib(memory.total)} GiB, {_gib(max(room, 0))} usable); "
        "it would"
    )
    if fitting is not None:
        words, lighter = fitting
        whole = f"with {words} ({_gib(lighter.total)} GiB)"
        yield from textwrap.wrap(whole, 80, initial_indent="    ", subsequent_indent="        ")
    else:
        yield f"    {_smaller_batches(memory)}"
    chosen = placement(memory, room, devices)
    if chosen is not None:
        yield (
            f"    with --sharding {chosen.how} --processes {chosen.ranks} "
            f"({_gib(chosen.memory.total)} GiB a rank)"
        )
        if chosen.memory.host:
            yield f"        and {_gib(chosen.memory.host)} GiB on the hosts"
        if chosen.ranks > devices:
            yield f"        on {chosen.ranks} devices like this one"


def _smaller_batches(memory: StageMemory) -> str:
    """Return the change of batches or texts that reduces the larger temporary item."""
    if memory.cache > memory.activations:
        return "with a lower sampling.batch_size, shorter texts, or a larger device"
    smaller_batch = "" if memory.least else "a lower micro-batch, "
    return f"with {smaller_batch}shorter texts, or a larger device"


def _span(seconds: float) -> str:
    for unit, length in (("years", 3.156e7), ("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 0.95 * GIB else f"{size / GIB:.3f}"
