"""The verbs of a room of its own, which `pipeline/cli/app.py` joins to the others."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import run_verb
from pipeline.cli.options import name, path

TOOLS = "Around it"
verbs = typer.Typer()
Kind = Literal["ranking", "comparison", "rating", "demonstration", "prompt"]
AnyStore = Annotated[str, typer.Argument(parser=name, help="The store: a path or a database URL.")]


@verbs.command("add-tasks", rich_help_panel=TOOLS)
def add_tasks(
    found: Annotated[
        Path, typer.Argument(parser=path, help="A file of tasks, or for comparisons of samples.")
    ],
    store: AnyStore,
    kind: Annotated[Kind, typer.Option("--kind", help="What annotators are to do.")],
    overlap: Annotated[int, typer.Option("--overlap", min=1, help="Annotators a task.")] = 1,
) -> None:
    """Give a room tasks: demonstrations or prompts to write, texts to rate, pairs to judge."""

    def command() -> None:
        from pipeline.labeling import room

        room.add_tasks(found, store, kind, overlap, _say)

    run_verb(command, None)


@verbs.command(rich_help_panel=TOOLS)
def room(
    store: AnyStore,
    form: Annotated[
        Path | None,
        typer.Option("--form", parser=path, help="Questions of one kind of task, a YAML file."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", parser=path, help="A run: answers annotators' own prompts."),
    ] = None,
    outputs: Annotated[int, typer.Option("--outputs", min=2, max=9, help="Its outputs.")] = 4,
    host: o.Host = None,
    port: o.Port = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="How it is served, keys as under labeling, such as gold=gold/. May be repeated.",
        ),
    ] = None,
) -> None:
    """Open a labeling room on a store, for tasks of every kind.

    Sign-in by a proxy, TLS, gold tasks, screening and weights are set as in an experiment:
    --set 'proxy={owners: [olga]}' --set behind_tls=true --set gold=gold/
    """

    def command() -> None:
        from pipeline.labeling import room as rooms

        given = {"form": None if form is None else str(form), "host": host, "port": port}
        settings = rooms.settings_of(sets or [], given)
        rooms.serve_room(store, settings, policy, outputs, _say)

    run_verb(command, None)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
