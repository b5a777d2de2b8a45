"""The configs that come with the package."""

from pathlib import Path


def configs_folder() -> Path:
    """Return their folder: in a checkout beside the packages, else inside `pipeline`."""
    package = Path(__file__).parents[1]
    beside = package.parent / "configs"
    return beside if beside.is_dir() else package / "shipped_configs"


def accelerate_config(sharding: str, *, on_cpu: bool) -> Path:
    """Return the accelerate config of a sharding; a path stands for itself."""
    if "/" in sharding:
        return Path(sharding)
    name = "ddp" if sharding == "none" else sharding
    return configs_folder() / "accelerate" / f"{'cpu2' if name == 'ddp' and on_cpu else name}.yaml"
