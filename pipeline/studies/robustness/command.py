"""What `rlhf evaluate --suite robustness` does: read the config, run the suite, draw the page."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.loading import load_mapping
from pipeline.config.messages import first_error
from pipeline.config.shipped import configs_folder
from pipeline.studies.robustness.config import RobustnessConfig

QUICKSTART = Path("robustness/quickstart.yaml")


def load_robustness(path: Path, sets: Sequence[str]) -> RobustnessConfig:
    """The config of a YAML file with overrides; ValueError in one line naming file and key."""
    try:
        return RobustnessConfig.model_validate(load_mapping(path, sets))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error, RobustnessConfig)}") from None


def robustness(path: Path | None, sets: Sequence[str], out: Path | None) -> Path:
    """All families, both domains; the page's path. Without a config, the quickstart's."""
    config = load_robustness(path or configs_folder() / QUICKSTART, sets)
    for needed in ("rouge_score", "sacrebleu"):
        if find_spec(needed) is None:
            raise ValueError(
                f"{needed} is not installed: pip install 'instruct-rlhf[benchmarks]' for robustness"
            )
    folder = out if out is not None else Path("runs") / config.name
    from pipeline.runs.display import display
    from pipeline.studies.robustness.family import BASE
    from pipeline.studies.robustness.suite import run_suite
    from pipeline.studies.robustness_page import write_robustness_page

    folder.mkdir(parents=True, exist_ok=True)
    with display([BASE, *config.families]) as shown:
        found = run_suite(config, folder, shown)
    page = folder / "robustness.html"
    write_robustness_page(page, config, found)
    return page
