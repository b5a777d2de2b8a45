"""Rollouts by a server that speaks vLLM's protocol."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from stages.distributed.network import trained_parameters
from stages.models import load_policy
from tests.distributed.ranks import run_ranks
from tests.stages.ppo.tiny_ppo import metrics_of, tiny_config, tiny_world
from tests.stages.ppo.vllm_server import TinyVllm

World = tuple[Path, Path]
LORA = {"family": "lora", "rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def server(world: World) -> Iterator[TinyVllm]:
    served = TinyVllm(world[0])
    Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def served_by(url: str) -> dict[str, object]:
    return {"rollouts": {"kind": "vllm", "url": url, "timeout_s": 30}, "adaptation": LORA}


def trained(world: World, out: Path, url: str) -> list[dict[str, float]]:
    return metrics_of(world, out, tiny_config(**served_by(url)))


def test_the_server_samples_what_was_trained_with_the_same_log_probabilities(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    steps = trained(world, tmp_path, server.url)
    assert len(steps) == 4
    for step in steps:  # after every update too: the new adapter answers
        assert step["ppo/sampler_gap_nats_per_token"] < 1e-5
        assert step["ppo/first_ratio_error"] <= 1e-5
    assert steps[-1]["ppo/kl_nats"] != 0.0
    loads = [name for path, name in server.seen if path == "/v1/load_lora_adapter"]
    assert loads == [f"policy-{k}" for k in (1, 2, 3, 4)]
    assert set(server.models) == {"base", "policy-4"}
    moved = trained_parameters(load_policy(tmp_path / "model"))
    assert all(name.count("lora") for name in moved)


def test_a_server_that_serves_something_else_shows(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    server.off_by = 0.25
    steps = trained(world, tmp_path, server.url)
    assert steps[0]["ppo/sampler_gap_nats_per_token"] == pytest.approx(0.25, abs=1e-4)
    assert steps[0]["ppo/first_ratio_error"] <= 1e-5  # old log-probabilities are read again


def test_a_run_that_goes_on_is_answered_by_its_own_adapter_not_by_the_one_it_left(
    world: World, server: TinyVllm, tmp_path: Path
) -> None:
    whole = metrics_of(world, tmp_path / "whole", tiny_config(**served_by(server.url)))
    half = tiny_config(**served_by(server.url), episodes=16)
    metrics_of(world, tmp_path / "broken", half)
    rest = trained(world, tmp_path / "broken", server.url)
    for row, expected in zip(rest, whole[2:], strict=True):
        assert row["ppo/score"] == expected["ppo/score"]
        assert row["ppo/sampler_gap_nats_per_token"] < 1e-5


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
    whole = served_by(server.url) | {"adaptation": {"family": "full"}}
    with pytest.raises(ValueError, match=r"^rollouts.url http://127.0.0.1:\d+: vLLM is not inst"):
        metrics_of(world, tmp_path / "full", tiny_config(**whole))


@pytest.mark.parametrize("served", [True, False], ids=["vllm", "own"])
def test_every_id_that_the_model_names_ends_a_response(
    world: World, server: TinyVllm, tmp_path: Path, served: bool
) -> None:
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
