"""The stages of an experiment in order, what each one's result depends on, and where it reads.

    data → sft → sample → label → reward → select → ppo → ppo-ptx → evaluate → report

SFT's epoch is first chosen by validation loss, because no reward model exists yet; its outputs are
ranked and the reward model learns from them. Then `select` chooses the epoch again by the reward
model's score (Ouyang et al. 2022, appendix C.1), trains nothing, and its model is the "SFT" that
PPO starts from, is held to, and is compared with. `sft_choice: loss` leaves `select` out. With
`ppo_init` PPO starts from, and is held to, a fine-tuning of its own, as in appendix C.3. `rounds`
above 1 repeat what collects rankings and learns from them, see `pipeline/steps/order.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.experiment import ExperimentConfig, FileSource, ImportedRankings
from pipeline.config.labeling import HumanAnnotators
from pipeline.labeling.settings import check_room
from pipeline.runs.manifest import Manifest, model_source, named_inputs
from pipeline.runs.run import Source, Stage, nothing_found
from pipeline.steps import human_labels as people
from pipeline.steps import label as rankings
from pipeline.steps import work
from pipeline.steps.baselines import baseline_stages, compared_baselines
from pipeline.steps.order import named, told, trained_policies
from reward_models.model_files import check_model
from stages.config import without_external_names
from stages.ppo.config import PPOConfig
from stages.progress import Report
from stages.sft.config import SFTConfig


def checked_source(name: str) -> Source:
    """`model_source`; ValueError where that is a model's folder that is not whole."""
    source = model_source(name)
    if isinstance(source, Path) and source.exists():
        check_model(source)
    return source


def plan(config: ExperimentConfig, run: Path) -> list[Stage]:
    """The stages of this experiment in this folder, first to last.

    Raises ValueError where a model's folder is not whole, before anything is made.
    """
    for name in {config.model, config.reward_base} - {"sft", "base"}:
        checked_source(name)
    if rankings.tasks_file(config.labeling) is not None:  # read before anything is trained
        first = [_data(config, run), _label(config, run), _sft(config, run, "sft", config.sft)]
    elif isinstance(config.labeling, ImportedRankings):  # likewise
        first = [
            _data(config, run),
            _label(config, run),
            _sft(config, run, "sft", config.sft),
            _sample(config, run),
        ]
    else:
        first = [
            _data(config, run),
            _sft(config, run, "sft", config.sft),
            _sample(config, run),
            _label(config, run),
        ]
    chosen = [_select(config, run)] if config.sft_choice == "reward" else []
    if config.ppo_init is not None:
        chosen.append(_sft(config, run, "ppo-init", config.ppo_init))
    stages = [*first, _reward(config, run), *chosen, *_trained(config, run, 1)]
    for number in range(2, config.rounds + 1):
        stages += [_sample(config, run, number), _label(config, run, number)]
        stages += [_reward(config, run, number), *_trained(config, run, number)]
    stages += baseline_stages(config, run, model_source(config.model), _fine_tuned(config, run))
    stages.append(_evaluate(config, run))
    return [*stages, _report(config, run, stages)]


def behind(stages: Sequence[Stage], last: Stage, run: Path) -> list[Stage]:
    """The stages whose artefacts `last` is made from, directly or not, and itself; in order."""
    needed = {last.name}
    for stage in reversed(stages):
        if stage.name in needed:
            inside = (path for path in stage.inputs.values() if isinstance(path, Path))
            needed |= {p.relative_to(run).parts[0] for p in inside if p.is_relative_to(run)}
    return [stage for stage in stages if stage.name in needed]


def policies(config: ExperimentConfig, run: Path) -> dict[str, Source]:
    """The policies that an experiment compares, by the names the report uses."""
    compared: dict[str, Source] = {"base": model_source(config.model)}
    baselines = compared_baselines(config, run)
    picked = {name for name in baselines if name.startswith("best-of-")}
    compared |= {name: place for name, place in baselines.items() if name not in picked}
    compared["sft"] = _fine_tuned(config, run)
    compared |= {name: place for name, place in baselines.items() if name in picked}
    for number in range(1, config.rounds + 1):
        compared |= {name: run / name / "model" for name in trained_policies(config, number)}
    return compared


