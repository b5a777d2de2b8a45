"""The command `rlhf`: its verbs, in the order of its help.

Nothing heavy is imported here, so that `rlhf --help` answers at once; each verb imports what it
needs. The last line on stdout is the artefact's path, everything else goes to stderr.
"""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli import evaluation, experiment, labeling, models, people

SPINS = "1000"  # of a loop of one pause instruction each: some 20 microseconds
SPIN_COUNT, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
ABOUT = """InstructGPT's experiment: demonstrations, rankings, a reward model, PPO, and the
evaluation that says whether it helped.

**Begin with** `rlhf run quickstart`: everything on an embedded default, with no GPU, no model hub
and no account. `rlhf init NAME` writes a config of your own.

Stages work in a run's folder (--out, by default runs/NAME): a stage that is up to date there is
skipped, one that was interrupted resumes. A stage's verb also runs the stages before it that are
missing, unless they train or wait for people.
"""
PANELS = {
    "Stages of an experiment": (
        experiment.init,
        experiment.run,
        experiment.sft,
        experiment.sample,
        experiment.label,
        experiment.reward,
        experiment.select,
        experiment.ppo,
        experiment.ppo_ptx,
        evaluation.evaluate,
        evaluation.report,
    ),
    "Samples and results": (evaluation.generate, evaluation.score, evaluation.compare),
    "Models and machines": (
        models.chat,
        models.export_model,
        models.users,
        models.probe,
        models.fetch,
        models.pretrain,
        models.prepare,
        experiment.doctor,
    ),
    "Labels": (
        labeling.export,
        labeling.import_,
        labeling.agreement,
        labeling.judge_tasks,
        labeling.add_tasks,
        labeling.room,
        people.accounts,
        people.leases,
        people.withdraw,
    ),
}


class Verbs(TyperGroup):
    """The verbs; `~` in a path of theirs is the home folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102
        return super().parse_args(ctx, [with_home(argument) for argument in args])


app = typer.Typer(
    name="rlhf",
    cls=Verbs,
    help=ABOUT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _panel, _verbs in PANELS.items():
    for _verb in _verbs:
        _name = _verb.__name__.strip("_").replace("_", "-")
        app.command(_name, rich_help_panel=_panel)(_verb)


def main() -> None:
    """Run the command `rlhf`."""
    bound_spinning(os.environ)
    app()


def with_home(argument: str) -> str:
    """Expand `~` in a path, alone or after a name, as in `--policy mine=~/runs/first`."""
    return re.sub(
        r"^(\S*?[=:])?(~[^/\s]*)(?=/)",
        lambda match: f"{match[1] or ''}{Path(match[2]).expanduser()}",
        argument,
    )


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Bound the spinning of this process's threads and its children's; a user's own choice stays.

    OpenMP reads it when torch is loaded, so this comes first (libgomp's manual, section 4.21).
    """
    if SPIN_COUNT not in environment and POLICY not in environment:
        environment[SPIN_COUNT] = SPINS


if __name__ == "__main__":
    main()
