"""From what the command line says about judging to whom, on what, and by whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.loading import load_config, overridden
from pipeline.config.messages import first_error
from pipeline.evaluation.suites.benchmark_files import check_files
from pipeline.models.policy_folder import policy_folder
from pipeline.runs.manifest import model_source
from pipeline.runs.rounds import latest

if TYPE_CHECKING:
    from pipeline.evaluation.suites.setting import Setting

Source = Path | str
DATA = "data"


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is to be judged, on what. None: what the experiment or the first policy's run has."""

    policies: Sequence[str]
    suites: str = ""
    config: Path | None = None
    sets: Sequence[str] = ()
    scorers: Sequence[str] = ()
    prompts: str | None = None
    toxicity_prompts: str | None = None
    texts: str | None = None
    reward_model: Path | None = None
    seed: int = 0


def setting_of(asked: Asked, out: Path) -> "Setting":
    """Policies, prompts and settings, checked. An experiment's data is made under `out`."""
    from pipeline.evaluation.suites.setting import Setting
    from pipeline.evaluation.suites.toxicity_prompts import load_toxicity_prompts
    from pipeline.steps.data import DataFolder, make_data
    from stages.data.demonstrations import load_pretraining_texts, load_prompts

    if not asked.policies:
        raise ValueError("whom to judge? Give a config, or --policy [NAME=]PLACE, one or more")
    policies = named_policies(asked.policies)
    run = _run_of(policies)
    config = _config(asked, run, list(policies))
    check_files(config)
    given = {
        "prompts": load_prompts(asked.prompts) if asked.prompts else None,
        "toxicity": (
            load_toxicity_prompts(asked.toxicity_prompts) if asked.toxicity_prompts else None
        ),
    }
    texts = load_pretraining_texts(asked.texts) if asked.texts else None
    folder = out / DATA if run is None or asked.config is not None else run / DATA
    if asked.config is not None:
        folder.mkdir(parents=True, exist_ok=True)
        make_data(load_config(asked.config), folder)
    found = DataFolder(folder)
    return Setting(
        config,
        policies,
        prompts=given["prompts"] or found.prompts("test"),
        toxicity_prompts=given["toxicity"] or found.prompts("toxicity"),
        held_out_texts=texts or found.texts("held_out"),
        reward_model=_reward_model(asked, run),
        seed=asked.seed,
    )


def evaluation_config(
    where: Path | None, sets: Sequence[str], further: Mapping[str, Any]
) -> EvaluationConfig:
    """The evaluation's settings of an experiment, or the defaults; `sets` and `further` on top.

    A key may be written with or without `evaluation.` before it. Raises ValueError in one line.
    """
    inside: dict[str, Any] = {}
    if where is not None:
        inside = load_config(where).evaluation.model_dump(exclude_unset=True)
    for text in sets:
        inside = overridden(inside, text.removeprefix("evaluation."))
    try:
        return EvaluationConfig.model_validate({**inside, **further})
    except ValidationError as error:
        raise ValueError(f"evaluation: {first_error(error, EvaluationConfig)}") from None


def named_policies(places: Sequence[str]) -> dict[str, Source]:
    """`NAME=PLACE` or `PLACE` to name and source; a place without a name lends its folder's."""
    found: dict[str, Source] = {}
    for text in places:
        name, equals, place = text.partition("=")
        source = _source(place if equals else text)
        if not equals:
            path = Path(text)
            name = path.parent.name if path.name == "model" else path.name
        if name in found:
            raise ValueError(f"--policy {text}: '{name}' is there twice; say NAME={place or text}")
        found[name] = source
    return found


def scorer_settings(scorers: Sequence[str]) -> dict[str, Any]:
    """`KIND` or `KIND:MODEL` as the config's keys; kinds the config does not know are its error."""
    split = [text.partition(":") for text in scorers]
    chosen = [{"kind": kind, **({"model": model} if model else {})} for kind, _, model in split]
    toxicity = [each for each in chosen if each["kind"] != "nli"]
    entailment = [each for each in chosen if each["kind"] == "nli"]
    return {
        **({"toxicity_scorers": toxicity} if toxicity else {}),
        **({"entailment": entailment} if entailment else {}),
    }


def _config(asked: Asked, run: Path | None, names: Sequence[str]) -> EvaluationConfig:
    """The settings, with a baseline among those who are judged: as set, or the first of them."""
    in_run = None if run is None else run / "config.yaml"
    where = asked.config or (in_run if in_run is not None and in_run.is_file() else None)
    further = scorer_settings(asked.scorers)
    if asked.suites:
        further["suites"] = [name.strip() for name in asked.suites.split(",")]
    config = evaluation_config(where, asked.sets, further)
    said = any(text.removeprefix("evaluation.").startswith("baseline=") for text in asked.sets)
    if not said and config.baseline not in names:
        config = config.model_copy(update={"baseline": names[0]})
    if not set(config.compare_with) & set(names):
        config = config.model_copy(update={"compare_with": list(names)})
    return config


def _source(place: str) -> Source:
    found = model_source(place)
    if not isinstance(found, Path) or (found / "baseline.json").is_file():
        return found
    return policy_folder(found)


def _run_of(policies: Mapping[str, Source]) -> Path | None:
    """The run of the first policy that is one of a run's."""
    places = [source for source in policies.values() if isinstance(source, Path)]
    above = [folder for place in places for folder in list(place.parents)[:2]]
    return next((folder for folder in above if (folder / DATA).is_dir()), None)


def _reward_model(asked: Asked, run: Path | None) -> Path | None:
    """A reward model's folder; of a run, that of its stage."""
    if asked.reward_model is None:
        own = None if run is None else latest(run) / "model"
        return own if own is not None and own.is_dir() else None
    place = asked.reward_model
    for folder in (latest(place) / "model", place / "model", place):
        if (folder / "config.json").is_file() or (folder / "reward_model.json").is_file():
            return folder
    raise ValueError(f"{asked.reward_model}: no reward model there")
