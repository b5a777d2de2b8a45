"""What `rlhf probe` does with its arguments: read the texts, check, probe, draw."""

from dataclasses import replace
from pathlib import Path

from pipeline.models.policy_folder import policy_folder
from pipeline.runs.display import display
from pipeline.studies.probe_page import write_probe_page
from pipeline.studies.probing import (
    ProbeSettings,
    load_labelled_texts,
    majority_share,
    run_probe,
    split_off,
)
from stages.probing.representations import POOLINGS, Pooling, load_reader

TEST_SHARE = 0.2  # where no test set is named


def probe(
    model: str,
    data: str,
    test: str | None,
    fields: tuple[str, str],
    settings: ProbeSettings,
    layers: str,
    out: Path,
) -> Path:
    """Fit the probes and write the folder; the page's path. ValueError before any model loads."""
    settings = replace(settings, layers=_layers(layers))
    train = load_labelled_texts(data, text=fields[0], label=fields[1])
    if test is None:
        train, held = split_off(train, TEST_SHARE, settings.seed)
    else:
        held = load_labelled_texts(test, text=fields[0], label=fields[1])
    unknown = sorted(set(held.labels) - set(train.labels))
    if unknown:
        raise ValueError(
            f"{test or data}: label '{unknown[0]}' is among the test texts but not among those "
            "to fit on"
        )
    out.mkdir(parents=True, exist_ok=True)
    with display(["load", "read", "fit"]) as shown:
        shown.begin("load", model)
        reader = load_reader(_place(model))
        shown.finish("")
        found = run_probe(reader, train, held, settings, out, shown)
        best = max(found, key=lambda one: one.accuracy)
        shown.say(
            f"Best: layer {best.layer}, {best.pooling}: {best.accuracy:.3f} "
            f"[{best.ci95[0]:.3f}, {best.ci95[1]:.3f}] of {len(held)} test texts"
        )
    page = out / "probe.html"
    sizes = (len(train), len(held))
    write_probe_page(page, model=model, probes=found, majority=majority_share(held), n=sizes)
    return page


def _layers(text: str) -> tuple[int, ...]:
    """`all`, or places such as 0,3,6 or 0-30:3; ValueError for anything else."""
    if text == "all":
        return ()
    chosen: list[int] = []
    for part in text.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        try:
            low, high, by = int(first), int(last or first), int(step or 1)
            chosen += range(low, high + 1, by)
        except ValueError:
            raise ValueError(f"--layers {text}: expected all, or such as 0,3,6 or 0-30:3") from None
    if not chosen:
        raise ValueError(f"--layers {text}: no layer in it")
    return tuple(sorted(set(chosen)))


def _place(model: str) -> str:
    """A folder that holds a model is taken as it is; a run stands for its policy."""
    place = Path(model)
    return str(policy_folder(place)) if place.is_dir() else model


def chosen_poolings(text: str) -> tuple[Pooling, ...]:
    """The poolings in `a,b`; none for an empty text, ValueError for an unknown one."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    known = [pooling for name in names for pooling in POOLINGS if pooling == name]
    if len(known) < len(names):
        wrong = next(name for name in names if name not in POOLINGS)
        raise ValueError(f"--pooling {wrong}: expected of {', '.join(POOLINGS)}")
    return tuple(dict.fromkeys(known))
