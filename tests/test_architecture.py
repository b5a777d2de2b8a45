"""The shape of the code base: import rule, sizes of files and functions, a quick command line."""

import ast
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.app import app

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "reward_models", "labeling_ui")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TORCH_FREE = (
    "pipeline.cli.app",
    "pipeline.config.loading",
    "pipeline.steps.order",
    "pipeline.launch.options",
    "stages.config",
    "stages.progress",
    "reward_models.records",
    "labeling_ui.store.store",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FILES_ON_A_FLOOR = 400, 60, 14
# An algorithm that is read together stands together: its file or its functions may be longer.
ALGORITHMS = frozenset({"stages/ppo/ppo.py"})


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstring_lines(node: ast.AST) -> int:
    body = (
        node.body if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) else []
    )
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_imports_point_one_way():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_file_holds_one_idea(path: Path):
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines()) - docstring_lines(ast.parse(text))
    assert lines <= MAX_FILE_LINES or name(path) in ALGORITHMS


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_functions_fit_on_a_page(path: Path):
    long = {
        node.name: lines
        for node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if (lines := (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node))
        > MAX_FUNCTION_LINES
    }
    assert not long or name(path) in ALGORITHMS


def test_no_folder_is_crowded():
    floors = Counter(name(path.parent) for path in MODULES if path.name != "__init__.py")
    assert not {floor: files for floor, files in floors.items() if files > MAX_FILES_ON_A_FLOOR}


def test_the_formatter_decides_everywhere():
    off = "# fmt" + ": "
    files = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
    assert not [name(path) for path in files if off in path.read_text(encoding="utf-8")]


def test_init_files_are_empty():
    assert not [name(path) for path in MODULES if path.name == "__init__.py" and path.read_text()]


def test_the_packages_have_init_files():
    folders = {path.parent for path in MODULES}
    assert not [name(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_light_modules_load_nothing_heavy():
    heavy = "{'torch', 'transformers', 'gradio', 'trl', 'datasets', 'deepspeed', 'accelerate'}"
    code = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE}:\n"
        "    importlib.import_module(name)\n"
        f"    assert not (loaded := {heavy} & set(sys.modules)), (name, loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_help_answers_within_a_second_of_cpu():
    def cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = cpu_s()
    command = [sys.executable, "-m", "pipeline.cli.app", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "export-model" in done.stdout
    assert cpu_s() - before < 1.0


def test_every_verb_teaches():
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    commands = [command for group in groups for command in group.registered_commands]
    verbs = {c.name or c.callback.__name__: c.help or c.callback.__doc__ for c in commands}
    expected = "run sft sample label export reward ppo evaluate report pretrain fetch score"
    assert {*expected.split(), "compare", "chat", "doctor", "export-model", "agreement"} <= {*verbs}
    assert all(text and text.strip() for text in verbs.values())
