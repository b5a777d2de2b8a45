"""`rlhf evaluate --suite robustness`: load the config, run the suite, write the page."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.loading import load_mapping
from pipeline.config.messages import first_error, require
from pipeline.config.shipped import configs_folder
from pipeline.studies.robustness.config import RobustnessConfig

QUICKSTART = Path("robustness/quickstart.yaml")


def load_robustness(path: Path, overrides: Sequence[str]) -> RobustnessConfig:
    """Return the config of a YAML file with overrides; ValueError naming file and key."""
    try:
        return RobustnessConfig.model_validate(load_mapping(path, overrides))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error, RobustnessConfig)}") from None


def robustness(path: Path | None, overrides: Sequence[str], out: Path | None) -> Path:
    """Run the suite and return the page's path; without a config, the quickstart's is used."""
    config = load_robustness(path or configs_folder() / QUICKSTART, overrides)
    require("benchmarks", "rouge_score", "sacrebleu")
    folder = out if out is not None else Path("runs") / config.name
    from pipeline.runs.display import display
    from pipeline.studies.robustness.suite import BASE, run_suite
    from pipeline.studies.robustness_page import write_robustness_page

    folder.mkdir(parents=True, exist_ok=True)
    with display([BASE, *config.families]) as progress:
        results = run_suite(config, folder, progress)
    page = folder / "robustness.html"
    write_robustness_page(page, config, results)
    return page
