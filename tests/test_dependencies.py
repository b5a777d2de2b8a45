"""Declared dependencies are imported, and imported ones are declared."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("pipeline", "stages", "reward_models", "labeling_ui")
# Distributions that another library imports, or that are commands or stubs, and which of these.
NOT_IMPORTED_BY_US = {
    "axe-playwright-python": "the script that it ships is read as a file",
    "sentencepiece": "tokenizers of the hub's scorers",
    "tensorboard": "accelerate's tracker",
    "trackio": "accelerate's tracker",
    "wandb": "accelerate's tracker",
    "gguf": "transformers, for a .gguf file",
    "psycopg": "sqlalchemy, for a postgresql:// URL",
    "python-multipart": "starlette, for a form",
    "detoxify": "a scorer named in a config",
    "vllm": "a server of its own",
    "hatchling": "builds the wheel",
    "import-linter": "a command",
    "mkdocs-material": "a command",
    "mypy": "a command",
    "pre-commit": "a command",
    "pytest-cov": "a plugin",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "ruff": "a command",
    "types-pygments": "stubs",
    "types-pyyaml": "stubs",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: Iterable[str]) -> set[str]:
    return {canonical(re.split(r"[\[<>=;~! ]", text, maxsplit=1)[0]) for text in requirements}


def distributions_imported(*folders: str) -> dict[str, str]:
    """Return the distributions imported below `folders`, each with a file that does."""
    owners = importlib.metadata.packages_distributions()
    result = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=aliases):
                    modules = [alias.name for alias in aliases]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case _:
                    continue
            for top in {module.split(".")[0] for module in modules}:
                if top not in sys.stdlib_module_names and top not in (*PACKAGES, "tests"):
                    for owner in owners.get(top, [top]):
                        result[canonical(owner)] = str(path.relative_to(ROOT))
    return result


CORE = names(PROJECT["project"]["dependencies"])
EXTRAS = names(chain(*PROJECT["project"]["optional-dependencies"].values()))
GROUPS = {
    name: names(text for text in texts if isinstance(text, str))
    for name, texts in PROJECT["dependency-groups"].items()
}


def test_every_import_of_the_packages_is_declared():
    imported = distributions_imported(*PACKAGES)
    assert not {name: path for name, path in imported.items() if name not in CORE | EXTRAS}


def test_every_import_of_the_tests_is_declared():
    imported = distributions_imported("tests")
    declared = CORE | GROUPS["test"]
    assert not {name: path for name, path in imported.items() if name not in declared}


def test_every_dependency_is_imported():
    imported = distributions_imported(*PACKAGES).keys()
    assert not (CORE | EXTRAS) - imported - NOT_IMPORTED_BY_US.keys()


def test_every_dependency_of_a_group_is_imported_or_a_command():
    imported = distributions_imported(*PACKAGES, "tests").keys()
    assert not set().union(*GROUPS.values()) - imported - NOT_IMPORTED_BY_US.keys()


def test_the_lock_holds_everything_that_is_declared():
    lock = names((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    optional = EXTRAS - set().union(*GROUPS.values())
    assert not (CORE | EXTRAS).union(*GROUPS.values()) - lock - optional
