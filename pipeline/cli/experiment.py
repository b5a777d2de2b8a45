"""The verbs of an experiment: all its stages, one of them, or what they need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import verb
from pipeline.launch.options import Launch, choose_launch


@verb
def init(
    config: Annotated[
        Path, typer.Argument(metavar="NAME", help="The new experiment: writes NAME.yaml.")
    ],
    model: Annotated[
        str | None, typer.Option(help="A folder, or a model's name on the hub.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With demonstrations, ranking_prompts, test_prompts: .jsonl, .csv, .parquet.",
        ),
    ] = None,
    rankings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Preference pairs made elsewhere.")
    ] = None,
    adaptation: Annotated[
        str | None, typer.Option(metavar="FAMILY", help="The parameters that train, such as lora.")
    ] = None,
) -> Path:
    """Write a commented config of your own, for `rlhf run`.

    Without options it is the quickstart's, to be changed. --model and --data make it one for your
    model and your files; people rank in the browser unless --rankings names a file.
    """
    from pipeline.config.shipped import write_own_config

    return write_own_config(config, model, data, rankings, adaptation)


@verb
def run(
    config: o.Config,
    sets: o.Sets = None,
    out: o.Out = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rounds of rankings, reward model and PPO, each on the policy before it."
        ),
    ] = None,
    sharding: o.Spread = "none",
    processes: o.Processes = None,
    accelerate_config: o.AccelerateConfig = None,
) -> Path | None:
    """Run all stages in order; what is up to date is skipped.

    data → sft → sample → label → reward → select → ppo → ppo-ptx → evaluate → report

    With --rounds 2 it continues from the policy: sample-2 → label-2 → reward-2 → ppo-2 → ppo-ptx-2.

    Interrupt it whenever you like: the same command resumes.
    """
    launch = choose_launch(sharding, processes, accelerate_config)
    if rounds is not None:
        sets = [*(sets or []), f"rounds={rounds}"]
    artefact = run_config(config, sets, out, launch, until=until)
    if artefact is None:
        return None
    if artefact.name in ("evaluate", "report"):
        _print_summary(artefact.parent)
    return artefact if until else artefact.parent


def run_config(
    path: Path,
    sets: Sequence[str] | None,
    out: Path | None,
    launch: Launch | None = None,
    *,
    until: str | None = None,
    only: str | None = None,
) -> Path | None:
    """Run an experiment; return the last stage's folder.

    None on a rank that another launcher started and that is not rank 0.
    """
    from pipeline.config.loading import load_config
    from pipeline.steps.order import run_experiment

    config = load_config(path, sets or [])
    folder = out or Path("runs") / config.name
    if launch is None:
        return run_experiment(config, folder, until=until, only=only)
    from pipeline.launch.elastic import ElasticRanks

    ranks = ElasticRanks(launch)
    if launch.rank:
        ranks.follow(folder)
        return None
    artefact = run_experiment(config, folder, until=until, only=only, ranks=ranks)
    ranks.finish()
    return artefact


def _print_summary(folder: Path) -> None:
    """Print the few numbers that answer the question on stderr."""
    from rich.console import Console

    from pipeline.evaluation.samples.results import read_results
    from pipeline.report.terminal import reward_model_sentence, summary_table
    from pipeline.runs.manifest import label_kinds
    from pipeline.runs.stage import latest
    from pipeline.steps.label import judge_agreement_of

    console = Console(stderr=True)
    console.print()
    console.print(summary_table(read_results(folder / "evaluate/results.json")))
    kinds = label_kinds(folder)
    if kinds not in ([], ["human"]):
        console.print(
            f"The reward model learned from {' and '.join(kinds)} rankings, not from people's "
            "alone: read these numbers with that in mind."
        )
    if sentence := reward_model_sentence(latest(folder) / "held_out.json"):
        console.print(sentence)
    ceiling = judge_agreement_of(folder)
    if ceiling is not None:
        console.print(
            f"The gold judge itself orders {ceiling:.1%} of the annotators' pairs as they did, "
            "which is the most that their noise allows."
        )
    page = folder / "report/report.html"
    if page.is_file():
        console.print(f"Report: {page}", soft_wrap=True)


def _training_verb(name: str, text: str):  # type: ignore[no-untyped-def]  # see `verb`
    def train(
        config: o.Config,
        sets: o.Sets = None,
        out: o.Out = None,
        sharding: o.Spread = "none",
        processes: o.Processes = None,
        accelerate_config: o.AccelerateConfig = None,
    ) -> Path | None:
        launch = choose_launch(sharding, processes, accelerate_config)
        return run_config(config, sets, out, launch, only=name)

    train.__name__, train.__doc__ = name, text
    return verb(train)


sft = _training_verb(
    "sft",
    """Fine-tune the base on demonstrations (stage one).

    Loss on the response only, cosine schedule, several epochs; the weights of every epoch are kept
    and the one with the lowest validation loss is chosen.""",
)
reward = _training_verb(
    "reward",
    """Train the reward model on the rankings (stage two).

    All pairs of one prompt are one batch element; ties carry no gradient; the bias puts
    demonstrations at score 0. held_out.json has its accuracy, with an interval.""",
)
ppo = _training_verb(
    "ppo",
    """Train the policy against the reward model (stage three).

    A penalty on the KL holds it to SFT. metrics.jsonl has reward, KL, entropy, clip fraction,
    explained variance, length and EOS rate of every iteration.""",
)
ppo_ptx = _training_verb(
    "ppo-ptx", "Train with the pretraining mix as well, so that less of the base's ability is lost."
)


@verb
def sample(config: o.Config, sets: o.Sets = None, out: o.Out = None) -> Path | None:
    """Draw K = 4 to 9 outputs to each prompt, for annotators to rank.

    Settings are recorded and near-duplicates are drawn again. Writes tasks.jsonl.
    """
    return run_config(config, sets, out, only="sample")


@verb
def select(config: o.Config, sets: o.Sets = None, out: o.Out = None) -> Path | None:
    """Choose SFT's epoch again, by the reward model's score on validation prompts."""
    return run_config(config, sets, out, only="select")


@verb
def label(
    config: o.Config,
    sets: o.Sets = None,
    out: o.Out = None,
    host: o.Host = None,
    port: o.Port = None,
    backup: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only copy the store of people's rankings.")
    ] = None,
) -> Path | None:
    """Collect rankings: serve the labeling page, or let simulated annotators rank.

    With labeling.kind human the page is served until enough is ranked or you stop it. Rankings are
    kept in the run's store, safe against kills; rlhf run resumes from them. --backup copies that
    store to a new file, also while the page is served.
    """
    from pipeline.config.labeling import HumanAnnotators
    from pipeline.config.loading import load_config

    experiment = load_config(config, sets or [])
    labeling = experiment.labeling
    if backup is not None:
        from pipeline.labeling.exchange import backup as copy_store
        from pipeline.steps.label import store_of

        if not isinstance(labeling, HumanAnnotators):
            raise ValueError(f"labeling.kind is '{labeling.kind}': no people's store to copy")
        return copy_store(store_of(labeling, out or Path("runs") / experiment.name), backup)
    serving = {"host": host, "port": port}
    given = [f"labeling.{key}={value}" for key, value in serving.items() if value is not None]
    if isinstance(labeling, HumanAnnotators):
        given.append("labeling.wait=true")
    elif given:
        raise ValueError(f"--host and --port serve people, but labeling.kind is '{labeling.kind}'")
    return run_config(config, [*(sets or []), *given], out, only="label")


@verb
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="An experiment, to say what it needs on this machine.")
    ] = None,
    sets: o.Sets = None,
    gpu: Annotated[
        float | None,
        typer.Option(metavar="GIB", min=1.0, help="Answer for a GPU of this memory instead."),
    ] = None,
) -> None:
    """Print what this machine can run, or what an experiment needs on it.

    With a config: memory of each stage, alone and sharded, time, disk, and where a stage does not
    fit the mildest settings with which it does. All of it comes from the sizes of the models;
    nothing is loaded. `--gpu 24` answers for a card that is not here.
    """
    if config is None and (sets or gpu):
        raise ValueError("--set and --gpu are about an experiment, but no config is named")
    if config is None:
        from pipeline.estimate.machine import findings

        for name, text in findings():
            print(f"{name:<14} {text}")
        return
    from pipeline.config.loading import load_config
    from pipeline.estimate.doctor import estimate_lines

    for line in estimate_lines(load_config(config, sets or []), gpu_gib=gpu):
        print(line, flush=True)
