"""What spreads a run: hosts files, what launchers tell, what is refused, what accelerate hears."""

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from pipeline import members
from pipeline.accelerate_environment import accelerate_environment, config_file
from pipeline.cli.app import app
from pipeline.config.shipped import configs_folder
from pipeline.hosts import Host, read_hosts
from pipeline.interface import told_to_gloo
from pipeline.launch import chosen
from pipeline.members import Line, Listener, joined
from pipeline.placement import Place, first_node, launched_already, on_host
from pipeline.rank_failure import Failure, RankFailed, cause, of_error, of_exit, stopped

SHARDINGS = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2")
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "node-1", "MASTER_PORT": "4000"}  # fmt: skip
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[007-008]",
        "SLURM_JOB_ID": "123456"}  # fmt: skip


def hosts_file(folder: Path, text: str) -> Path:
    path = folder / "hosts.txt"
    path.write_text(text)
    return path


def test_hosts_are_read_as_deepspeed_writes_them(tmp_path: Path):
    path = hosts_file(tmp_path, "# ours\nnode-1 slots=4\n\n10.0.0.2  slots = 2 # old\nnode-3\n")
    assert read_hosts(path) == (Host("node-1", 4), Host("10.0.0.2", 2), Host("node-3", 1))


@pytest.mark.parametrize(("text", "said"), [
    ("a slots=2\nb slot=2\n", "hosts.txt:2: 'b slot=2'; expected NAME slots=N, N at least 1"),
    ("a slots=0\n", "hosts.txt:1: 'a slots=0'; expected NAME slots=N"),
    ("a\nb\na slots=2\n", "hosts.txt:3: host a is there twice"),
    ("# nobody\n", "hosts.txt: no hosts; expected a host a line"),
])  # fmt: skip
def test_a_hosts_file_that_is_not_understood_is_one_line(tmp_path: Path, text: str, said: str):
    with pytest.raises(ValueError, match=r"hosts\.txt") as caught:
        read_hosts(hosts_file(tmp_path, text))
    assert said in str(caught.value)


def test_ranks_are_dealt_out_host_after_host():
    hosts = (Host("a", 3), Host("b", 1), Host("c", 2))
    places = [on_host(hosts, number, {}) for number in range(3)]
    assert [list(place.ranks) for place in places] == [[0, 1, 2], [3], [4, 5]]
    assert {place.world for place in places} == {6}
    assert {place.leader for place in places} == {"a"}
    with pytest.raises(ValueError, match="--host-rank is 3; expected 0 to 2"):
        on_host(hosts, 3, {})


def test_torchrun_and_srun_give_the_same_place():
    by_torchrun, by_srun = launched_already(TORCHRUN), launched_already(SRUN)
    assert by_torchrun is not None
    assert by_srun is not None
    for place in (by_torchrun, by_srun):
        assert list(place.ranks) == [3]
        assert (place.member, place.members, place.world) == (3, 4, 4)
        assert (place.local_rank, place.on_machine) == (1, 2)
    assert (by_torchrun.leader, by_torchrun.port) == ("node-1", 4001)
    assert (by_srun.leader, by_srun.port) == ("gpu007", 20_000 + 123456 % 20_000 + 1)


def test_a_batch_script_of_slurm_is_no_task_of_it():
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert launched_already(batch) is None
    assert launched_already({"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(("short", "first"), [("gpu[007-009,12],login1", "gpu007"),
    ("n1,n2", "n1"), ("rack[1-2]-b", "rack1-b"), ("single", "single")])  # fmt: skip
def test_slurms_first_node_is_found_in_its_short_form(short: str, first: str):
    assert first_node(short) == first


