"""The verbs about adapting and reading models that `pipeline/cli/app.py` joins to its own."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import run_verb
from pipeline.cli.options import name, path

TOOLS = "Around it"
verbs = typer.Typer()

Probed = Annotated[str, typer.Argument(parser=name, help="A model's folder or hub name, or a run.")]
Labelled = Annotated[
    str, typer.Argument(parser=name, help="Labelled texts: .jsonl, .csv, or hf:NAME.")
]
Figure = Annotated[
    Path, typer.Option("--out", parser=path, help="Folder for the figure and the numbers.")
]
Tested = Annotated[
    str | None,
    typer.Option("--test", parser=name, help="Test texts; without it a fifth is held out."),
]


@verbs.command(rich_help_panel=TOOLS)
def probe(
    model: Probed,
    data: Labelled,
    out: Figure,
    test: Tested = None,
    pooling: Annotated[
        str, typer.Option("--pooling", help="Of last, cls, mean; several with commas.")
    ] = "",
    layers: Annotated[
        str, typer.Option("--layers", help="all, or such as 0,3,6 or 0-30:3. 0: embeddings.")
    ] = "all",
    kind: Annotated[
        Literal["linear", "mlp"], typer.Option("--probe", help="The classifier that is fitted.")
    ] = "linear",
    penalty: Annotated[float, typer.Option("--penalty", help="L2, on standardised vectors.")] = 1.0,
    text: Annotated[str, typer.Option("--text", help="The field that holds the text.")] = "text",
    label: Annotated[str, typer.Option("--label", help="The one with the label.")] = "label",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Fit the control task as well.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Say what a frozen encoder or decoder holds: a probe a layer, with intervals and a control.

    A linear classifier (or an MLP) is fitted on the representations of each layer; a control task
    with random labels says how much of its accuracy is memory. Writes probe.html and probe.json.
    """

    def command() -> Path:
        from pipeline.studies.probe_command import chosen_poolings
        from pipeline.studies.probe_command import probe as probed
        from pipeline.studies.probing import ProbeSettings

        settings = ProbeSettings(
            poolings=chosen_poolings(pooling), kind=kind, strength=penalty, max_tokens=max_tokens,
            batch_size=batch_size, control=control, seed=seed,
        )  # fmt: skip
        return probed(model, data, test, (text, label), settings, layers, out)

    run_verb(command, out)


@verbs.command(rich_help_panel=TOOLS)
def users(
    model: Annotated[
        Path, typer.Argument(parser=path, help="The frozen base: a model's folder, or a run.")
    ],
    data: Annotated[
        str, typer.Argument(parser=name, help="Demonstrations whose rows name their `user`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=path, help="The store. Default: users/ in the model's folder."
        ),
    ] = None,
    sets: o.Sets = None,
    seed: o.Seed = 0,
) -> None:
    """Train a small set for each user of the demonstrations, many users in one batch.

    --set overrides a setting, such as adaptation.family=prefix, adaptation.rank=4, steps=100 or
    users_per_batch=32. Users who have a set already keep it. rlhf chat --user NAME answers under a
    user's set.
    """

    def command() -> Path:
        from pipeline.cli.users_command import train_users

        return train_users(model, data, out, sets or [], seed)

    run_verb(command, out)
