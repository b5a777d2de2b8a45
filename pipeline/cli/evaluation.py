"""The verbs about judging models, which `pipeline/cli/app.py` gives their place among the others.

generate    policies speak                     -> samples.jsonl
score       samples, from anywhere, are judged -> samples.jsonl with scores, results.json
compare     prints results side by side
report      draws results                      -> report.html, tables as Markdown and CSV
evaluate    generate and score in one go
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import run_verb
from pipeline.cli.options import name, path

Experiment = Annotated[
    Path | None,
    typer.Argument(parser=path, help="The experiment whose stage this is. Without it: --policy."),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        parser=name,
        metavar="[NAME=]PLACE",
        help="A run, one of its stages, a model folder, or a model of the hub. Repeat it.",
    ),
]
Suites = Annotated[
    str, typer.Option("--suite", help="Such as toxicity,hallucination. Default: all it can.")
]
Source = Annotated[str | None, typer.Option(parser=name, help="A file, hf:NAME, or a wheel.")]
Scorers = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        parser=name,
        metavar="KIND[:MODEL]",
        help="profanity, classifier:MODEL, nli:MODEL. Repeat it.",
    ),
]
Samples = Annotated[
    list[Path] | None,
    typer.Argument(
        parser=path, help="Files of samples, from anywhere: CSV, TSV, JSON lines, Parquet ..."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        parser=name,
        metavar="PLACE",
        help="Instead of samples, what annotators said: a run, a store, or its URL.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, such as evaluation.resamples=1000. May be repeated.",
    ),
]
Compared = Annotated[
    list[Path],
    typer.Argument(parser=path, help="Folders of runs, or that evaluate or score wrote."),
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
EVALUATE = """Judge policies: of an experiment (CONFIG), or any that are named (--policy).

Win rate, made-up facts, toxicity under three instructions, length: each with a 95 % interval
over prompts, its n and its scorer; differences are paired by prompt. Without CONFIG, prompts and
settings are those of the first policy's run, unless they are given.

--suite robustness is one of its own: it trains every adaptation family on one domain and tests it
there and on another, against full fine-tuning; CONFIG as in configs/robustness."""


def evaluate(
    config: Experiment = None,
    policy: Policies = None,
    suite: Suites = "",
    out: o.Out = None,
    sets: Sets = None,
    scorer: Scorers = None,
    prompts: Source = None,
    toxicity_prompts: Source = None,
    texts: Source = None,
    reward_model: Annotated[
        Path | None,
        typer.Option(parser=path, help="A run, or its reward model, for --suite preference."),
    ] = None,
    seed: o.Seed = 0,
) -> None:
    """Judge policies."""

    def command() -> Path | None:
        from pipeline.cli import evaluation_commands
        from pipeline.cli import experiment as commands
        from pipeline.evaluation.request import Request

        if suite == "robustness":  # judges what it trains itself
            from pipeline.studies.robustness.command import robustness

            return robustness(config, sets or [], out)
        if config is not None and not policy:
            named = [f"evaluation.suites=[{suite}]"] if suite else []
            return commands.stage("evaluate", config, [*(sets or []), *named], out)
        request = Request(
            policy or [], suite, config, sets or [], scorer or [], prompts, toxicity_prompts, texts,
            reward_model, seed,
        )  # fmt: skip
        return evaluation_commands.evaluate(request, out or Path("runs/evaluation"))

    run_verb(command, out)


def generate(
    policy: Policies = None,
    suite: Suites = "",
    out: o.Tables = Path("runs/evaluation"),
    config: Annotated[
        Path | None, typer.Option(parser=path, help="The experiment to take prompts of.")
    ] = None,
    sets: Sets = None,
    prompts: Source = None,
    toxicity_prompts: Source = None,
    texts: Source = None,
    seed: o.Seed = 0,
) -> None:
    """Let policies answer the prompts of suites: samples.jsonl, to be scored later."""

    def command() -> Path:
        from pipeline.cli import evaluation_commands
        from pipeline.evaluation.request import Request

        request = Request(
            policy or [],
            suite,
            config,
            sets or [],
            (),
            prompts,
            toxicity_prompts,
            texts,
            None,
            seed,
        )
        return evaluation_commands.generate(request, out)

    run_verb(command, out)


def score(
    out: o.Tables,
    samples: Samples = None,
    columns: o.Columns = "",
    labels: Labels = None,
    against: Against = None,
    missing: Missing = "error",
    scorer: Scorers = None,
    sets: Sets = None,
    seed: o.Seed = 0,
) -> None:
    """Put samples of any models through scorers and statistics: CSV, JSON lines, ...

    Scores that stand in the files (--columns toxicity=COLUMN) are used as given. Without any, the
    offline toxicity scorer judges. Rows that could not be scored are counted, never zero, and more
    than 1 % of them make the command fail. Fields that a column may be: model, prompt, completion,
    prompt_type, id, k, context, category, answerable, and reference, the right answers, parted by
    "|" where there are several.
    """

    def command() -> Path:
        from pipeline.cli import evaluation_commands

        chosen = evaluation_commands.Scoring(
            columns, against or [], missing, scorer or [], sets or [], seed
        )
        if labels is not None and not samples:
            return evaluation_commands.score_people(labels, chosen, out)
        if labels is not None or not samples:
            raise ValueError("what is to be scored? Give files of samples, or --labels PLACE")
        return evaluation_commands.score(samples, chosen, out)

    run_verb(command, out)


def compare(runs: Compared) -> None:
    """Print the results of runs side by side; of two that share prompts, their differences too.

    Differences are paired by prompt, with intervals; what one run lacks is said.
    """

    def command() -> None:
        from pipeline.cli import experiment as commands

        commands.compare(runs)

    run_verb(command, None)


def report(
    place: Annotated[
        Path,
        typer.Argument(
            parser=path, help="An experiment, or a folder that evaluate or score wrote."
        ),
    ],
    sets: Sets = None,
    out: o.Out = None,
) -> None:
    """Write report.html: one file that shows, with intervals, what each stage changed.

    Beside it every table as Markdown and CSV. Reads files only.
    """

    def command() -> Path | None:
        from pipeline.cli import evaluation_commands
        from pipeline.cli import experiment as commands

        if place.is_dir():
            return evaluation_commands.report(place, out)
        return commands.stage("report", place, sets or [], out)

    run_verb(command, out)