def test_a_launcher_that_leaves_something_out_is_told_so():
    without = {name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"}
    with pytest.raises(ValueError, match="not MASTER_ADDR"):
        launched_already(without)
    with pytest.raises(ValueError, match="RANK is 4; expected 0 to 3"):
        launched_already({**TORCHRUN, "RANK": "4"})
    with pytest.raises(ValueError, match="WORLD_SIZE is 'four' in the environment"):
        launched_already({**TORCHRUN, "WORLD_SIZE": "four"})


def test_what_cannot_be_launched_is_refused_in_one_line(tmp_path: Path):
    hosts = hosts_file(tmp_path, "a slots=2\nb slots=2\n")
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 4\n")
    refused = [
        (lambda: chosen("none", 2, environment={}), "--processes 2 needs --sharding"),
        (lambda: chosen("none", None, hosts, environment={}), "needs --sharding"),
        (lambda: chosen("zero2", 2, hosts, environment={}), "--processes and --hosts both"),
        (lambda: chosen("zero2", host_rank=1, environment={}), "--host-rank 1 needs --hosts"),
        (lambda: chosen("zero2", 2, environment=TORCHRUN), "torchrun, accelerate or Slurm started"),
        (lambda: chosen("zero2", accelerate_config=own, environment={}), "expected one of them"),
        (lambda: chosen("none", accelerate_config=own, environment={}), "num_machines is 2"),
        (lambda: chosen("none", accelerate_config=hosts, environment={}), "no distributed_type"),
    ]  # fmt: skip
    for ask, said in refused:
        with pytest.raises(ValueError, match=said) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_one_plain_process_is_no_launch():
    assert chosen("none", environment={}) is None
    assert chosen("none", 1, environment={}) is None


def test_an_accelerate_config_of_ones_own_says_how_many(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 3\n")
    found = chosen("none", accelerate_config=own, environment={})
    assert found is not None
    assert found.place.world == 3
    assert found.in_manifest()["accelerate_config"] == str(own)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_accelerate_takes_every_shipped_config_and_hears_the_sharding(sharding: str):
    file = config_file(sharding, on_cpu=False)
    told = accelerate_environment(file)
    assert yaml.safe_load(file.read_text())["num_processes"] == 2
    if sharding.startswith("zero"):
        numbers = json.loads(Path(told["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
        stage = int(sharding.removeprefix("zero")[0])
        assert numbers["zero_optimization"]["stage"] == stage
        assert ("offload_param" in numbers["zero_optimization"]) == sharding.endswith("offload")
        assert told["ACCELERATE_USE_DEEPSPEED"] == "true"
    elif sharding == "fsdp2":
        assert (told["ACCELERATE_USE_FSDP"], told["FSDP_VERSION"]) == ("true", "2")
    assert "ACCELERATE_USE_CPU" not in told


def test_copies_on_cpus_are_told_that_there_is_no_accelerator():
    told = accelerate_environment(config_file("ddp", on_cpu=True))
    assert told["ACCELERATE_USE_CPU"] == "True"
    assert {path.stem for path in (configs_folder() / "accelerate").glob("*.yaml")} == {
        "cpu2", *SHARDINGS}  # fmt: skip


def test_the_cause_is_told_and_not_what_follows_from_it():
    lost = of_error(0, "a", RuntimeError("[gloo] Connection closed by peer [10.0.0.2]"), "trace")
    killed = of_exit(1, "b", -9)
    assert lost.kind == "lost contact"
    assert cause([lost, killed]) is killed
    end = stopped("sft", [lost, killed])
    assert isinstance(end, RankFailed)
    assert str(end) == (
        "sft: rank 1 on b was killed by signal 9 (SIGKILL: out of memory?); all ranks were stopped"
    )
    assert end.code == 4
    bug = of_error(1, "b", KeyError("x"), "trace")
    assert isinstance(found := stopped("sft", [lost, bug]), RankFailed)
    assert found.code == 1
    bad = Failure(1, "b", "input", "rankings.jsonl:2: 4 responses but 3 ranks")
    assert isinstance(stopped("sft", [bad, lost]), ValueError)


def place(member: int, port: int) -> Place:
    return Place(member, 2, member, 1, 2, 0, 1, "127.0.0.1", port, f"host-{member}")


def a_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meet(listener: Listener, port: int, token: str) -> Line:
    line = joined(place(1, port), token, wait_s=5.0)
    listener.wait_for_all(lambda _: None, wait_s=5.0)
    return line


def test_members_hear_each_other_in_order_and_that_one_ended():
    port = a_port()
    listener = Listener(place(0, port), "ours")
    line = meet(listener, port, "ours")
    for number in range(20):
        listener.lines[1].send({"number": number})
    assert [line.take(2.0) for _ in range(20)] == [{"number": number} for number in range(20)]
    assert listener.hosts == {1: "host-1"}
    line.close()
    until(lambda: listener.lines[1].fault != "")
    assert listener.lines[1].fault == "it has ended"
    listener.close()


def test_a_member_with_another_config_or_a_second_of_one_number_is_refused():
    port = a_port()
    listener = Listener(place(0, port), "ours")
    with pytest.raises(ValueError, match="another config, hosts file or sharding"):
        joined(place(1, port), "theirs")
    line = meet(listener, port, "ours")
    with pytest.raises(ValueError, match="member 1 has come already"):
        joined(place(1, port), "ours")
    line.close()
    listener.close()


def test_a_member_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """As behind a torn cable: the connection stays open, and nothing comes."""
    monkeypatch.setattr(members, "SILENCE_S", 0.5)
    mine, theirs = socket.socketpair()
    line = Line(mine)
    begun = time.monotonic()
    until(lambda: line.fault != "")
    assert line.fault.startswith("no sign of life")
    assert 0.4 < time.monotonic() - begun < 3.0
    theirs.close()
    line.close()


def test_a_member_that_says_that_it_lives_is_not_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(members, "SILENCE_S", 0.5)
    monkeypatch.setattr(members, "BEAT_S", 0.1)
    mine, theirs = socket.socketpair()
    lines = Line(mine), Line(theirs)
    threading.Event().wait(1.5)
    assert [line.fault for line in lines] == ["", ""]
    for line in lines:
        line.close()


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked as Linux is asked")
def test_gloo_is_told_the_interface_of_an_address_unless_the_user_has():
    assert told_to_gloo("127.0.0.1", {}) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert told_to_gloo("127.0.0.1", {"GLOO_SOCKET_IFNAME": "eth7"}) == {}
    assert told_to_gloo("203.0.113.9", {}) == {}  # an address of nobody


def test_a_first_host_that_never_answers_is_one_line():
    with pytest.raises(ValueError, match="did not answer for 1 s") as caught:
        joined(place(1, a_port()), "ours", wait_s=1.0)
    assert "expected the same command to run on the first host" in str(caught.value)


def test_a_taken_port_is_one_line():
    port = a_port()
    listener = Listener(place(0, port), "ours")
    with pytest.raises(ValueError, match=f"port {port} is taken on host-0"):
        Listener(place(0, port), "ours")
    listener.close()


def until(is_so: Callable[[], bool], wait_s: float = 5.0) -> None:
    ends = time.monotonic() + wait_s
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.02)


JOBS = configs_folder() / "jobs"


def options_of(verb: str) -> set[str]:
    (found,) = (one for one in app.registered_commands if verb in (one.name, _called(one)))
    parameters = typer.main.get_command_from_info(
        found, pretty_exceptions_short=False, rich_markup_mode=None
    ).params
    return {option for parameter in parameters for option in parameter.opts}


def _called(command: typer.models.CommandInfo) -> str:
    return command.callback.__name__ if command.callback is not None else ""


def test_the_slurm_job_is_shell_and_asks_for_what_the_verb_knows():
    path = JOBS / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    (line,) = (line for line in path.read_text().splitlines() if line.startswith("srun "))
    words = shlex.split(line)
    assert words[words.index("rlhf") + 1] == "run"
    assert {word for word in words if word.startswith("--sharding")} <= options_of("run")
    told = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", path.read_text()))
    assert told["ntasks-per-node"] == told["gpus-per-node"]  # a rank for every GPU
    assert "gpus-per-task" not in told


def test_the_kubernetes_job_is_yaml_and_its_pods_are_its_hosts(tmp_path: Path):
    service, hosts, job = yaml.safe_load_all((JOBS / "kubernetes.yaml").read_text())
    pods = job["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    found = read_hosts(hosts_file(tmp_path, hosts["data"]["hosts.txt"]))
    name = f"{job['metadata']['name']}-{{}}.{pods['subdomain']}"
    assert [host.name for host in found] == [name.format(n) for n in range(len(found))]
    assert {job["spec"]["completions"], job["spec"]["parallelism"]} == {len(found)}
    assert {host.slots for host in found} == {container["resources"]["limits"]["nvidia.com/gpu"]}
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    verb, *words = container["command"][1:]
    assert {word for word in words if word.startswith("--")} <= options_of(verb)
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pods["volumes"]}  # fmt: skip