def _start(config: ExperimentConfig, run: Path) -> Path:
    """The model that PPO starts from and is held to."""
    return run / "ppo-init/model" if config.ppo_init is not None else _fine_tuned(config, run)


def _fine_tuned(config: ExperimentConfig, run: Path) -> Path:
    return run / ("select" if config.sft_choice == "reward" else "sft") / "model"


def _settings(config: ExperimentConfig, **sections: BaseModel | object) -> Mapping[str, Any]:
    plain = {
        name: without_external_names(section) if isinstance(section, BaseModel) else section
        for name, section in sections.items()
    }
    return {"seed": config.seed, **plain}


def _data(config: ExperimentConfig, run: Path) -> Stage:
    settings, inputs = _settings(config, data=config.data), named_inputs(config.data)
    if isinstance(config.data, FileSource):  # what is ranked already is not validated by
        ranked = named_inputs(config.labeling, "labeling")
        done = Manifest.read(run / "data/manifest.json")
        before = {} if done is None else done.inputs
        inputs |= {k: place for k, place in ranked.items() if k in before or Path(place).exists()}
    return Stage("data", "data sets", settings, inputs, work.data(config))


def _sft(config: ExperimentConfig, run: Path, name: str, chosen: SFTConfig) -> Stage:
    base, datasets = model_source(config.model), run / "data"
    inputs = {
        "base": base,
        "demonstrations": datasets / "demonstrations.jsonl",
        "validation": datasets / "validation.jsonl",
    }
    if chosen.pretraining is not None:
        inputs["texts"] = datasets / work.PRETRAINING_TEXTS
    todo = work.settled(config, work.sft(config, chosen, base, datasets))
    told = chosen.model_dump(mode="json", exclude={"selection"})
    settings = _settings(config, threads=config.threads, sft=told)
    about = "fine-tuning on demonstrations" + (", for PPO" if name == "ppo-init" else "")
    return Stage(name, about, settings, inputs, todo, trains=True)


def _sample(config: ExperimentConfig, run: Path, number: int = 1) -> Stage:
    places: dict[str, Source] = {"base": model_source(config.model), "sft": run / "sft/model"}
    asked: dict[str, Source] = {name: places[name] for name in config.sampling.policies}
    if number > 1:
        current = trained_policies(config, number - 1)[-1]
        asked = {current: run / current / "model", **asked}
    inputs = {"prompts": run / "data/ranking_prompts.jsonl", **asked}
    todo = work.settled(config, work.sample(config, asked, run / "data", number))
    settings = _settings(config, threads=config.threads, sampling=config.sampling)
    about = told("outputs to be ranked", number)
    return Stage(named("sample", number), about, settings, inputs, todo)


def _label(config: ExperimentConfig, run: Path, number: int = 1) -> Stage:
    labeling, name = config.labeling, named("label", number)
    settings = dict(_settings(config, labeling=labeling))
    own = rankings.tasks_file(labeling)
    found: Callable[[Path], Mapping[str, Any]] = nothing_found
    inputs: dict[str, Source] = {"tasks": own or run / named("sample", number) / "tasks.jsonl"}
    match labeling:
        case ImportedRankings():
            inputs = {} if own is None else {"tasks": own}
            inputs["rankings"] = Path(labeling.rankings)
        case HumanAnnotators():
            check_room(labeling)  # a mistake in it is told before anything is trained
            settings["labeling"] = labeling.model_dump(mode="json", include=people.DECIDE)
            settings["answers"] = people.answers_so_far(labeling, run, name)
            found = people.answers_taken
        case _:
            inputs["prompts"] = run / "data/ranking_prompts.jsonl"

    def todo(out: Path, report: Report) -> None:
        rankings.collect(config, run, out, report, number)

    about = told(f"rankings: {labeling.kind}", number)
    return Stage(name, about, settings, inputs, todo, rankings.kinds, found)


