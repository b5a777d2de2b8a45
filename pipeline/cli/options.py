"""The arguments and options that the verbs of `pipeline/cli/app.py` share."""

import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.launch.options import Sharding
from stages.config import expand_home


def path(text: str) -> Path:
    """A path, as in `--out=~/runs/first`."""
    return Path(text).expanduser()


def name(text: str) -> str:
    """Expand `~` in a path, alone or after a name, as in `--policy mine=~/runs/first`."""
    parts = re.split(r"([=:])(?=~)", text)
    return "".join(map(expand_home, parts))


Config = Annotated[
    Path,
    typer.Argument(
        parser=path, help="The experiment: a YAML file, or a shipped config such as quickstart."
    ),
]
NewConfig = Annotated[
    Path, typer.Argument(parser=path, metavar="NAME", help="The new experiment: writes NAME.yaml.")
]
OwnModel = Annotated[
    str | None, typer.Option("--model", parser=name, help="A folder, or a model's name on the hub.")
]
OwnData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=path,
        metavar="FOLDER",
        help="With demonstrations, ranking_prompts, test_prompts: .jsonl, .csv, .parquet.",
    ),
]
OwnRankings = Annotated[
    Path | None,
    typer.Option(
        "--rankings", parser=path, metavar="FILE", help="Preference pairs made elsewhere."
    ),
]
OwnFamily = Annotated[
    str | None,
    typer.Option("--adaptation", metavar="FAMILY", help="The parameters that train, such as lora."),
]
MaybeConfig = Annotated[
    Path | None,
    typer.Argument(parser=path, help="An experiment, to say what it needs on this machine."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, such as ppo.kl.coefficient=0.05. May be repeated.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", parser=path, help="The run's folder. Default: runs/NAME.")
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")
]
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
        parser=path,
        metavar="FILE",
        help="Instead of --sharding: a file of accelerate config.",
        rich_help_panel=SPREADING,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        min=1,
        help="Rounds of rankings, reward model and PPO, each on the policy before it.",
    ),
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to serve on; 0.0.0.0 lets others in.")
]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port to serve on.")]

Backup = Annotated[
    Path | None,
    typer.Option(
        "--backup", parser=path, metavar="FILE", help="Only copy the store of people's rankings."
    ),
]
Runs = Annotated[
    list[Path], typer.Argument(parser=path, help="Folders of runs, of their stages, or of models.")
]
OneRun = Annotated[
    Path, typer.Argument(parser=path, help="A run's folder, one of its stages, or a model.")
]
Start = Annotated[
    Path | None, typer.Option("--start", parser=path, help="Go on from this base, made before.")
]
Model = Annotated[Path, typer.Option("--out", parser=path, help="Folder for the model.")]
Tables = Annotated[Path, typer.Option("--out", parser=path, help="Folder for what is written.")]
StorePlace = Annotated[
    str, typer.Argument(parser=name, help="A run's folder, or the store: a path or a database URL.")
]
Samples = Annotated[
    list[Path],
    typer.Argument(
        parser=path, help="Files of completions, from anywhere: CSV, JSON lines, Parquet ..."
    ),
]
Columns = Annotated[
    str,
    typer.Option("--columns", help="How columns are called: model=model_type,completion=sample."),
]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
OnePrompt = Annotated[
    str | None, typer.Option("--prompt", help="Answer this one prompt and leave.")
]
UserNames = Annotated[
    list[str] | None,
    typer.Option("--user", metavar="NAME", help="Answer under this user's set. May be repeated."),
]
UsersFolder = Annotated[
    Path | None,
    typer.Option(
        "--users",
        parser=path,
        help="The store of users' sets. Default: users/ in the model's folder.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1)]
