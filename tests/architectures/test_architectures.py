"""Every architecture is read right in every way, or refused; docs/architectures.md says how."""

from pathlib import Path

import pytest

from tests.architectures.observe import Observed, columns, observe, trained
from tests.architectures.tiny import ARCHITECTURES

DOCUMENT = Path(__file__).parents[2] / "docs/architectures.md"
PLAIN = (  # one of each kind
    "llama",
    "gpt2",
    "falcon, multi-query",
    "falcon, new decoder",
    "mistral",
    "gemma3_text",
    "mamba",
    "jamba",
    "recurrent_gemma",
    "bamba, no attention",
    "rwkv",
    "mixtral, router logits",
    "bloom",
    "phi3, LongRoPE",
    "gpt_neo",
    "gpt_oss",
    "bert, an encoder",
)


def documented(name: str) -> list[str]:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    [row] = [line for line in lines if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in PLAIN else pytest.mark.slow)
        for name in sorted(ARCHITECTURES)
    ],
)
def test_an_architecture_is_read_right_in_every_way_or_refused(name: str, tmp_path: Path):
    assert columns(observe(name, tmp_path)) == documented(name)[:3]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_architecture_trains_on_the_loss_of_its_logits_or_is_refused(name: str, tmp_path: Path):
    assert trained(name, tmp_path) == documented(name)[3]


def test_the_document_lists_sixty_architectures_and_no_others():
    rows = DOCUMENT.read_text(encoding="utf-8").splitlines()
    names = [row.split("|")[1].strip() for row in rows if row.startswith("| ")]
    assert names[1:] == sorted(ARCHITECTURES)
    assert len({kind for kind, _ in ARCHITECTURES.values()}) >= 60


def test_a_refusal_fills_its_row():
    assert columns(Observed(refused="no")) == ["refused: no", "", ""]
