"""A run over two hosts: where one dies the other stops, and the same commands end alike."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.hosts import Hosts, two_hosts
from tests.distributed.launched import (
    ended,
    ended_alike,
    experiment,
    no_rank_is_left,
    rlhf,
    steps,
    until,
)
from tests.distributed.test_launched import unbroken

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]
STOPS_WITHIN_S = 30.0


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as made:
        yield made


def both(
    hosts: Hosts, verb: str, config: Path, run: Path, sharding: str, *further: str
) -> list[subprocess.Popen[str]]:
    """The verb on each host, started by hand."""
    file = hosts.file(config.parent)
    words = (verb, config, "--out", run, "--sharding", sharding, "--hosts", file, *further)
    return [rlhf(*words, "--host-rank", str(n), inside=hosts.inside(n)) for n in range(2)]


def went_through(commands: list[subprocess.Popen[str]], artefact: Path) -> None:
    (code, stdout, said), (other, nothing, theirs) = (ended(command) for command in commands)
    assert (code, stdout) == (0, f"{artefact}\n"), said
    assert (other, nothing) == (0, ""), theirs


def test_one_host_dies_the_other_stops_and_says_so_and_the_rerun_ends_alike(
    hosts: Hosts, tmp_path: Path
):
    config, run = experiment(tmp_path), tmp_path / "run"
    first, second = both(hosts, "sft", config, run, "zero2")
    until(lambda: steps(run / "sft") > 8, first)
    hosts.kill(1)
    died = time.monotonic()
    code, _, said = ended(first, STOPS_WITHIN_S)
    assert time.monotonic() - died < STOPS_WITHIN_S
    assert code == 4
    assert "rlhf: sft: host 10.77.31.2 is gone (it has ended); all ranks were stopped" in said
    assert "Traceback" not in said
    ended(second)
    no_rank_is_left(run)
    went_through(both(hosts, "sft", config, run, "zero2"), run / "sft")
    ended_alike(run / "sft", unbroken(tmp_path, config, "zero2"))


@pytest.mark.slow
def test_the_first_host_dies_and_the_other_stops(hosts: Hosts, tmp_path: Path):
    config, run = experiment(tmp_path, epochs=60), tmp_path / "run"
    first, second = both(hosts, "sft", config, run, "ddp")
    until(lambda: steps(run / "sft") > 3, first)
    hosts.kill(0)
    code, _, said = ended(second, STOPS_WITHIN_S)
    assert code == 4
    assert "host 10.77.31.1 is gone (it has ended); the ranks of 10.77.31.2 were stopped" in said
    ended(first)
    no_rank_is_left(run)


@pytest.mark.slow
def test_a_torn_cable_stops_both_hosts(hosts: Hosts, tmp_path: Path):
    config, run = experiment(tmp_path, epochs=60), tmp_path / "run"
    commands = both(hosts, "sft", config, run, "zero2")
    until(lambda: steps(run / "sft") > 3, commands[0])
    hosts.tear_the_cable()
    for command, other in zip(commands, reversed(hosts.addresses), strict=True):
        code, _, said = ended(command, STOPS_WITHIN_S)
        assert code == 4
        assert f"host {other} is gone (no sign of life for 15 s)" in said
    no_rank_is_left(run)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_ppo_goes_over_two_hosts_and_goes_on_after_one_died(
    hosts: Hosts, tmp_path: Path, sharding: str
):
    config, run, alone = experiment(tmp_path), tmp_path / "run", tmp_path / "alone"
    code, _, said = ended(rlhf("run", config, "--out", run, "--until", "reward"))
    assert code == 0, said
    shutil.copytree(run, alone)
    code, _, said = ended(rlhf("ppo", config, "--out", alone))
    assert code == 0, said
    first, second = both(hosts, "ppo", config, run, sharding)
    until(lambda: steps(run / "ppo") > 2, first)
    hosts.kill(1)
    code, _, said = ended(first, STOPS_WITHIN_S)
    assert code == 4, said
    assert "host 10.77.31.2 is gone" in said
    ended(second)
    no_rank_is_left(run)
    went_through(both(hosts, "ppo", config, run, sharding), run / "ppo")
    ended_alike(run / "ppo", alone / "ppo")


@pytest.mark.slow
def test_a_whole_experiment_goes_over_two_hosts(hosts: Hosts, tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    commands = both(hosts, "run", config, run, "zero2", "--until", "reward")
    went_through(commands, run / "reward")


@pytest.mark.slow
def test_one_command_starts_the_other_host_over_ssh(hosts: Hosts, tmp_path: Path):
    """Here ssh is a script that runs what it is given on the host with that address."""
    config, run, path = experiment(tmp_path), tmp_path / "run", tmp_path / "bin"
    path.mkdir()
    ssh = path / "ssh"
    ssh.write_text(f"""#!/bin/bash
echo "$@" >> {tmp_path}/called
[ "${{@: -2:1}}" = {hosts.addresses[1]} ] || exit 255
exec ip netns exec {hosts.names[1]} bash -c "${{@: -1}}"
""")
    ssh.chmod(0o755)
    words = ("sft", config, "--out", run, "--sharding", "ddp", "--hosts", hosts.file(tmp_path))
    first = rlhf(*words, inside=hosts.inside(0), PATH=f"{path}:{os.environ['PATH']}")
    code, stdout, said = ended(first)
    assert (code, stdout) == (0, f"{run}/sft\n"), said
    (called,) = (tmp_path / "called").read_text().splitlines()
    assert called.startswith("-o BatchMode=yes -o ConnectTimeout=10 10.77.31.2 cd ")
    ended_alike(run / "sft", unbroken(tmp_path, config, "ddp"))


@pytest.mark.slow
def test_a_host_that_ssh_does_not_reach_is_told_with_what_to_type(hosts: Hosts, tmp_path: Path):
    words = ("sft", experiment(tmp_path), "--out", tmp_path / "run", "--sharding", "ddp")
    first = rlhf(*words, "--hosts", hosts.file(tmp_path), inside=hosts.inside(0))
    assert first.stderr is not None
    lines = iter(first.stderr.readline, "")
    told = next(line for line in lines if line.startswith("waiting for 10.77.31.2. "))
    assert told.rstrip().endswith(f"--hosts {tmp_path}/hosts.txt --host-rank 1")
    assert "type there:  cd " in told


@pytest.mark.slow
def test_a_host_with_another_config_is_refused(hosts: Hosts, tmp_path: Path):
    config, run = experiment(tmp_path), tmp_path / "run"
    other = tmp_path / "other"
    other.mkdir()
    words = ("--out", run, "--sharding", "ddp", "--hosts", hosts.file(tmp_path), "--host-rank")
    first = rlhf("sft", config, *words, "0", inside=hosts.inside(0))
    second = rlhf("sft", experiment(other, epochs=2), *words, "1", inside=hosts.inside(1))
    code, _, said = ended(second)
    assert code == 2
    assert "it runs another config, hosts file or sharding" in said
    first.terminate()
    assert ended(first)[0] == 143
