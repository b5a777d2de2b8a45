"""The arguments and options that the verbs of `pipeline/cli/app.py` share."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.launch.options import Sharding

Config = Annotated[
    Path,
    typer.Argument(help="The experiment: a YAML file, or a shipped config such as quickstart."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, such as ppo.kl.coefficient=0.05. May be repeated.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder. Default: runs/NAME.")]
SPREADING = "Over several processes"
Spread = Annotated[
    Sharding,
    typer.Option(
        "--sharding",
        help="Spread training: copies (ddp), DeepSpeed's ZeRO, or FSDP2.",
        rich_help_panel=SPREADING,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, help="Processes (GPUs) to train on.", rich_help_panel=SPREADING
    ),
]
AccelerateConfig = Annotated[
    Path | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="Instead of --sharding: a file of accelerate config.",
        rich_help_panel=SPREADING,
    ),
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to serve on; 0.0.0.0 lets others in.")
]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port to serve on.")]

Tables = Annotated[Path, typer.Option("--out", help="Folder for what is written.")]
Seed = Annotated[int, typer.Option("--seed", min=0)]
