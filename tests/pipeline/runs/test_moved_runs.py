"""A run is a thing one can move: finished or half-finished, whichever family it trains."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import checked
from pipeline.models.policies import policy_folder
from pipeline.runs.run import Run, open_run
from pipeline.steps.order import experiment_stages
from reward_models.atomic_files import write_jsonl
from reward_models.model import RewardModel
from reward_models.model_files import base_name, base_source
from reward_models.row_files import read_jsonl
from stages.models import load_policy, load_tokenizer
from stages.progress import Report, Step, silent
from stages.users.train import open_user_store
from tests.reward_models.tiny import WORDS, tiny_base
from tests.stages.adapters import family_cells

MORE = ("full-top", "prefix-reparametrised")
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: family.model_dump() for name, family in family_cells.FAMILIES.items()},
    **{name: family_cells.VARIANTS[name].model_dump() for name in MORE},
}
SAMPLING = {"temperature": 1.0, "max_new_tokens": 3, "batch_size": 8}


class PowerCutError(Exception):
    """Stands for a kill in the middle of a stage."""


def experiment(world: Path, sft: dict[str, Any], other: dict[str, Any]) -> ExperimentConfig:
    """A tiny experiment on files and a base in `world`; `other` is what reward model and PPO move.

    Each family is what SFT trains in one case; in the other it is a set on a whole SFT model, which
    lies inside the run.
    """
    if not (world / "base").is_dir():
        tiny_base(world / "base")
        pairs = [(a, b) for a in WORDS[:6] for b in WORDS[6:9]]
        write_jsonl(
            world / "demos.jsonl", ({"prompt": f"{a} {b}", "response": b} for a, b in pairs)
        )
        write_jsonl(world / "prompts.jsonl", ({"prompt": f"{b} {a}"} for a, b in pairs))
        write_jsonl(world / "test.jsonl", ({"prompt": f"{b} {b} {a}"} for a, b in pairs[:3]))
        write_jsonl(
            world / "pairs.jsonl",
            ({"prompt": a, "chosen": f"{b} good", "rejected": f"{b} bad"} for a, b in pairs),
        )
    files = {"demonstrations": "demos", "ranking_prompts": "prompts", "test_prompts": "test"}
    return checked(
        {
            "name": "moved",
            "threads": 1,
            "model": str(world / "base"),
            "data": {"kind": "files", **{k: f"{world / v}.jsonl" for k, v in files.items()}},
            "sft": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "adaptation": sft},
            "sft_choice": "loss",
            "reward_base": "base" if sft["family"] == "probe" else "sft",  # which no probe sits on
            "labeling": {"kind": "imported", "rankings": str(world / "pairs.jsonl")},
            "reward": {
                "prompts_per_batch": 2,
                "learning_rate": 0.01,
                "held_out": 0.2,
                "adaptation": other,
            },
            "ppo": {
                "episodes": 24,
                "episodes_per_rollout": 8,
                "minibatch": 4,
                "learning_rate": 0.01,
                "checkpoint_every": 1,
                "health": {"action": "warn"},
                "sampling": SAMPLING,
                "adaptation": other,
            },
        },
        "moved",
    )


def advance(
    config: ExperimentConfig, folder: Path, last: str, report: Report = silent
) -> dict[str, str]:
    """Do the stages up to `last` but `sample`, which nobody reads; the state that each was in."""
    states: dict[str, str] = {}
    with open_run(folder) as run:
        (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
        for stage in experiment_stages(config, folder):
            if stage.name == "sample":
                continue
            states[stage.name] = execute(run, stage, report)
            if stage.name == last:
                break
    return states


def execute(run: Run, stage: Any, report: Report) -> str:
    status = run.status(stage)
    if status.state != "finished":
        run.execute(stage, status, report)
    return str(status.state)


def cut_off_in_ppo(step: Step) -> None:
    if "ppo/kl_nats" in step.metrics and step.done >= 2:
        raise PowerCutError


def mentions(folder: Path, text: str) -> list[str]:
    """The files, hidden ones too, in whose bytes a text stands."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def numbers(folder: Path) -> Sequence[Any]:
    """PPO's metrics but for times, and its result's bytes."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for _, row in read_jsonl(folder / "ppo/metrics.jsonl")
    ]
    weights = sorted((folder / "ppo/model").glob("*.safetensors"))
    return [rows, [path.read_bytes() for path in weights]]


def moved_is_unmoved(world: Path, sft: dict[str, Any], other: dict[str, Any]) -> None:
    """Move a run after SFT, in the middle of PPO and at its end; it ends as one that stays."""
    config = experiment(world, sft, other)
    advance(config, world / "stays", "ppo")
    folders = [world / "first", world / "second/deeper", world / "third", world / "fourth"]
    advance(config, folders[0], "sft")
    move(folders[0], folders[1])
    with pytest.raises(PowerCutError):
        advance(config, folders[1], "ppo", cut_off_in_ppo)
    assert any((folders[1] / "ppo/checkpoints").glob("checkpoint-*"))
    move(folders[1], folders[2])
    states = advance(config, folders[2], "ppo")
    assert set(states.values()) - {states["ppo"]} == {"finished"}
    assert states["ppo"] == "interrupted"
    move(folders[2], folders[3])
    assert set(advance(config, folders[3], "ppo").values()) == {"finished"}
    assert numbers(folders[3]) == numbers(world / "stays")
    load_policy(policy_folder(folders[3]))
    RewardModel.load(folders[3] / "reward/model")
    RewardModel.load(folders[3] / "ppo/critic")
    for old in folders:
        assert mentions(folders[3], str(old)) == []


def move(old: Path, new: Path) -> None:
    new.parent.mkdir(exist_ok=True)
    old.rename(new)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("lora"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in FAMILIES
            if name not in ("lora", "full")
        ),
    ],
)
def test_a_moved_run_ends_like_one_that_stays(family: str, tmp_path: Path):
    moved_is_unmoved(tmp_path, FAMILIES["full"], FAMILIES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_moved_run_of_one_family_ends_like_one_that_stays(family: str, tmp_path: Path):
    moved_is_unmoved(tmp_path, FAMILIES[family], FAMILIES[family])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with a run of LoRA whose reward model is done."""
    world = tmp_path_factory.mktemp("finished")
    advance(experiment(world, FAMILIES["lora"], FAMILIES["lora"]), world / "run", "reward")
    return world


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "world")
    return tmp_path / "world"


