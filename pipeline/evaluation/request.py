"""The settings of an evaluation from a command line, checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.loading import load_config, overridden, validated
from pipeline.models.policies import policy_folder
from pipeline.runs.manifest import model_source

Source = Path | str


@dataclass(frozen=True, slots=True)
class Request:
    """The policies to evaluate and their prompts; None: those of the experiment or first run."""

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

    def settings(self, run: Path | None, names: Sequence[str]) -> EvaluationConfig:
        """Return the evaluation's config, its baseline as set or else the first of `names`."""
        run_config = None if run is None else run / "config.yaml"
        if run_config is not None and not run_config.is_file():
            run_config = None
        overrides = scorer_settings(self.scorers)
        if self.suites:
            overrides["suites"] = [name.strip() for name in self.suites.split(",")]
        config = evaluation_config(self.config or run_config, self.sets, overrides)
        keys = {text.removeprefix("evaluation.").partition("=")[0] for text in self.sets}
        if "baseline" not in keys and config.baseline not in names:
            config = config.model_copy(update={"baseline": names[0]})
        if not set(config.compare_with) & set(names):
            config = config.model_copy(update={"compare_with": list(names)})
        return config


def evaluation_config(
    path: Path | None, sets: Sequence[str], overrides: Mapping[str, Any]
) -> EvaluationConfig:
    """Return the evaluation of an experiment's config, or the defaults, with overrides.

    A key of `sets` may be written with or without `evaluation.` before it. Raises ValueError in one
    line.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = load_config(path).evaluation.model_dump(exclude_unset=True)
    for text in sets:
        values = overridden(values, text.removeprefix("evaluation."))
    return validated(EvaluationConfig, values={**values, **overrides}, where="evaluation: ")


def named_policies(policies: Sequence[str]) -> dict[str, Source]:
    """Return name and source of each `NAME=PLACE` or `PLACE`, which is named like its folder."""
    sources: dict[str, Source] = {}
    for text in policies:
        name, equals, path_or_name = text.partition("=")
        source = _source(path_or_name if equals else text)
        if not equals:
            path = Path(text)
            name = path.parent.name if path.name == "model" else path.name
        if name in sources:
            raise ValueError(
                f"--policy {text}: '{name}' is there twice; say NAME={path_or_name or text}"
            )
        sources[name] = source
    return sources


def _source(name: str) -> Source:
    source = model_source(name)
    if not isinstance(source, Path) or (source / "baseline.json").is_file():
        return source
    return policy_folder(source)


def scorer_settings(scorers: Sequence[str]) -> dict[str, Any]:
    """Return the config's keys for `KIND` or `KIND:MODEL`; unknown kinds are left to the config."""
    parts = [text.partition(":") for text in scorers]
    configs = [{"kind": kind, **({"model": model} if model else {})} for kind, _, model in parts]
    keys = {
        "toxicity_scorers": [each for each in configs if each["kind"] != "nli"],
        "entailment": [each for each in configs if each["kind"] == "nli"],
    }
    return {key: values for key, values in keys.items() if values}


def columns_of(text: str) -> dict[str, str]:
    """Return `a=b,c=d` as a mapping; raise ValueError for anything else."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    for name, equals, column in pairs:
        if not (name and equals and column):
            raise ValueError(f"--columns {text}: expected name=column, such as completion=sample")
    return {name: column for name, _, column in pairs}


def check_files(config: EvaluationConfig) -> None:
    """Raise ValueError for a file of questions, pairs or labelled texts that cannot be read.

    An evaluation reads them last; they are checked before anything is trained.
    """
    if config.truthfulqa is not None:
        from pipeline.evaluation.suites.truthfulqa import load_questions

        load_questions(Path(config.truthfulqa.questions))
    if config.bias is not None:
        from pipeline.evaluation.suites.bias import load_pairs

        for path in config.bias.pairs:
            load_pairs(Path(path))
    if config.grounding or config.calibration is not None:
        from pipeline.evaluation.validity import open_calibration, read_begin

        for path in config.grounding:
            read_begin(Path(path), config.closed_domain[0])
        if config.calibration is not None:
            open_calibration(Path(config.calibration))
