"""The docs: generated pages are fresh, paths exist, the README stays one page."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs/reference"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = "pipeline|stages|reward_models|labeling_ui|tests|configs|docs"
PATH = re.compile(rf"(?<![\w/.-])(?:{PACKAGES})/[\w./-]*\w")
MODULE = re.compile(r"python -m ((?:tests|pipeline)\.[\w.]+)")


@pytest.mark.parametrize("name", ["commands.md", "configs.md"])
def test_the_reference_is_what_the_code_says(name: str):
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = REFERENCE / name
    assert written.is_file(), "run `make docs`"
    assert written.read_text(encoding="utf-8") == module.pages()[name], "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_modules_that_a_page_names_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    paths = {path.partition("::")[0] for path in PATH.findall(text) if "NAME" not in path}
    modules = {f"{name.replace('.', '/')}.py" for name in MODULE.findall(text)}
    assert not {path for path in paths | modules if not (ROOT / path).exists()}


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
