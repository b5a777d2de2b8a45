"""Rollouts by a server that speaks vLLM's protocol."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from stages.distributed.network import trained_parameters
from stages.generation.vllm import VllmSampler
from stages.generation.vllm_server import VllmServer
from stages.models import load_policy
from stages.progress import Step
from tests.distributed.ranks import run_ranks
from tests.stages.ppo.tiny_ppo import metrics_of, tiny_config, tiny_world, train
from tests.stages.ppo.vllm_server import TinyVllm

World = tuple[Path, Path]
LORA = {"family": "lora", "rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def server(world: World) -> Iterator[TinyVllm]:
    served = TinyVllm(world[0])
    Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def served_by(url: str, **rollouts: object) -> dict[str, object]:
    rollouts = {"kind": "vllm", "url": url, "timeout_s": 30, **rollouts}
    return {"rollouts": rollouts, "adaptation": LORA}


def names_loaded(server: TinyVllm) -> list[str]:
    return [name for path, name in server.seen if path == "/v1/load_lora_adapter"]


def trained(world: World, out: Path, url: str) -> list[dict[str, float]]:
    return metrics_of(world, out, tiny_config(**served_by(url)))


def test_the_server_samples_what_was_trained_and_neither_it_nor_the_disk_fills(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    steps = []

    def listen(step: Step) -> None:
        if step.done:
            steps.append(step.metrics)
            assert len(server.models) == 2  # the base and the current adapter
            assert len(list((tmp_path / "sent").iterdir())) == 1

    train(world, tmp_path, tiny_config(**served_by(server.url)), listen)
    assert len(steps) == 4
    for step in steps:  # after every update too: the new adapter answers
        assert step["ppo/sampler_gap_nats_per_token"] < 1e-5
        assert step["ppo/first_ratio_error"] <= 1e-5
    assert steps[-1]["ppo/kl_nats"] != 0.0
    assert [name.rpartition("-")[2] for name in names_loaded(server)] == ["1", "2", "3", "4"]
    assert len({name.rpartition("-")[0] for name in names_loaded(server)}) == 1
    assert set(server.models) == {"base"}
    assert not (tmp_path / "sent").exists()
    moved = trained_parameters(load_policy(tmp_path / "model"))
    assert all(name.count("lora") for name in moved)


def test_what_a_failed_run_had_sent_is_unloaded(
    world: World, server: TinyVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no room")

    loads = iter([VllmServer.load_adapter, refuse])
    monkeypatch.setattr(VllmServer, "load_adapter", lambda *arguments: next(loads)(*arguments))
    with pytest.raises(ValueError, match="no room"):
        trained(world, tmp_path, server.url)
    assert len(names_loaded(server)) == 1
    assert set(server.models) == {"base"}
    assert not (tmp_path / "sent").exists()


def test_a_killed_run_leaves_an_adapter_that_only_its_resumption_unloads(
    world: World, server: TinyVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, twice = (tiny_config(**served_by(server.url), episodes=n) for n in (8, 16))
    with monkeypatch.context() as killed:
        killed.setattr(VllmSampler, "close", lambda _: None)
        metrics_of(world, tmp_path / "killed", once)
    [leftover] = set(server.models) - {"base"}
    assert (tmp_path / "killed/sent" / leftover).is_dir()
    whole = metrics_of(world, tmp_path / "whole", twice)
    assert set(server.models) == {"base", leftover}
    [resumed] = metrics_of(world, tmp_path / "killed", twice)
    assert set(server.models) == {"base"}
    assert not (tmp_path / "killed/sent").exists()
    assert resumed["ppo/score"] == whole[1]["ppo/score"]
    assert resumed["ppo/sampler_gap_nats_per_token"] < 1e-5
    assert len(set(names_loaded(server))) == len(names_loaded(server)) == 4


def test_weights_of_full_fine_tuning_are_reloaded_from_a_folder(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    settings = served_by(server.url) | {"adaptation": {"family": "full"}}
    steps = metrics_of(world, tmp_path, tiny_config(**settings, episodes=16))
    assert all(step["ppo/sampler_gap_nats_per_token"] < 1e-5 for step in steps)
    requests = [path for path, _ in server.seen if path != "/v1/completions"]
    assert requests == ["/collective_rpc", "/reset_prefix_cache"] * 2
    assert not (tmp_path / "sent").exists()


def test_a_server_that_serves_something_else_shows_and_is_weighted(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    server.off_by = -0.25
    steps = {}
    for cap in (None, 1.1, 2.0):
        settings = served_by(server.url, importance_cap=cap)
        config = tiny_config(**settings, episodes=8, minibatch=8)
        [steps[cap]] = metrics_of(world, tmp_path / str(cap), config)
    for cap, weight in ((1.1, 1.1), (2.0, math.exp(0.25))):
        step = steps[cap]
        assert step["ppo/sampler_gap_nats_per_token"] == pytest.approx(0.25, abs=1e-4)
        assert step["ppo/first_ratio_error"] <= 1e-5  # old log-probabilities are computed here
        assert step["ppo/importance_weight"] == pytest.approx(weight, abs=1e-4)
        assert step["ppo/importance_truncated"] == (cap < weight + 1e-6)
        gradient = step["ppo/gradient_norm"] / steps[None]["ppo/gradient_norm"]
        assert gradient == pytest.approx(weight, abs=1e-4)


def test_log_probabilities_before_the_temperature_are_refused(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    sampling = {"max_new_tokens": 6, "temperature": 0.7}
    config = tiny_config(**served_by(server.url), episodes=8, sampling=sampling)
    [step] = metrics_of(world, tmp_path / "tempered", config)
    assert step["ppo/sampler_gap_nats_per_token"] < 1e-5
    server.tempered = False
    with pytest.raises(ValueError, match=r"--logprobs-mode processed_logprobs, or sampling\.temp"):
        metrics_of(world, tmp_path / "raw", config)


@pytest.mark.distributed
def test_several_ranks_are_answered_as_one_is(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    alone = trained(world, tmp_path / "one", server.url)
    row = run_ranks(trained, world, tmp_path / "two", server.url, sharding="zero3")
    for ours, others in zip(row[0], alone, strict=True):
        assert ours["ppo/score"] == pytest.approx(others["ppo/score"], abs=1e-4)


def test_what_cannot_be_served_is_refused_in_one_line(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    gone = "http://127.0.0.1:9"
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9/v1/models: no answer"):
        trained(world, tmp_path / "gone", gone)
    settings = served_by(server.url) | {"adaptation": {"family": "prefix", "length": 2}}
    with pytest.raises(ValueError, match=r"serves full fine-tuning and family lora"):
        metrics_of(world, tmp_path / "prefix", tiny_config(**settings))
    whole = served_by(server.url, transfer="nccl") | {"adaptation": {"family": "full"}}
    with pytest.raises(ValueError, match=r"^rollouts.url http://127.0.0.1:\d+: vLLM is not inst"):
        metrics_of(world, tmp_path / "full", tiny_config(**whole))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"transfer": "nccl"}, r"rollouts\.transfer is nccl but adaptation\.family is lora"),
        ({"transfer": "nccl", "sleep": True}, r"rollouts\.sleep is true, .* expected .*folder"),
        ({"importance_cap": 0.9}, r"importance_cap"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, object], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        tiny_config(**served_by("http://127.0.0.1:9", **changes))


@pytest.mark.parametrize("served", [True, False], ids=["served", "own"])
def test_every_id_that_the_model_names_ends_a_response(
    world: World, server: TinyVllm, tmp_path: Path, served: bool
) -> None:
    server.own_stops = [5, 6]  # must not matter: the policy's own settings count
    rows = {}
    for name, ends in (("eos", 1), ("all", list(range(1, 25)))):
        policy = tmp_path / name / "sft"
        shutil.copytree(world[0], policy)
        settings = policy / "generation_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": ends}))
        changes = served_by(server.url) if served else {"adaptation": LORA}
        config = tiny_config(**changes, episodes=8)
        [rows[name]] = metrics_of((policy, world[1]), tmp_path / name / "ppo", config)
        assert rows[name]["ppo/first_ratio_error"] <= 1e-5
    assert rows["eos"]["ppo/eos_rate"] < 1.0
    assert rows["all"]["ppo/eos_rate"] == 1.0
    assert rows["all"]["ppo/response_tokens"] < 2.0 < rows["eos"]["ppo/response_tokens"]
