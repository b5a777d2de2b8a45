"""The verbs about labels: stores of tasks and rankings, and labeling rooms on them."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import verb

Store = Annotated[str, typer.Argument(help="The store: a path or a database URL.")]
Overlap = Annotated[int, typer.Option("--overlap", min=1, help="Annotators a task.")]


@verb
def export(
    store: Annotated[
        str, typer.Argument(help="A run's folder, or the store: a path or a database URL.")
    ],
    out: o.Tables,
    form: Annotated[
        Literal["jsonl", "trl", "label-studio", "argilla", "audit"],
        typer.Option("--format", help="trl: preference pairs. audit: who did what."),
    ] = "jsonl",
) -> Path:
    """Write the tasks and rankings of a store: as JSON lines, or for TRL, Label Studio, Argilla."""
    from pipeline.labeling import exchange

    return exchange.export(store, out, form)


@verb
def import_(
    source: Annotated[
        Path, typer.Argument(help="Tasks in a file, or a folder that rlhf export wrote.")
    ],
    store: Annotated[str, typer.Option(help="The store: a path or a database URL.")],
    form: Annotated[
        Literal["jsonl", "label-studio", "argilla", "squality", "qa-feedback"],
        typer.Option("--format", help="The format of the file."),
    ] = "jsonl",
    overlap: Overlap = 1,
    priority: Annotated[
        int | None,
        typer.Option(help="Higher comes first, else 0; also of tasks that are there already."),
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(help="Rankings known to be right, to test people by.")
    ] = None,
) -> None:
    """Add tasks and rankings to a store; those that are there already are left alone."""
    from pipeline.labeling import exchange

    exchange.import_labels(
        source, store, form, overlap=overlap, priority=priority, gold=gold, log=_print
    )


@verb
def agreement(
    labels: Annotated[
        str, typer.Argument(help="A file of rankings (.jsonl), a store, its URL, or a run.")
    ],
) -> None:
    """Print how far annotators agree: pairs with an interval, tau-b, Krippendorff's alpha."""
    from pipeline.labeling.exchange import agreement_lines

    print("\n".join(agreement_lines(labels)))


@verb
def judge_tasks(
    store: Annotated[
        str, typer.Argument(help="A run's folder, or the store: a path or a database URL.")
    ],
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible address, such as http://host/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    reward_model: Annotated[
        Path | None, typer.Option(help="Instead: a reward model, by its scores.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Instead: a language model here, by log-probabilities of a verdict."),
    ] = None,
    instruction: Annotated[
        Path | None, typer.Option(help="A text of your own that tells the judge what is better.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Rank at most so many tasks.")] = None,
    sets: o.Sets = None,
) -> None:
    """Let a model rank the tasks of a store, each in two orders, as `kind: judge`.

    What it has ranked is left alone. Its rankings are never counted as a person's, and people do
    not see them; rlhf agreement reports how far it agrees with each person, and labeling.use
    decides whether the reward model learns from it. The endpoint's settings are set by --set:
    price_prompt, price_response, parallel, key_variable, cache.
    """
    from pipeline.labeling import judging

    judge = judging.chosen_judge(
        url, model, reward_model, policy, instruction=instruction, sets=sets or []
    )
    judging.judge_tasks(store, judge, most=most, log=_print)


@verb
def add_tasks(
    source: Annotated[Path, typer.Argument(help="A file of tasks, or for comparisons of samples.")],
    store: Store,
    kind: Annotated[
        Literal["ranking", "comparison", "rating", "demonstration", "prompt"],
        typer.Option(help="What annotators are to do."),
    ],
    overlap: Overlap = 1,
) -> None:
    """Add tasks to a room: demonstrations or prompts to write, texts to rate, pairs to compare."""
    from pipeline.labeling import room as rooms

    rooms.add_tasks(source, store, kind, overlap, _print)


@verb
def room(
    store: Store,
    form: Annotated[
        Path | None, typer.Option(help="Questions of one kind of task, a YAML file.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A run: answers annotators' own prompts.")
    ] = None,
    outputs: Annotated[int, typer.Option(min=2, max=9, help="Its outputs.")] = 4,
    host: o.Host = None,
    port: o.Port = None,
    sets: o.Sets = None,
) -> None:
    """Open a labeling room on a store, for tasks of every kind.

    Sign-in by a proxy, TLS, gold tasks, screening and weights are set as in an experiment:
    --set 'proxy={owners: [olga]}' --set behind_tls=true --set gold=gold/, keys as under labeling.
    """
    from pipeline.labeling import room as rooms

    options = {"form": None if form is None else str(form), "host": host, "port": port}
    rooms.serve_room(store, rooms.settings_of(sets or [], options), policy, outputs, _print)


def _print(text: str) -> None:
    print(text, file=sys.stderr)