def _reward(config: ExperimentConfig, run: Path, number: int = 1) -> Stage:
    places: dict[str, Source] = {"sft": run / "sft/model", "base": model_source(config.model)}
    base = places.get(config.reward_base) or model_source(config.reward_base)
    inputs: dict[str, Source] = {"base": base}
    labelled = _labelled(run, number)
    for each, folder in enumerate(labelled, 1):
        inputs[named("tasks", each)] = folder / "tasks.jsonl"
        inputs[named("rankings", each)] = folder / "rankings.jsonl"
    inputs["demonstrations"] = run / "data/demonstrations.jsonl"
    todo = work.settled(config, work.reward(config, base, labelled, run / "data"))
    settings = _settings(config, threads=config.threads, reward=config.reward)
    about = told("reward model", number)
    return Stage(named("reward", number), about, settings, inputs, todo, trains=True)


def _labelled(run: Path, number: int) -> list[Path]:
    """The folders of the rankings that the reward model of a round learns from."""
    return [run / named("label", each) for each in range(1, number + 1)]


def _select(config: ExperimentConfig, run: Path) -> Stage:
    reward_model, prompts = run / "reward/model", run / "data/validation_prompts.jsonl"
    inputs = {"sft": run / "sft/model", "reward": reward_model, "prompts": prompts}
    todo = work.settled(config, work.select(config, run / "sft", reward_model, run / "data"))
    settings = _settings(config, threads=config.threads, selection=config.sft.selection)
    return Stage("select", "SFT's epoch by reward", settings, inputs, todo)


def _trained(config: ExperimentConfig, run: Path, number: int) -> list[Stage]:
    kinds = (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx))
    return [_ppo(config, run, number, name, chosen) for name, chosen in kinds if chosen is not None]


def _ppo(config: ExperimentConfig, run: Path, number: int, name: str, chosen: PPOConfig) -> Stage:
    policy, reward_model = _start(config, run), run / named("reward", number) / "model"
    inputs: dict[str, Source] = {
        "policy": policy,
        "reward": reward_model,
        "prompts": run / "data/ppo_prompts.jsonl",
    }
    if chosen.pretraining is not None:
        inputs["texts"] = run / "data/pretraining_texts.jsonl"
    inputs |= named_inputs(chosen, name)
    if chosen.validation is not None or chosen.gold is not None:
        inputs["validation"] = run / "data/validation_prompts.jsonl"
    labelled = _labelled(run, number)  # the reward model learned from them: no further inputs
    do = work.ppo(config, chosen, policy, reward_model, labelled, run / "data")
    todo = work.settled(config, do)
    settings = _settings(config, threads=config.threads, ppo=chosen)
    about = "PPO with pretraining mix" if chosen.pretraining is not None else "PPO"
    return Stage(named(name, number), told(about, number), settings, inputs, todo, trains=True)


def _evaluate(config: ExperimentConfig, run: Path) -> Stage:
    compared = policies(config, run)
    reward_model = run / named("reward", config.rounds) / "model"
    sets = ("test_prompts", "toxicity_prompts", "held_out_texts")
    left_out = set()
    if isinstance(config.data, FileSource):
        no_texts = config.data.pretraining_texts is None and config.data.held_out_texts is None
        left_out |= {"toxicity_prompts"} if config.data.toxicity_prompts is None else set()
        left_out |= {"held_out_texts"} if no_texts else set()
    files = {name: run / f"data/{name}.jsonl" for name in sets if name not in left_out}
    own = named_inputs(config.evaluation, "evaluation")
    inputs = {**compared, "reward": reward_model, **files, **own}
    todo = work.settled(config, work.evaluate(config, compared, reward_model, run / "data"))
    settings = _settings(config, threads=config.threads, evaluation=config.evaluation)
    return Stage("evaluate", "every policy on held-out prompts", settings, inputs, todo)


def _report(config: ExperimentConfig, run: Path, stages: list[Stage]) -> Stage:
    """The page reads the manifests and metrics of all stages, so all of them are its inputs."""
    inputs: dict[str, Source] = {
        "results": run / "evaluate",
        "held-out rankings": run / named("reward", config.rounds) / "held_out.json",
    }
    for stage in stages:
        if stage.trains:
            inputs[f"metrics of {stage.name}"] = run / stage.name / "metrics.jsonl"
    settings = _settings(config, experiment=config)
    return Stage("report", "report.html", settings, inputs, work.report(run))
