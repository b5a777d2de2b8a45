"""Names in a config: every path knows `~`, and the content behind every name decides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import torch
import typer
import yaml
from pydantic import BaseModel, TypeAdapter
from safetensors.torch import save_file
from typer.core import TyperGroup
from typer.main import get_command

from pipeline.cli.app import app
from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.runs.manifest import Hashes
from pipeline.steps.order import experiment_stages
from pipeline.studies.robustness.config import RobustnessConfig
from stages.config import ExternalName, _first_marker, external_names, without_external_names
from stages.users.config import UserAdaptersConfig

# Texts of configs that name nothing outside: words, addresses, instructions, keys.
TEXTS = {
    "name",
    "cluster",
    "answer",
    "templates",
    "held_out",
    "text",
    "url",
    "model",
    "key_variable",
    "host",
    "header",
    "addresses",
    "owners",
    "baseline",
    "compare_with",
    "instructions",
    "closed_domain",
    "instruction",
    "shots",
    "tasks",
    "label",
    "activation",
    "learn_from_skips",
    "target_modules",
    "categories",
    "trainer",
    "families",
    "attn_implementation",
}


def classes(annotation: Any, seen: set[type] | None = None) -> Iterator[type[BaseModel]]:
    """All config classes that a class or a type mentions, and itself."""
    seen = set() if seen is None else seen
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        seen.add(annotation)
        yield annotation
        for field in annotation.model_fields.values():
            yield from classes(field.annotation, seen)
    for inner in get_args(annotation):
        yield from classes(inner, seen)


FIELDS = [
    (kind, key, field)
    for root in (ExperimentConfig, RobustnessConfig, UserAdaptersConfig)
    for kind in classes(root)
    for key, field in kind.model_fields.items()
]
MARKED = [
    (f"{kind.__name__}.{key}", field)
    for kind, key, field in FIELDS
    if _first_marker([*field.metadata, field.annotation])
]


def holds_text(annotation: Any) -> bool:
    return annotation is str or any(map(holds_text, get_args(annotation)))


def test_every_text_of_a_config_is_known_to_name_something_or_not():
    names = {name for name, _ in MARKED}
    unknown = {
        f"{kind.__name__}.{key}"
        for kind, key, field in FIELDS
        if holds_text(field.annotation) and key not in TEXTS
    }
    assert unknown - names == set()


@pytest.mark.parametrize(("where", "field"), MARKED, ids=[where for where, _ in MARKED])
def test_a_tilde_is_the_home_folder(where: str, field: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    kind = TypeAdapter(
        Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    )
    several = "list" in str(field.annotation)
    value = kind.validate_python(["~/x"] if several else "~/x")
    assert value == (["/home/somebody/x"] if several else "/home/somebody/x"), where


def test_a_tilde_after_hf_is_the_home_folder_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = ExperimentConfig.model_validate(everything(Path("~")))
    assert config.data.model_dump()["test_prompts"] == "hf:/home/somebody/data"


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("~/runs/a", "/home/somebody/runs/a"),
        ("--out=~/runs/a", "--out=/home/somebody/runs/a"),
        ("--policy=mine=~/a b", "--policy=mine=/home/somebody/a b"),
        ("classifier:~/m", "classifier:/home/somebody/m"),
        ("postgresql://host/~x", "postgresql://host/~x"),
        ("ppo=~", "ppo=~"),  # null
        ("is a=~/b right?", "is a=~/b right?"),
    ],
)
def test_a_tilde_of_any_argument_is_the_home_folder(
    argument: str, expanded: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/home/somebody")
    given: list[list[str]] = []
    monkeypatch.setattr(TyperGroup, "parse_args", lambda _, __, args: given.append(args))
    get_command(app).parse_args(typer.Context(get_command(app)), ["run", argument])
    assert given == [["run", expanded]]


def everything(folder: Path) -> dict[str, Any]:
    """A config that names something in every place where a config can."""
    files = (
        "demonstrations",
        "validation",
        "ranking_prompts",
        "ppo_prompts",
        "validation_prompts",
        "toxicity_prompts",
        "pretraining_texts",
        "held_out_texts",
    )
    classifier = {"kind": "classifier", "model": str(folder / "toxic"), "label": "x"}
    return {
        "name": "named",
        "model": str(folder / "base"),
        "reward_base": str(folder / "other"),
        "sft_choice": "loss",
        "data": {
            "kind": "files",
            "test_prompts": f"hf:{folder / 'data'}",
            **{name: str(folder / f"{name}.jsonl") for name in files},
        },
        "labeling": {
            "kind": "imported",
            "tasks": str(folder / "tasks.jsonl"),
            "rankings": str(folder / "rankings.jsonl"),
        },
        "ppo": {"overoptimization": {"gold_reward": str(folder / "gold")}},
        "baselines": [
            {
                "kind": "instruction_tuned",
                "held_out": ["b"],
                "tasks": [
                    {
                        "name": c,
                        "cluster": c,
                        "source": f"hf:{folder / c}:train",
                        "templates": ["{x}"],
                        "answer": "{y}",
                    }
                    for c in "ab"
                ],
            }
        ],
        "evaluation": {
            "calibration": str(folder / "calibration.csv"),
            "grounding": [str(folder / "begin.tsv")],
            "toxicity_scorers": [classifier],
            "entailment": [{"model": str(folder / "nli")}],
            "truthfulqa": {"questions": str(folder / "truthful.csv")},
            "bias": {"pairs": [str(folder / "crows.csv"), str(folder / "wino.tsv")]},
            "tax": {"tasks": ["own"], "folder": str(folder / "tax")},
        },
    }


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    """That config, with every file and folder that it names."""
    mapping = everything(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(mapping))
    config = load_config(tmp_path / "c.yaml")
    for _, marker, text in external_names(config):
        path = content(text)
        if marker.what == "model" or "." not in path.name:
            path.mkdir(exist_ok=True)
            (path / "config.json").write_text('{"model_type": "llama"}')
            save_file({"weight": torch.zeros(1)}, path / "model.safetensors")
        else:
            path.write_text("{}\n")
    return config


def content(text: str) -> Path:
    return Path(text.removeprefix("hf:").removesuffix(":train"))


def fingerprints(config: ExperimentConfig, folder: Path) -> dict[str, list[str]]:
    """The hashes of every stage's inputs from outside the run."""
    hashes = Hashes(folder / ".hashes.json")
    return {
        stage.name: [
            hashes.of(source)
            for source in stage.inputs().values()
            if isinstance(source, str) or not source.is_relative_to(folder)
        ]
        for stage in experiment_stages(config, folder)
    }


