"""Rollouts by a real vLLM server, where there is one: RLHF_VLLM=/path/to/vllm pytest -m vllm"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stages.progress import Step
from tests.reward_models.tiny import tiny_reward
from tests.stages.ppo.tiny_ppo import metrics_of, program_of, tiny_config, train

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]
BASE = ROOT / "pipeline/quickstart/base"
LORA = {"family": "lora", "rank": 4, "alpha": 8}
OPTIONS = "--enforce-eager --max-model-len 256 --max-num-seqs 32 --enable-lora --max-lora-rank 16"
SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
World = tuple[Path, Path]


class Server:
    """A vLLM server on a free port; `base` is the folder it serves."""

    def __init__(self, base: Path, dtype: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        vllm = os.environ.get("RLHF_VLLM") or shutil.which("vllm")
        command = f"{vllm} serve {base} --port {port} --dtype {dtype} {OPTIONS}"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | SETTINGS
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command.split(), env=environment, stdout=out, stderr=out, start_new_session=True
            )
        self._wait()

    def models(self) -> list[str]:
        return [model["id"] for model in httpx.get(f"{self.url}/v1/models").json()["data"]]

    def requests(self, path: str) -> int:
        return self.log.read_text().count(f'"POST {path}')

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)

    def _wait(self) -> None:
        for _ in range(300):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.models()
            except httpx.HTTPError:
                time.sleep(1)
            else:
                return
        self.stop()
        raise TimeoutError(self.log.read_text()[-3000:])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The quickstart's base as policy, and a reward model on it."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(BASE, folder / "sft")
    return folder / "sft", tiny_reward(folder / "sft", folder / "reward", scale=4.0)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose base names every id as an end, and filters of its own."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(BASE, folder / "base")
    settings = {"eos_token_id": list(range(1280)), "top_k": 5, "temperature": 0.3}
    (folder / "base/generation_config.json").write_text(json.dumps(settings))
    started = Server(folder / "base", dtype, folder / "log")
    yield started
    started.stop()


def served_by(server: Server, **changes: object) -> dict[str, object]:
    rollouts = {"kind": "vllm", "url": server.url, "timeout_s": 120, **changes}
    sampling = {"max_new_tokens": 16}
    return {"rollouts": rollouts, "adaptation": LORA, "sampling": sampling, "checkpoint_every": 1}


def sizes_of(world: World, out: Path, settings: dict[str, object]) -> list[int]:
    """The bytes in `sent` after every iteration."""
    sizes = []

    def measure(step: Step) -> None:
        if step.done:
            files = (path for path in (out / "sent").rglob("*") if path.is_file())
            sizes.append(sum(path.stat().st_size for path in files))

    train(world, out, tiny_config(**settings), measure)
    return sizes


def test_two_runs_at_once_one_of_them_killed_and_resumed(
    world: World, server: Server, dtype: str, tmp_path: Path
) -> None:
    config = tiny_config(**served_by(server), episodes=48)
    whole, killed = (
        subprocess.Popen(
            [sys.executable, "-uc", program_of(world, tmp_path / name, config)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for name in ("whole", "killed")
    )
    assert killed.stdout is not None
    for _ in range(3):
        killed.stdout.readline()
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert whole.wait(300) == 0
    [base, leftover] = server.models()  # the whole run has unloaded its own
    assert (tmp_path / "killed/sent" / leftover).is_dir()
    steps = metrics_of(world, tmp_path / "killed", config)
    assert 0 < len(steps) < 6
    assert server.models() == [base]
    for run in ("whole", "killed"):
        assert not (tmp_path / run / "sent").exists()
    if dtype == "float32":
        unbroken = metrics_of(world, tmp_path / "again", config)
        for row, expected in zip(steps, unbroken[-len(steps) :], strict=True):
            assert row["ppo/score"] == pytest.approx(expected["ppo/score"], abs=1e-4)


def test_the_gap_is_rounding_and_the_disk_does_not_fill(
    world: World, server: Server, dtype: str, tmp_path: Path
) -> None:
    settings = served_by(server, importance_cap=2.0)
    steps = metrics_of(world, tmp_path / "gap", tiny_config(**settings))
    for step in steps:
        gap, weight = step["ppo/sampler_gap_nats_per_token"], step["ppo/importance_weight"]
        if dtype == "float32":
            assert gap <= 1e-5
            assert weight == pytest.approx(1.0, abs=1e-5)
        else:
            assert 1e-4 < gap < 0.1
            assert weight == pytest.approx(1.0, abs=0.1)
        assert step["ppo/first_ratio_error"] <= 1e-5
    sizes = sizes_of(world, tmp_path / "sizes", settings)
    assert len(sizes) == 4
    assert max(sizes) == min(sizes) > 0


def test_responses_end_at_the_policys_ids_and_not_at_the_servers(
    world: World, server: Server, dtype: str, tmp_path: Path
) -> None:
    if dtype != "float32":
        pytest.skip("not a matter of precision")
    lengths = {}
    for name, ends in (("one", 1), ("several", list(range(1, 1280, 2)))):
        policy = tmp_path / name / "sft"
        shutil.copytree(world[0], policy)
        path = policy / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
        for kind in ("own", "vllm"):
            settings = served_by(server) | {"episodes": 64, "episodes_per_rollout": 64}
            if kind == "own":
                del settings["rollouts"]
            [step] = metrics_of((policy, world[1]), tmp_path / name / kind, tiny_config(**settings))
            lengths[name, kind] = step["ppo/response_tokens"]
            assert (step["ppo/eos_rate"] > 0.99) == (name == "several")
    assert lengths["one", "vllm"] > 4.0  # the server names every id
    for name in ("one", "several"):
        assert lengths[name, "vllm"] == pytest.approx(lengths[name, "own"], rel=0.3)


def test_log_probabilities_before_the_temperature_are_refused(
    world: World, server: Server, tmp_path: Path
) -> None:
    settings = served_by(server) | {"sampling": {"max_new_tokens": 4, "temperature": 0.7}}
    with pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
        metrics_of(world, tmp_path, tiny_config(**settings))


def test_all_weights_are_reloaded_by_a_server_that_sleeps_meanwhile(
    world: World, server: Server, dtype: str, tmp_path: Path
) -> None:
    """Last in this file: it leaves other weights on the server. On a CPU, sleep frees nothing."""
    for adaptation in (LORA, {"family": "full"}):
        before = server.requests("/sleep"), server.requests("/wake_up")
        settings = served_by(server, sleep=True) | {"adaptation": adaptation}
        steps = metrics_of(world, tmp_path / str(adaptation["family"]), tiny_config(**settings))
        for step in steps:
            gap = step["ppo/sampler_gap_nats_per_token"]
            assert gap <= 1e-5 if dtype == "float32" else gap < 0.1
        assert server.requests("/sleep") - before[0] == 1 + 4
        assert server.requests("/wake_up") - before[1] == 2 * 4
    assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": True}
    assert len(server.models()) == 1
