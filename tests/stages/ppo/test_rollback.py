"""The state after a rollback or a kill: nothing that the checkpoint does not hold."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.runs.run import MetricsFile
from stages.data.streams import PretrainingStream
from stages.distributed.checkpoints import Checkpoints
from stages.ppo import health, ppo
from stages.ppo import train as ppo_train
from stages.ppo.config import PPOConfig
from stages.ppo.overoptimization import GoldReward
from stages.ppo.run import PPORun, RunState
from stages.progress import Report, silent
from tests.stages.ppo.test_guards import OFF
from tests.stages.ppo.tiny_ppo import PROMPTS, metrics_of, tiny_config, tiny_world, train

World = tuple[Path, Path]
# What a rollback changes.
DECLARED = ("state.kl_coefficient", "state.learning_rate_scale", "state.rollbacks")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def everything(x: Any, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Every number, text and tensor that can be reached from `x`, by the path to it."""
    if id(x) in seen:
        return
    seen = seen | {id(x)}
    match x:
        case nn.Module():
            for name, tensor in [*x.named_parameters(), *x.named_buffers()]:
                yield f"{path}.{name}", tensor
                yield f"{path}.{name}.grad", tensor.grad
            yield f"{path}.training", x.training
        case Optimizer():
            moments = {str(n): state for n, state in x.state_dict()["state"].items()}
            yield from everything(moments, f"{path}.moments", seen)  # rates are set at each step
        case PretrainingStream():
            yield from everything(x.state(), f"{path}.stream", seen)
        case torch.Tensor() | str() | bool() | int() | float() | None | Path():
            yield path, x
        case dict():
            for key, value in x.items():
                yield from everything(value, f"{path}.{key}", seen)
        case list() | tuple():
            yield f"{path}.len", len(x)
            for number, value in enumerate(x):
                yield from everything(value, f"{path}.{number}", seen)
        case _ if type(x).__module__.startswith("stages."):
            slots = getattr(type(x), "__slots__", ())
            for name in [*getattr(x, "__dict__", {}), *slots]:
                yield from everything(getattr(x, name), f"{path}.{name}", seen)


def state_of(run: PPORun) -> dict[str, Any]:
    state = {path.removeprefix("."): value for path, value in everything(run)}
    return {
        path: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for path, value in state.items()
        if not path.startswith(DECLARED)
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for path, value in a.items():
        same = torch.equal(value, b[path]) if isinstance(value, torch.Tensor) else value == b[path]
        assert same, path


class StopError(Exception):
    """Ends a run after it was restored."""


def restored(world: World, out: Path, config: PPOConfig, **named: Any) -> dict[str, Any]:
    """The state of a new process's run once it was restored from the checkpoints in `out`."""
    states: list[dict[str, Any]] = []

    def only_restore(run: PPORun, _: Any, checkpoints: Checkpoints, *__: Any, **___: Any) -> None:
        saved = checkpoints.latest()
        if saved is not None:
            run.load_state_dict(saved)
        states.append(state_of(run))
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_train, "train", only_restore)
        with pytest.raises(StopError):
            train(world, out, config, **named)
    return states[0]


def watched(monkeypatch: pytest.MonkeyPatch, out: Path) -> list[dict[str, Any]]:
    """The state right after each rollback; the checkpoint it came from is copied aside."""
    states: list[dict[str, Any]] = []
    roll_back, load = PPORun.roll_back, PPORun.load_state_dict

    def spy(run: PPORun, error: health.UnhealthyRunError, checkpoints: Checkpoints) -> None:
        copy = out.with_name(f"{out.name}-{len(states)}")
        shutil.copytree(out / "checkpoints", copy / "checkpoints")

        def noted(self: PPORun, saved: dict[str, Any]) -> None:
            load(self, saved)
            states.append(state_of(self))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PPORun, "load_state_dict", noted)
            roll_back(run, error, checkpoints)

    monkeypatch.setattr(PPORun, "roll_back", spy)
    return states


KINDS: dict[str, dict[str, Any]] = {
    "to the start": {"checkpoint_every": 20},
    "to a checkpoint": {"checkpoint_every": 3},
    "with an average": {"checkpoint_every": 3, "ema_decay": 0.5},
    "with all that a run can have": {
        "checkpoint_every": 3,
        "ema_decay": 0.5,
        "kl": {"kind": "adaptive", "coefficient": 0.01, "target_nats": 1.0},
        "pretraining": {"coefficient": 0.1, "examples_per_episode": 1.0, "tokens_per_example": 8},
        "overoptimization": {"gold_reward": "judge", "every": 2, "num_prompts": 3},
        "adaptation": {"family": "full", "top_layers": 1},
        "responses_per_prompt": 2,
    },
}


def judged(config: PPOConfig) -> GoldReward | None:
    def lengths(_: Any, responses: Any, __: Any) -> list[float]:
        return [float(len(response)) for response in responses]

    return GoldReward(lengths, PROMPTS[:3]) if config.overoptimization is not None else None


