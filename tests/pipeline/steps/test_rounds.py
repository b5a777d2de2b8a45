"""Stages two and three again: sampled from the new policy, ranked, learnt from with all before."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.models.policies import policy_folder
from pipeline.runs.manifest import Manifest
from pipeline.runs.stage import is_ppo, last_round, latest, stage_names
from pipeline.steps.evaluate import Evaluate
from pipeline.steps.order import experiment_stages, run_experiment
from reward_models.records import Ranking, RankingTask, read_records

ROOT = Path(__file__).parents[3]
SMALL = [
    "threads=1",
    "sft.epochs=1",
    "sft_choice=loss",
    "sampling.responses=[4, 4]",
    "ppo.episodes=32",
    "ppo.episodes_per_rollout=32",
    "ppo.minibatch=16",
    "ppo.overoptimization=null",
    "ppo_ptx=null",
    "data.sizes={demonstrations: 16, ranking_prompts: 24, ppo_prompts: 32, validation_prompts: 8, "
    "test_prompts: 8, toxicity_prompts: 4, pretraining_texts: 8, held_out_texts: 4}",
]


def config(*sets: str) -> ExperimentConfig:
    return load_config(ROOT / "configs/quickstart.yaml", [*SMALL, *sets])


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round, asked for a second one afterwards."""
    run = tmp_path_factory.mktemp("rounds") / "run"
    run_experiment(config(), run, until="ppo")
    before = written(run)
    run_experiment(config("rounds=2"), run, until="ppo-2")
    assert {name: started for name, started in written(run).items() if name in before} == before
    return run


def written(run: Path) -> dict[str, str]:
    """Return the start of each stage of a run: a stage that runs again has another."""
    return {
        path.parent.name: json.loads(path.read_text())["started"]
        for path in run.glob("*/started.json")
    }


def test_a_second_round_samples_from_the_policy_beside_those_that_the_config_names(
    two_rounds: Path,
) -> None:
    first, second = (
        read_records(two_rounds / name / "tasks.jsonl", RankingTask)
        for name in ("label", "label-2")
    )
    assert {r.model for task in first for r in task.responses} == {"sft", "base"}
    assert {r.model for task in second for r in task.responses} == {"ppo", "sft", "base"}
    assert not {task.id for task in first} & {task.id for task in second}
    assert {task.prompt for task in first} == {task.prompt for task in second}


def test_the_reward_model_of_a_second_round_learns_from_all_rankings(two_rounds: Path) -> None:
    counts = [
        len(read_records(two_rounds / name / "rankings.jsonl", Ranking))
        for name in ("label", "label-2")
    ]
    assert min(counts) >= 20
    used = [
        json.loads((two_rounds / name / "held_out.json").read_text())["trained_prompts"]
        for name in ("reward", "reward-2")
    ]
    assert used[1] > 1.5 * used[0]
    made = Manifest.read(two_rounds / "reward-2/manifest.json")
    assert made is not None
    assert {"rankings", "rankings-2", "tasks", "tasks-2"} <= made.inputs.keys()
    assert made.labels == ["simulated"]


def test_the_policy_of_a_second_round_is_trained_against_its_reward_model(two_rounds: Path):
    made = Manifest.read(two_rounds / "ppo-2/manifest.json")
    assert made is not None
    assert made.inputs["reward"].path == "reward-2/model"
    assert made.inputs["policy"].path == "sft/model"
    assert policy_folder(two_rounds) == two_rounds / "ppo-2/model"
    weights = [(two_rounds / name / "model/model.safetensors") for name in ("ppo", "ppo-2")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_two_finished_rounds_are_up_to_date(two_rounds: Path, capfd: pytest.CaptureFixture[str]):
    before = written(two_rounds)
    run_experiment(config("rounds=2"), two_rounds, until="ppo-2")
    assert written(two_rounds) == before
    stderr = capfd.readouterr().err
    assert all(f"{name}: up to date" in stderr for name in ("sample-2", "reward-2", "ppo-2"))


def test_stages_and_policies_of_three_rounds_come_in_order(tmp_path: Path) -> None:
    experiment = config("rounds=3")
    assert [stage.name for stage in experiment_stages(experiment, tmp_path)][-14:] == [
        *("sample", "label", "reward", "ppo"),
        *("sample-2", "label-2", "reward-2", "ppo-2"),
        *("sample-3", "label-3", "reward-3", "ppo-3"),
        *("evaluate", "report"),
    ]
    assert list(Evaluate(experiment, tmp_path).policies) == ["base", "sft", "ppo", "ppo-2", "ppo-3"]


def test_folders_tell_the_rounds(two_rounds: Path) -> None:
    assert stage_names(two_rounds)[-4:] == ["sample-2", "label-2", "reward-2", "ppo-2"]
    assert (last_round(two_rounds), latest(two_rounds)) == (2, two_rounds / "reward-2")
    assert [is_ppo(name) for name in ("ppo", "ppo-ptx-3", "ppo-init")] == [True, True, False]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["ppo=null"], "rounds is 2 but ppo and ppo_ptx are null"),
        (
            ["labeling={kind: imported, tasks: a, rankings: b}"],
            "rounds is 2 but labeling brings its own tasks",
        ),
        (["labeling={kind: human, tasks: a}"], "rounds is 2 but labeling brings its own tasks"),
    ],
)
def test_rounds_without_anything_new_to_rank_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("rounds=2", *sets)


def test_the_option_overrides_the_configs_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rounds: list[int] = []

    def run_nothing(config: ExperimentConfig, folder: Path, **_: object) -> Path:
        rounds.append(config.rounds)
        return folder

    monkeypatch.setattr("pipeline.steps.order.run_experiment", run_nothing)
    for extra in ([], ["--rounds", "3"], ["--set", "rounds=2"]):
        command = ["run", str(ROOT / "configs/quickstart.yaml"), "--out", str(tmp_path), *extra]
        assert CliRunner().invoke(app, command).exit_code == 0
    assert rounds == [1, 3, 2]