def test_a_copy_is_up_to_date_where_the_original_s_files_are_gone(finished: Path, tmp_path: Path):
    config = experiment(finished, FAMILIES["lora"], FAMILIES["lora"])
    world = copied(finished, tmp_path)
    aside = finished.with_name("aside")
    finished.rename(aside)
    try:
        states = advance(config, world / "run", "reward")
    finally:
        aside.rename(finished)
    assert set(states.values()) == {"finished"}


def test_a_base_that_moved_is_named_with_its_hash_and_found_where_the_config_says(
    finished: Path, tmp_path: Path
):
    world = copied(finished, tmp_path)
    for name in ("sft/model", "reward/model"):
        hidden(world / "run" / name, finished / "base")
    with pytest.raises(ValueError, match=r"its base .*absent.* \(weights [0-9a-f]{8}…\)") as caught:
        load_policy(world / "run/sft/model")
    assert "--set model=" in str(caught.value)
    with pytest.raises(ValueError, match=r"its base .*absent"):
        RewardModel.load(world / "run/reward/model")
    (world / "run/config.yaml").write_text(json.dumps({"model": str(world / "base")}))
    load_policy(world / "run/sft/model")
    RewardModel.load(world / "run/reward/model")


def hidden(folder: Path, base: Path) -> None:
    """Let what is saved in `folder` name a base that is not there."""
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(str(base), str(base / "absent")))
    config = folder.parent.parent / "config.yaml"
    config.write_text(config.read_text().replace(str(base), str(base / "absent")))


def test_a_base_elsewhere_that_is_another_is_refused(finished: Path, tmp_path: Path):
    world = copied(finished, tmp_path)
    tiny_base(world / "other", tied=True)
    hidden(world / "run/sft/model", finished / "base")
    (world / "run/config.yaml").write_text(json.dumps({"model": str(world / "other")}))
    with pytest.raises(ValueError, match="an adapter only fits the weights it was trained on"):
        load_policy(world / "run/sft/model")


def test_a_base_of_an_installed_package_is_named_by_the_package(tmp_path: Path):
    import pipeline

    shipped = Path(pipeline.__file__).parent / "quickstart/base"
    name = base_name(str(shipped), tmp_path)
    assert name == "package:pipeline/quickstart/base"
    assert Path(base_source(name, tmp_path, "")) == shipped.resolve()


def test_a_store_of_users_moves_with_the_model_that_it_lies_in(finished: Path, tmp_path: Path):
    from stages.users.config import UserAdaptersConfig
    from stages.users.train import train_user_adapters
    from tests.stages.adapters.family_cells import DEMONSTRATIONS

    model = tmp_path / "run/sft/model"
    shutil.copytree(finished / "base", model)
    store = open_user_store(model / "users", load_policy(model))
    config = UserAdaptersConfig(steps=1)
    train_user_adapters(
        load_policy(model),
        load_tokenizer(model),
        {"ann": DEMONSTRATIONS[:2]},
        config,
        store,
        seed=0,
    )
    assert mentions(model, str(tmp_path)) == []
    move(tmp_path / "run", tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere/sft/model"
    assert open_user_store(moved / "users", load_policy(moved)).names() == ["ann"]


def test_a_store_of_users_does_not_make_its_model_s_stage_stale(finished: Path, tmp_path: Path):
    world = copied(finished, tmp_path)
    users = world / "run/sft/model/users"
    users.mkdir()
    (users / "base.json").write_text("{}")
    config = experiment(finished, FAMILIES["lora"], FAMILIES["lora"])
    assert set(advance(config, world / "run", "reward").values()) == {"finished"}