def test_changed_content_behind_every_name_makes_a_stage_stale(
    experiment: ExperimentConfig, tmp_path: Path
):
    run = tmp_path / "run"
    before = fingerprints(experiment, run)
    for key, marker, text in external_names(experiment):
        if not marker.decides:
            continue
        path = content(text)
        path = path / "inside.txt" if path.is_dir() else path
        path.write_text(f"changed {key}")
        after = fingerprints(experiment, run)
        assert after != before, key
        before = after


def test_a_path_is_no_part_of_a_stage_s_settings(experiment: ExperimentConfig, tmp_path: Path):
    for stage in experiment_stages(experiment, tmp_path / "run"):
        assert str(tmp_path) not in str(stage.settings()), stage.name
    assert str(tmp_path) not in str(without_external_names(experiment))


def test_a_word_among_names_stays_a_setting():
    config = ExperimentConfig(name="words", ppo={"overoptimization": {"gold_reward": "judge"}})
    assert without_external_names(config)["ppo"]["overoptimization"]["gold_reward"] == "judge"


def test_a_marker_inside_an_optional_or_a_list_is_seen():
    mark = ExternalName("file")
    for annotation in (Annotated[str, mark] | None, list[Annotated[str, mark]]):
        assert _first_marker([annotation]) is mark
