"""From what a person names (a run, a stage, a model folder) to the policy that is meant."""

from pathlib import Path

from pipeline.runs.rounds import in_round, last_round

BEST_FIRST = ("ppo-ptx", "ppo", "select", "sft")


def policy_folder(place: Path) -> Path:
    """The folder of the policy; of a run, that of its last finished stage. ValueError if none."""
    if (place / "config.json").is_file() or (place / "adapter_config.json").is_file():
        return place
    if (place / "model").is_dir():
        return place / "model"
    again = [
        in_round(name, n)
        for n in range(last_round(place, "sample"), 1, -1)
        for name in ("ppo-ptx", "ppo")
    ]
    for stage in (*again, *BEST_FIRST):
        if (place / stage / "manifest.json").is_file():
            return place / stage / "model"
    raise ValueError(
        f"{place}: no policy there; expected a run with a finished stage, a stage, or a model"
    )
