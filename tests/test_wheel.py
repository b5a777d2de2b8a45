"""The wheel, installed in a folder of its own and used in an empty one."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the wheel of this checkout and unpack it, as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def rlhf(site: Path, folder: Path, *words: str) -> str:
    code = (
        f"import pipeline, sys; assert pipeline.__file__.startswith({str(site)!r}); "
        "from pipeline.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_configs_typing_markers_and_data_files(site):
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    packages = ("pipeline", "stages", "reward_models", "labeling_ui")
    assert {f"{package}/py.typed" for package in packages} <= names
    assert "pipeline/shipped_configs/quickstart.yaml" in names
    sources = subprocess.run(
        ["git", "ls-files", *packages], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert not {name for name in sources if (ROOT / name).is_file()} - names


def test_a_shipped_experiment_runs_by_name_in_an_empty_folder(site, tmp_path):
    out = rlhf(site, tmp_path, "run", "quickstart", "--until", "data").splitlines()[-1]
    assert (tmp_path / out / "test_prompts.jsonl").is_file()


def test_a_config_of_ones_own_is_written_and_runs(site, tmp_path):
    assert rlhf(site, tmp_path, "init", "mine").strip() == "mine.yaml"
    out = rlhf(site, tmp_path, "run", "mine.yaml", "--until", "data").splitlines()[-1]
    assert (tmp_path / out / "test_prompts.jsonl").is_file()


def test_an_installed_room_finds_its_forms(site, tmp_path):
    code = "from labeling_ui.forms import default_form; print(default_form().kind)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "ranking"
