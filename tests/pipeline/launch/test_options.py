"""The spreading of training: what launchers set, what is refused, and the jobs that are shipped."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline.cli.app import app
from pipeline.config.shipped import accelerate_config, configs_folder
from pipeline.launch.elastic import _failure
from pipeline.launch.options import Launch, choose_launch, first_node, slurm_environment
from pipeline.runs.failures import RankFailed
from pipeline.steps.rank import LOST

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node-1", "MASTER_PORT": "4000"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_JOB_ID": "123456",
}


def test_a_process_of_torchrun_or_srun_is_one_rank():
    for environment in (TORCHRUN, SRUN):
        assert choose_launch("zero2", environment=environment) == Launch("zero2", 4, 3)
    assert slurm_environment(SRUN) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(20_000 + 123456 % 20_000),
    }


def test_a_batch_script_of_slurm_is_no_task_of_it():
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert choose_launch("none", environment=batch) is None
    assert choose_launch("none", environment={"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("short", "first"),
    [
        ("gpu[007-009,12],login1", "gpu007"),
        ("n1,n2", "n1"),
        ("rack[1-2]-b", "rack1-b"),
        ("single", "single"),
    ],
)
def test_slurms_first_node_is_found_in_its_short_form(short: str, first: str):
    assert first_node(short) == first


def test_what_cannot_be_launched_is_refused_in_one_line(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 4\n")
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: choose_launch("none", 2, environment={}), "--processes 2 needs --sharding"),
        (lambda: choose_launch("zero2", 2, environment=TORCHRUN), "as rank 3 of 4"),
        (lambda: choose_launch("zero2", None, own, {}), "expected one of them"),
        (lambda: choose_launch("none", None, own, {}), "num_machines is 2"),
        (lambda: choose_launch("none", None, tmp_path / "no.yaml", {}), "no such file"),
    ]
    for choose, message in refused:
        with pytest.raises(ValueError, match=message) as caught:
            choose()
        assert "\n" not in str(caught.value)


def test_one_plain_process_is_no_launch():
    assert choose_launch("none", environment={}) is None
    assert choose_launch("none", 1, environment={}) is None


def test_an_accelerate_config_of_ones_own_sets_the_number_of_ranks(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 3\n")
    launch = choose_launch("none", None, own, {})
    assert launch is not None
    assert launch.manifest() == {"sharding": str(own), "processes": 3}
    assert accelerate_config(launch.sharding, on_cpu=True) == own


def failure(code: int, message: str = "", folder: Path | None = None) -> ProcessFailure:
    file = Path(folder or "/nowhere") / "error.json"
    if folder is not None:
        row = {"message": message, "extraInfo": {"py_callstack": "trace\n", "timestamp": "1"}}
        file.write_text(json.dumps({"message": row}))
    return ProcessFailure(1, 4711, code, str(file))


@pytest.mark.parametrize(
    ("code", "message", "line", "exit_code"),
    [
        (-9, None, "was killed by signal 9 (SIGKILL: out of memory?)", 4),
        (-11, None, "was killed by signal 11 (SIGSEGV)", 4),
        (7, None, "ended with code 7", 1),
        (1, "KeyError: 'x'", "failed: KeyError: 'x'", 1),
        (4, "RuntimeError: gloo: x\ny", "lost contact with another rank (gloo: x)", 4),
    ],
)
def test_one_line_names_the_rank_that_failed_and_the_cause(
    code: int, message: str | None, line: str, exit_code: int, tmp_path: Path
):
    rank = failure(code) if message is None else failure(code, message, tmp_path)
    error = _failure("sft", "1", rank)
    assert isinstance(error, RankFailed)
    assert str(error).startswith("sft: rank 1 on ")
    assert str(error).endswith(f" {line}; all ranks were stopped")
    assert error.code == exit_code


def test_bad_input_of_a_rank_is_bad_input_of_the_command(tmp_path: Path):
    rank = failure(2, "ValueError: rankings.jsonl:2: 4 responses but 3 ranks", tmp_path)
    error = _failure("sft", "1", rank)
    assert isinstance(error, ValueError)
    assert str(error) == "rankings.jsonl:2: 4 responses but 3 ranks"


def test_a_lost_connection_is_distinguished_from_an_error():
    assert LOST.search("[gloo] Connection closed by peer [10.0.0.2]")
    assert not LOST.search("mat1 and mat2 shapes cannot be multiplied")


JOBS = configs_folder() / "jobs"


def options_of(verb: str) -> set[str]:
    (command,) = (
        command
        for command in app.registered_commands
        if verb in (command.name, command.callback.__name__ if command.callback else "")
    )
    parameters = typer.main.get_command_from_info(
        command, pretty_exceptions_short=False, rich_markup_mode=None
    ).params
    return {option for parameter in parameters for option in parameter.opts}


def test_the_slurm_job_is_shell_with_options_that_the_verb_has():
    path = JOBS / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    (line,) = (line for line in path.read_text().splitlines() if line.startswith("srun "))
    words = shlex.split(line)
    assert words[words.index("rlhf") + 1] == "run"
    assert {word for word in words if word.startswith("--sharding")} <= options_of("run")
    directives = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", path.read_text()))
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]  # a rank for every GPU
    assert "gpus-per-task" not in directives


def test_the_kubernetes_job_is_yaml_and_its_torchrun_meets_on_its_first_pod():
    from torch.distributed.run import parse_args

    service, job = yaml.safe_load_all((JOBS / "kubernetes.yaml").read_text())
    pods = job["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    launcher, *words = container["command"]
    assert launcher == "torchrun"
    arguments = parse_args([word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in words])
    assert int(arguments.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(arguments.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert arguments.master_addr == f"{job['metadata']['name']}-0.{pods['subdomain']}"
    assert arguments.node_rank == 1
    assert arguments.training_script == "pipeline.cli"
    verb, *verb_words = arguments.training_script_args
    assert {word for word in verb_words if word.startswith("--")} <= options_of(verb)
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pods["volumes"]
    }