def wild(**changes: Any) -> PPOConfig:
    """A run that leaves the reference behind, is taken back, and then hardly moves."""
    settings: dict[str, Any] = {
        "learning_rate": 0.05,
        "kl": {"kind": "fixed", "coefficient": 0.0},
        "ema_decay": None,
        "episodes": 8 * 14,
        "validation": {"every": 1},
        "health": {
            **OFF,
            "max_kl_nats_per_token": 0.15,
            "action": "rollback",
            "rollback": {"times": 3, "learning_rate_factor": 0.001, "kl_factor": 2.0},
        },
    }
    return tiny_config(**settings | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_rollback_every_state_is_that_of_a_run_restored_from_the_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = wild(**KINDS[kind], episodes=8 * 9, health={"action": "rollback"})
    iterations = iter(range(100))
    monkeypatch.setattr(health, "alarms", lambda *_: ["alarm"] * (next(iterations) == 7))
    states = watched(monkeypatch, tmp_path / "run")
    train(world, tmp_path / "run", config, gold=judged(config))
    assert len(states) == 1
    for number, state in enumerate(states):
        fresh = restored(world, tmp_path / f"run-{number}", config, gold=judged(config))
        assert_same(state, fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_is_restored_to_the_state_it_saved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = wild(**KINDS[kind], health={"action": "warn"})
    saved: list[dict[str, Any]] = []
    save = PPORun.save

    def noted(run: PPORun, checkpoints: Checkpoints) -> None:
        save(run, checkpoints)
        run.models.lower.forget()  # states of a rollout that is over
        saved.append(state_of(run))

    monkeypatch.setattr(PPORun, "save", noted)
    train(world, tmp_path / "run", config, gold=judged(config))
    assert_same(saved[-1], restored(world, tmp_path / "run", config, gold=judged(config)))


def test_a_gradient_that_was_not_finite_is_gone_after_the_rollback(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, spoilt = ppo.iterate, []

    def once(run: PPORun, prompts: Any, iteration: int, *args: Any) -> Any:
        if iteration == 2 and not spoilt:
            spoilt.append(True)
            for network in (run.policy, run.critic):
                for parameter in network.parameters.values():
                    parameter.grad = torch.full_like(parameter, float("nan"))
        return honest(run, prompts, iteration, *args)

    monkeypatch.setattr(ppo, "iterate", once)
    guards = {**OFF, "action": "rollback"}
    steps = metrics_of(world, tmp_path, tiny_config(health=guards, episodes=40))
    assert [step["ppo/rollbacks"] for step in steps] == [0, 0, 1, 1, 1]


def end_of(world: World, out: Path, config: PPOConfig, report: Report = silent) -> RunState:
    """The state of a run as it ended, before its result was written."""
    ends: list[RunState] = []

    def noted(run: PPORun, *args: Any, **named: Any) -> None:
        ppo.train(run, *args, **named)
        ends.append(run.state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_train, "train", noted)
        train(world, out, config, report)
    return ends[0]


def rows_of(world: World, folder: Path, config: PPOConfig) -> tuple[RunState, list[dict[str, Any]]]:
    metrics = MetricsFile(folder / "metrics.jsonl")
    end = end_of(world, folder, config, metrics.add)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return end, [row for row in rows if row["step"] > 0]


def test_the_result_is_the_best_of_what_was_not_taken_back(world: World, tmp_path: Path) -> None:
    end, rows = rows_of(world, tmp_path, wild(checkpoint_every=20))
    assert end.rollbacks
    assert [row["step"] for row in rows] == [*range(1, 15)]
    assert {row["ppo/rollbacks"] for row in rows} == {float(len(end.rollbacks))}
    scores = [row["ppo/validation_score"] for row in rows]
    assert end.best is not None
    assert end.best.score == max(scores) == scores[end.best.iteration - 1]
    assert rows[-1]["ppo/best_iteration"] == end.best.iteration


def test_a_policy_that_raised_an_alarm_is_neither_returned_to_nor_the_best(
    world: World, tmp_path: Path
) -> None:
    end, _ = rows_of(world, tmp_path, wild(checkpoint_every=1))
    first = end.rollbacks[0]
    assert first["to_iteration"] < first["from_iteration"] - 1  # that policy itself was sick
    assert len(end.rollbacks) == 1  # from there, the same alarm does not come again


@pytest.mark.parametrize("every", [1, 2, 3])
def test_an_iteration_with_an_alarm_is_never_the_result(
    world: World, tmp_path: Path, every: int
) -> None:
    guards = {"action": "warn", **OFF, "max_kl_nats_per_token": 0.1}
    config = wild(health=guards, validation={"every": every}, episodes=8 * 10)
    end, rows = rows_of(world, tmp_path, config)
    healthy = {r["step"] for r in rows if r.get("ppo/kl_nats_per_token", 0.0) <= 0.1}
    assert healthy < {row["step"] for row in rows}
    assert end.best is not None
    assert end.best.iteration in healthy
    scores = [
        r["ppo/validation_score"] for r in rows if r["step"] in healthy and r["step"] % every == 0
    ]
    assert end.best.score == max(scores)


@pytest.mark.parametrize("every", [1, 3])
def test_a_kl_budget_holds_from_the_first_validation_on(
    world: World, tmp_path: Path, every: int, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"every": every, "kl_budget_nats": 1e-6}
    config = tiny_config(validation=rule, learning_rate=0.02, ema_decay=None, episodes=48)
    end, rows = rows_of(world, tmp_path, config)
    validated = [row for row in rows if "ppo/validation_kl_nats" in row]
    assert (
        [row["ppo/validation_kl_nats"] > 1e-6 for row in validated][-1] is end.over_budget is True
    )
    assert end.best is not None
    assert end.best.iteration == rows[-1]["ppo/best_iteration"] < end.iteration
    assert "above validation.kl_budget_nats (1e-06): training ends here" in caplog.text
    if end.best.iteration == 0:
        assert "the result is the starting policy" in caplog.text
