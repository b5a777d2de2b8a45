"""The configs that come with the package, by name, and a commented config to begin with.

rlhf run quickstart             configs/quickstart.yaml of the package
rlhf run instructgpt/1.3b       configs/instructgpt/1.3b.yaml
rlhf init mine                  writes mine.yaml, for `rlhf run mine.yaml`
"""

from pathlib import Path

from stages.adapters.config import FAMILIES

TEMPLATE = Path(__file__).parent / "own.yaml.j2"
REQUIRED = ("demonstrations", "ranking_prompts", "test_prompts")
OPTIONAL = ("validation", "ppo_prompts", "validation_prompts", "toxicity_prompts")
TEXTS = ("pretraining_texts", "held_out_texts")
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz")


def configs_folder() -> Path:
    """Return the folder of shipped configs: inside the installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "shipped_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def accelerate_config(sharding: str, *, on_cpu: bool) -> Path:
    """Return the accelerate config of a sharding; a path stands for itself."""
    if "/" in sharding:
        return Path(sharding)
    name = "ddp" if sharding == "none" else sharding
    return configs_folder() / "accelerate" / f"{'cpu2' if name == 'ddp' and on_cpu else name}.yaml"


def config_file(path: Path) -> Path:
    """Return the YAML file that `path` names; ValueError in one line where there is none."""
    file = find_config(path)
    if file is None:
        raise ValueError(
            f"{path}: no such file; expected a YAML config, or a shipped one: "
            + ", ".join(shipped_experiments())
        )
    return file


def find_config(path: Path) -> Path | None:
    """Return the YAML file that `path` names: itself, with .yaml added, or a shipped config."""
    candidates = [path, path.with_name(f"{path.name}.yaml")]
    if not path.is_absolute():
        name = Path(*path.parts[1:]) if path.parts[0] == "configs" else path
        shipped = configs_folder() / name
        candidates += [shipped, shipped.with_name(f"{name.name}.yaml")]
        candidates.append(shipped / f"{name.name}.yaml")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def shipped_experiments() -> list[str]:
    """Return the names by which `rlhf run` takes the shipped experiments."""
    root = configs_folder()
    paths = [root / "quickstart.yaml"]
    folders = ("instructgpt", "one_gpu", "smollm2")
    paths += [path for name in folders for path in (root / name).glob("*.yaml")]
    return sorted(
        path.parent.name
        if path.stem == path.parent.name
        else str(path.relative_to(root).with_suffix(""))
        for path in paths
        if path.is_file()
    )


def write_own_config(
    path: Path, model: str | None, data: Path | None, rankings: Path | None, family: str | None
) -> Path:
    """Write a commented config that is named for its file, for a model and data of one's own.

    `data` is a folder with a file for each data set, named for it. Without it the config is the
    quickstart's. Without `rankings` people rank in the browser. Raise ValueError where the file
    exists, or for what is missing.
    """
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    if path.exists():
        raise ValueError(f"{path}: already exists; expected the name of a new config")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"--adaptation {family}; expected one of {', '.join(FAMILIES)}")
    if data is None:
        if rankings is not None:
            raise ValueError("--rankings needs --data, the prompts that its rankings are about")
        path.write_text(_quickstart(path.stem, model, family), encoding="utf-8")
        return path
    if model is None:
        raise ValueError("--data needs --model: the quickstart's base knows only its own world")
    if rankings is not None and not rankings.is_file():
        raise ValueError(f"--rankings {rankings}: no such file")
    from jinja2 import Environment, StrictUndefined

    files = _data_files(data)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=path.stem,
        model=model,
        files=files,
        optional=[key for key in (*OPTIONAL, *TEXTS) if key not in files],
        rankings=rankings,
        family=family or "lora",
        families=", ".join(FAMILIES),
    )
    path.write_text(text, encoding="utf-8")
    return path


def _quickstart(name: str, model: str | None, family: str | None) -> str:
    """Return the quickstart's config under another name, with another model or family."""
    text = (configs_folder() / "quickstart.yaml").read_text(encoding="utf-8")
    adaptation = "" if family is None else f"\nadaptation: {{family: {family}}}"
    changes = {
        "configs/quickstart.yaml": f"{name}.yaml",
        "runs/quickstart": f"runs/{name}",
        "\nname: quickstart\n": f"\nname: {name}\n",
        "\nmodel: quickstart\n": f"\nmodel: {model or 'quickstart'}{adaptation}\n",
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def _data_files(folder: Path) -> dict[str, Path]:
    """Return the file of each data set in a folder."""
    paths = {
        key: path
        for key in (*REQUIRED, *OPTIONAL, *TEXTS)
        for ending in reversed(ENDINGS)
        if (path := folder / f"{key}{ending}").is_file()
    }
    missing = [key for key in REQUIRED if key not in paths]
    if missing:
        raise ValueError(
            f"--data {folder}: no file {missing[0]}.jsonl (or .json, .csv, .tsv, .parquet); "
            f"expected at least {', '.join(REQUIRED)}"
        )
    return paths
