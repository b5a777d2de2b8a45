"""The inputs of an evaluation that the command line asks for: policies, prompts, reward model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.loading import load_config
from pipeline.evaluation.request import Request, Source, check_files, named_policies
from pipeline.runs.rounds import latest

if TYPE_CHECKING:
    from pipeline.evaluation.suites.suite import Inputs

DATA = "data"


def inputs_of(request: Request, out: Path) -> "Inputs":
    """Policies, prompts and settings, checked. An experiment's data is made under `out`."""
    from pipeline.evaluation.suites.suite import Inputs
    from pipeline.evaluation.suites.toxicity_prompts import load_toxicity_prompts
    from pipeline.steps.data import DataFolder, make_data
    from stages.data.demonstrations import load_prompts, pretraining_texts

    if not request.policies:
        raise ValueError("whom to judge? Give a config, or --policy [NAME=]PLACE, one or more")
    policies = named_policies(request.policies)
    run = _run_of(policies)
    config = request.settings(run, list(policies))
    check_files(config)
    prompts = load_prompts(request.prompts) if request.prompts else None
    toxicity_prompts = (
        load_toxicity_prompts(request.toxicity_prompts) if request.toxicity_prompts else None
    )
    texts = list(pretraining_texts(request.texts)) if request.texts else None
    folder = out / DATA if run is None or request.config is not None else run / DATA
    if request.config is not None:
        folder.mkdir(parents=True, exist_ok=True)
        make_data(load_config(request.config), folder)
    data = DataFolder(folder)
    return Inputs(
        config,
        policies,
        prompts=prompts or data.prompts("test"),
        toxicity_prompts=toxicity_prompts or data.prompts("toxicity"),
        held_out_texts=texts or data.texts("held_out"),
        reward_model=_reward_model(request, run),
        seed=request.seed,
    )


def _run_of(policies: Mapping[str, Source]) -> Path | None:
    """The run of the first policy that is one of a run's."""
    sources = [source for source in policies.values() if isinstance(source, Path)]
    above = [folder for source in sources for folder in list(source.parents)[:2]]
    return next((folder for folder in above if (folder / DATA).is_dir()), None)


def _reward_model(request: Request, run: Path | None) -> Path | None:
    """A reward model's folder; of a run, that of its stage."""
    if request.reward_model is None:
        own = None if run is None else latest(run) / "model"
        return own if own is not None and own.is_dir() else None
    place = request.reward_model
    for folder in (latest(place) / "model", place / "model", place):
        if (folder / "config.json").is_file() or (folder / "reward_model.json").is_file():
            return folder
    raise ValueError(f"{request.reward_model}: no reward model there")
