"""The verbs about labels and their store that `pipeline/cli/app.py` joins to its own."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import run_verb
from pipeline.cli.options import name, path

TOOLS = "Around it"
verbs = typer.Typer()
Form = Literal["jsonl", "trl", "label-studio", "argilla", "audit"]
Source = Literal["jsonl", "label-studio", "argilla", "squality", "qa-feedback"]


@verbs.command(rich_help_panel=TOOLS)
def export(
    store: o.StorePlace,
    out: o.Tables,
    form: Annotated[
        Form, typer.Option("--format", help="trl: preference pairs. audit: who did what.")
    ] = "jsonl",
) -> None:
    """Write the tasks and rankings of a store: as JSON lines, or for TRL, Label Studio, Argilla."""

    def command() -> Path:
        from pipeline.labeling.exchange import export as exported

        return exported(store, out, form)

    run_verb(command, out)


@verbs.command("import", rich_help_panel=TOOLS)
def import_labels(
    found: Annotated[
        Path,
        typer.Argument(parser=path, help="Tasks in a file, or a folder that rlhf export wrote."),
    ],
    store: Annotated[
        str, typer.Option("--store", parser=name, help="The store: a path or a database URL.")
    ],
    form: Annotated[Source, typer.Option("--format", help="Whose form the file has.")] = "jsonl",
    overlap: Annotated[int, typer.Option("--overlap", min=1, help="Annotators a task.")] = 1,
    priority: Annotated[int, typer.Option("--priority", help="Higher comes first.")] = 0,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", parser=path, help="Rankings known to be right, to test people by."),
    ] = None,
) -> None:
    """Add tasks and rankings to a store; those that are there already are left alone."""

    def command() -> None:
        from pipeline.labeling.exchange import Places
        from pipeline.labeling.exchange import import_labels as imported

        places = Places(overlap, priority, gold)
        imported(found, store, form, places, _say)

    run_verb(command, None)


@verbs.command(rich_help_panel=TOOLS)
def agreement(
    labels: Annotated[
        str,
        typer.Argument(
            parser=name, help="A file of rankings (.jsonl), a store, its URL, or a run."
        ),
    ],
) -> None:
    """Say how far annotators agree: over pairs with an interval, tau-b, Krippendorff's alpha."""

    def command() -> None:
        from pipeline.labeling.exchange import agreement_lines

        print("\n".join(agreement_lines(labels)))

    run_verb(command, None)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
