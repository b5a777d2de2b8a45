"""Ranks that the command starts end with it, whatever ends it, and the same command goes on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.config.loading import load_config
from pipeline.steps.order import run_experiment
from pipeline.steps.rank import stage_work
from tests.distributed.launched import (
    begun,
    ended,
    ended_alike,
    experiment,
    kill_rank,
    no_rank_is_left,
    ranks_of,
    rlhf,
    steps,
    until,
)
from tests.distributed.ranks import Sharding, run_ranks
from tests.distributed.truths import folder_of

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@cache
def unbroken(sharding: Sharding) -> Path:
    """The folder of fine-tuning that nothing interrupted, by two forked ranks."""
    folder = folder_of("launched")
    out = folder / sharding
    run_experiment(load_config(experiment(folder)), out, until="data")
    run_ranks(without_a_launcher, out, "sft", sharding=sharding)
    return out / "sft"


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", "pipeline.cli"]


def two_nodes(verb: str, config: Path, run: Path, *further: str) -> list[subprocess.Popen[str]]:
    """Two torchruns of one rank each, as on two machines that share a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [verb, str(config), "--out", str(run), *further]
    master = ["--master-addr", "127.0.0.1", "--master-port", port]
    return [
        begun([*torchrun("--nnodes", "2", "--node-rank", str(node), *master), *words])
        for node in range(2)
    ]


def both_end_well(nodes: list[subprocess.Popen[str]], artefact: Path) -> None:
    (code, stdout, stderr), (other, nothing, stderr_1) = (ended(node) for node in nodes)
    assert (code, stdout) == (0, f"{artefact}\n"), stderr
    assert (other, nothing) == (0, ""), stderr_1


def without_a_launcher(run: Path, stage: str) -> None:
    """The stage's work in a forked rank, its steps written as the launching command writes them."""
    from pipeline.runs.run import MetricsFile
    from stages.progress import silent

    folder = run / stage
    folder.mkdir(exist_ok=True)
    is_first = os.environ["RANK"] == "0"
    stage_work(run, stage, MetricsFile(folder / "metrics.jsonl").add if is_first else silent)


