"""The verbs that evaluate policies.

generate    policies answer                       -> samples.jsonl
score       samples, from anywhere, are scored    -> samples.jsonl with scores, results.json
compare     prints results side by side
report      draws results                         -> report.html, tables as Markdown and CSV
evaluate    generate and score in one go
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import verb
from pipeline.cli.experiment import run_config

MODEL_CONFIGS = ("config.json", "adapter_config.json")

if TYPE_CHECKING:
    from pipeline.evaluation.request import Request
    from pipeline.evaluation.samples.results import Results
    from pipeline.evaluation.suites.suite import Inputs

Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="[NAME=]PLACE",
        help="A run, one of its stages, a model folder, or a model of the hub. Repeat it.",
    ),
]
Suites = Annotated[
    str, typer.Option("--suite", help="Such as toxicity,hallucination. Default: all it can.")
]
Source = Annotated[str | None, typer.Option(help="A file, hf:NAME, or a wheel.")]
Scorers = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        metavar="KIND[:MODEL]",
        help="profanity, classifier:MODEL, nli:MODEL. Repeat it.",
    ),
]
Samples = Annotated[
    list[Path] | None,
    typer.Argument(help="Files of samples, from anywhere: CSV, TSV, JSON lines, Parquet ..."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE", help="Instead of samples, annotators' labels: a run, a store, or its URL."
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="Pairs to compare: `A:B`, `*:sft`, `ppo-*:gpt-*`. Repeat it. Default: all pairs."
    ),
]
Missing = Annotated[
    Literal["error", "intersect"],
    typer.Option(help="Where a model lacks prompts: refuse, or compare on what all answered."),
]


@verb
def evaluate(
    config: Annotated[
        Path | None,
        typer.Argument(help="The experiment whose stage this is. Without it: --policy."),
    ] = None,
    policy: Policies = None,
    suite: Suites = "",
    out: o.Out = None,
    sets: o.Sets = None,
    scorer: Scorers = None,
    prompts: Source = None,
    toxicity_prompts: Source = None,
    texts: Source = None,
    reward_model: Annotated[
        Path | None,
        typer.Option(help="For --suite preference: a run, its reward model, or any classifier."),
    ] = None,
    seed: o.Seed = 0,
) -> Path | None:
    """Evaluate policies: of an experiment (CONFIG), or any that are named (--policy).

    Win rate, hallucinated facts, toxicity under three instructions, length: each with a 95 %
    interval over prompts, its n and its scorer; differences are paired by prompt. Without CONFIG,
    prompts and settings are those of the first policy's run, unless they are given.

    --suite robustness is one of its own: it trains every adaptation family on one domain and tests
    it there and on another, against full fine-tuning; CONFIG as in configs/robustness.
    """
    if suite == "robustness":  # it trains the policies itself
        from pipeline.studies.robustness.command import robustness

        return robustness(config, sets or [], out)
    if config is not None and not policy:
        suites = [f"evaluation.suites=[{suite}]"] if suite else []
        return run_config(config, [*(sets or []), *suites], out, only="evaluate")
    from pipeline.evaluation.evaluate import evaluate as evaluate_policies
    from pipeline.evaluation.request import Request
    from pipeline.runs.display import reporting

    given = (prompts, toxicity_prompts, texts, reward_model, seed)
    request = Request(policy or [], suite, config, sets or [], scorer or [], *given)
    folder = out or Path("runs/evaluation")
    inputs = inputs_of(request, folder)
    with reporting("evaluate") as report:
        results = evaluate_policies(replace(inputs, report=report), folder)
    _print_results(results)
    return folder


@verb
def generate(
    policy: Policies = None,
    suite: Suites = "",
    out: o.Tables = Path("runs/evaluation"),
    config: Annotated[Path | None, typer.Option(help="The experiment to take prompts of.")] = None,
    sets: o.Sets = None,
    prompts: Source = None,
    toxicity_prompts: Source = None,
    texts: Source = None,
    seed: o.Seed = 0,
) -> Path:
    """Let policies answer the prompts of suites: samples.jsonl, to be scored later."""
    from pipeline.evaluation.evaluate import SAMPLES
    from pipeline.evaluation.evaluate import generate as generate_samples
    from pipeline.evaluation.request import Request
    from pipeline.runs.display import reporting

    given = (prompts, toxicity_prompts, texts, None, seed)
    inputs = inputs_of(Request(policy or [], suite, config, sets or [], (), *given), out)
    with reporting("generate") as report:
        generate_samples(replace(inputs, report=report), out)
    return out / SAMPLES


@verb
def score(
    out: o.Tables,
    samples: Samples = None,
    columns: Annotated[
        str, typer.Option(help="How columns are called: model=model_type,completion=sample.")
    ] = "",
    labels: Labels = None,
    against: Against = None,
    missing: Missing = "error",
    scorer: Scorers = None,
    sets: o.Sets = None,
    seed: o.Seed = 0,
) -> Path:
    """Score samples of any models and compare them: CSV, JSON lines, ...

    Scores that stand in the files (--columns toxicity=COLUMN) are used as given. Without any, the
    offline toxicity scorer is used. Rows that could not be scored are counted, never zero, and more
    than 1 % of them make the command fail. Fields that a column may be: model, prompt, completion,
    prompt_type, id, k, context, category, answerable, and reference, the right answers, parted by
    "|" where there are several.
    """
    if (labels is None) == (not samples):
        raise ValueError("what is to be scored? Give files of samples, or --labels PLACE")
    from pipeline.evaluation.request import columns_of, evaluation_config, scorer_settings

    settings = {} if labels is not None else scorer_settings(scorer or [])
    if labels is None and missing == "intersect":
        settings["missing"] = "intersection"
    config = evaluation_config(None, sets or [], settings)
    pairs = against or []
    if labels is not None:
        from pipeline.evaluation.external.human_labels import score_labels
        from pipeline.labeling.exchange import tasks_and_rankings

        tasks, rankings = tasks_and_rankings(labels)
        results = score_labels(tasks, rankings, out=out, against=pairs, config=config, seed=seed)
    else:
        from pipeline.evaluation.external.score import score_file
        from pipeline.runs.display import reporting

        files, fields = samples or [], columns_of(columns)
        with reporting("score") as report:
            results = score_file(
                files, fields, out=out, against=pairs, config=config, seed=seed, report=report
            )
    _print_results(results)
    return out


@verb
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or that evaluate or score wrote.")
    ],
) -> None:
    """Print the results of runs side by side; of two that share prompts, their differences too.

    Differences are paired by prompt, with intervals; what one run lacks is listed.
    """
    from pipeline.evaluation.compare import comparison_table

    sys.stdout.write(comparison_table(runs))


@verb
def report(
    source: Annotated[
        Path, typer.Argument(help="An experiment, or a folder that evaluate or score wrote.")
    ],
    sets: o.Sets = None,
    out: o.Out = None,
) -> Path | None:
    """Write report.html: one file that shows, with intervals, what each stage changed.

    Beside it every table as Markdown and CSV. Reads files only.
    """
    if not source.is_dir():
        return run_config(source, sets, out, only="report")
    from pipeline.report.build import write_report

    page = source / "report.html" if out is None else out
    return write_report(source, page if page.suffix == ".html" else page / "report.html")


def inputs_of(request: "Request", out: Path) -> "Inputs":
    """Return policies, prompts and settings, checked; an experiment's data is made under `out`."""
    from pipeline.config.loading import load_config
    from pipeline.evaluation.request import check_files, named_policies
    from pipeline.evaluation.suites.suite import Inputs
    from pipeline.evaluation.suites.toxicity import load_toxicity_prompts
    from pipeline.steps.data import make_data
    from pipeline.steps.step import DataFolder
    from stages.data.demonstrations import load_prompts, pretraining_texts

    if not request.policies:
        raise ValueError("whom to judge? Give a config, or --policy [NAME=]PLACE, one or more")
    policies = named_policies(request.policies)
    run = _run_of(policies)
    config = request.settings(run, list(policies))
    check_files(config)
    prompts = load_prompts(request.prompts) if request.prompts else None
    source = request.toxicity_prompts
    toxicity_prompts = load_toxicity_prompts(source) if source else None
    texts = list(pretraining_texts(request.texts)) if request.texts else None
    folder = (out if run is None or request.config is not None else run) / "data"
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
        reward_model=_reward_model(request.reward_model, run),
        seed=request.seed,
    )


def _run_of(policies: "Mapping[str, Path | str]") -> Path | None:
    """Return the run of the first policy that is one of a run's."""
    sources = [source for source in policies.values() if isinstance(source, Path)]
    above = [folder for source in sources for folder in list(source.parents)[:2]]
    return next((folder for folder in above if (folder / "data").is_dir()), None)


def _reward_model(folder: Path | None, run: Path | None) -> Path | str | None:
    """Return the reward model in `folder`, a run's or its own; else that of the policies' run.

    A folder that does not exist is a name on the hub.
    """
    from pipeline.runs.stage import latest
    from reward_models.model_card import RewardCard

    if folder is None:
        own = None if run is None else latest(run) / "model"
        return own if own is not None and own.is_dir() else None
    for model in (latest(folder) / "model", folder / "model", folder):
        if RewardCard.is_in(model) or any((model / name).is_file() for name in MODEL_CONFIGS):
            return model
    if not folder.exists():
        return str(folder)
    raise ValueError(f"{folder}: no reward model there")


def _print_results(results: "Results") -> None:
    from rich.console import Console

    from pipeline.report.terminal import summary_table

    console = Console(stderr=True)
    console.print()
    console.print(summary_table(results))
    for note in results.notes:
        console.print(f"Note: {note}.")