def test_killed_with_9_the_command_leaves_no_rank_and_the_same_command_ends_alike(tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    command = ("sft", config, "--out", run, "--sharding", "zero2", "--processes", "2")
    first = rlhf(*command)
    until(lambda: steps(run / "sft") > 8, first)
    assert len(ranks_of(run)) == 2
    first.kill()
    first.wait()
    no_rank_is_left(run)
    code, stdout, output = ended(rlhf(*command))
    assert (code, stdout) == (0, f"{run}/sft\n"), output
    assert "resumes" in output
    ended_alike(run / "sft", unbroken("zero2"))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero1", "zero3", "zero3-offload", "fsdp2"])
def test_a_killed_rank_is_named_all_stop_and_the_same_command_ends_alike(
    tmp_path: Path, sharding: Sharding
):
    config, run = experiment(tmp_path), tmp_path / "run"
    command = ("sft", config, "--out", run, "--sharding", sharding, "--processes", "2")
    first = rlhf(*command)
    until(lambda: steps(run / "sft") > 8, first)
    kill_rank(run, 1)
    code, stdout, output = ended(first, timeout_s=30.0)
    assert (code, stdout) == (4, "")
    lines = [line for line in output.splitlines() if line.startswith("rlhf: ")]
    assert len(lines) == 1
    assert lines[0].startswith("rlhf: sft: rank 1 on ")
    assert "was killed by signal 9 (SIGKILL: out of memory?); all ranks were stopped" in lines[0]
    assert "Traceback" not in output
    no_rank_is_left(run)
    code, _, output = ended(rlhf(*command))
    assert code == 0, output
    ended_alike(run / "sft", unbroken(sharding))


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_all_ranks(tmp_path: Path, sent: int, code: int):
    config, run = experiment(tmp_path), tmp_path / "run"
    process = rlhf("sft", config, "--out", run, "--sharding", "ddp", "--processes", "2")
    until(lambda: len(ranks_of(run)) == 2, process)
    process.send_signal(sent)
    results, _, output = ended(process, timeout_s=30.0)
    assert results == code
    assert "To resume:  rlhf sft" in output
    no_rank_is_left(run)


@pytest.mark.slow
def test_bad_input_that_only_ranks_see_is_one_line(tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    odd = ("--set", "sft.batch_size=3", "--sharding", "ddp", "--processes", "2")
    code, _, output = ended(rlhf("sft", config, "--out", run, *odd))
    assert code == 2
    assert "rlhf: batch_size (3) must be a multiple of micro_batch_size (1) times" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_torchrun_starts_the_same_verb(tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    verb = ["sft", str(config), "--out", str(run), "--sharding", "zero2"]
    command = [*torchrun("--standalone", "--nproc-per-node", "2"), *verb]
    code, stdout, output = ended(begun(command))
    assert (code, stdout) == (0, f"{run}/sft\n"), output
    assert output.count("sft: done in") == 1
    ended_alike(run / "sft", unbroken("zero2"))


@pytest.mark.slow
def test_accelerate_launch_starts_the_same_verb_and_sets_its_sharding(tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    configs = Path(__file__).parents[2] / "configs/accelerate"
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        "--config_file",
        str(configs / "zero3.yaml"),
        "--deepspeed_config_file",
        str(configs / "zero3.json"),
    ]
    verb = ["-m", "pipeline.cli.app", "sft", str(config), "--out", str(run)]
    code, stdout, output = ended(begun([*launcher, *verb]))
    assert code == 0, output
    assert stdout.splitlines()[-1] == f"{run}/sft"  # before it is what the launcher says itself
    ended_alike(run / "sft", unbroken("zero3"))


@pytest.mark.slow
def test_tasks_of_srun_are_ranks_of_one_run(tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    job = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
    }
    command = ("sft", config, "--out", run, "--sharding", "ddp")
    tasks = [
        rlhf(*command, **job, SLURM_PROCID=str(task), SLURM_LOCALID=str(task)) for task in range(2)
    ]
    (code, stdout, output), (other, nothing, _) = (ended(task) for task in tasks)
    assert (code, stdout, other, nothing) == (0, f"{run}/sft\n", 0, ""), output
    ended_alike(run / "sft", unbroken("ddp"))


@pytest.mark.slow
def test_a_killed_task_of_srun_ends_the_others_with_its_name(tmp_path: Path):
    config, run = experiment(tmp_path, epochs=60), tmp_path / "run"
    job = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "78", "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        rlhf("sft", config, "--out", run, "--sharding", "ddp", **job, SLURM_PROCID=str(task))
        for task in range(2)
    ]
    until(lambda: steps(run / "sft") > 3, tasks[0])
    kill_rank(run, 1)
    for task in tasks:
        code, _, output = ended(task, timeout_s=30.0)
        assert code == 4
        assert "rank 1 on" in output
        assert "was killed by signal 9" in output
    no_rank_is_left(run)


def test_a_killed_node_stops_the_other_and_the_same_commands_end_alike(tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    nodes = two_nodes("sft", config, run, "--sharding", "zero2")
    until(lambda: steps(run / "sft") > 8, nodes[0])
    nodes[1].kill()  # torchrun itself: its rank ends with it
    code, stdout, output = ended(nodes[0], timeout_s=40.0)
    assert (code, stdout) == (1, "")
    assert "rlhf: sft: rank 0 on" in output
    assert "lost contact with another rank" in output
    ended(nodes[1])
    no_rank_is_left(run)
    both_end_well(two_nodes("sft", config, run, "--sharding", "zero2"), run / "sft")
    ended_alike(run / "sft", unbroken("zero2"))


@pytest.mark.slow
def test_a_killed_first_node_stops_the_other(tmp_path: Path):
    config, run = experiment(tmp_path, epochs=60), tmp_path / "run"
    nodes = two_nodes("sft", config, run, "--sharding", "ddp")
    until(lambda: steps(run / "sft") > 3, nodes[0])
    nodes[0].kill()
    assert ended(nodes[1], timeout_s=40.0)[0] == 1
    ended(nodes[0])
    no_rank_is_left(run)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_ppo_goes_over_two_nodes_and_resumes_after_one_died(tmp_path: Path, sharding: str):
    config, run, alone = experiment(tmp_path), tmp_path / "run", tmp_path / "alone"
    both_end_well(
        two_nodes("run", config, run, "--until", "reward", "--sharding", "zero2"), run / "reward"
    )
    shutil.copytree(run, alone)
    code, _, output = ended(rlhf("ppo", config, "--out", alone))
    assert code == 0, output
    nodes = two_nodes("ppo", config, run, "--sharding", sharding)
    until(lambda: steps(run / "ppo") > 2, nodes[0])
    nodes[1].kill()
    assert ended(nodes[0], timeout_s=40.0)[0] == 1
    ended(nodes[1])
    no_rank_is_left(run)
    both_end_well(two_nodes("ppo", config, run, "--sharding", sharding), run / "ppo")
    ended_alike(run / "ppo", alone / "ppo")
