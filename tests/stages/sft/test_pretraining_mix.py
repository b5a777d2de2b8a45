"""Fine-tuning with pretraining text among the demonstrations (Ouyang et al. 2022, appendix C.3)."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from reward_models.records import Demonstration
from stages.chunked_logprobs import IGNORED
from stages.data.supervised import collate, encode
from stages.progress import Step
from stages.sft.config import SFTConfig, SupervisedMix
from stages.sft.train import pretraining_examples, train_sft
from tests.reward_models.tiny import WORDS, tiny_base, tiny_demonstrations, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": " ".join(WORDS[k : k + 7])} for k in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def demonstrations(count: int) -> list[Demonstration]:
    return tiny_demonstrations(count, random.Random(0))


def train(
    base: Path,
    out: Path,
    texts: Path | None,
    taught: list[Demonstration] | None = None,
    **changes: Any,
) -> list[Step]:
    steps: list[Step] = []
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-2, "dropout": 0.0}
    train_sft(
        SFTConfig.model_validate(settings | changes),
        base=base,
        demonstrations=demonstrations(18) if taught is None else taught,
        validation=demonstrations(4),
        out=out,
        seed=3,
        report=steps.append,
        pretraining=texts,
    )
    return steps


def test_a_tenth_of_the_examples_is_pretraining_text(texts: Path) -> None:
    examples = [encode(tiny_tokenizer(), one) for one in demonstrations(18)]
    mix = SupervisedMix(share=0.1, tokens_per_example=8)
    drawn = pretraining_examples(mix, texts, tiny_tokenizer(), examples, seed=0)
    assert len(drawn) / (len(drawn) + len(examples)) == pytest.approx(0.1)


def test_every_token_of_a_pretraining_example_but_the_first_carries_loss(texts: Path) -> None:
    mix = SupervisedMix(share=0.5, tokens_per_example=8)
    examples = [encode(tiny_tokenizer(), one) for one in demonstrations(3)]
    drawn = pretraining_examples(mix, texts, tiny_tokenizer(), examples, seed=0)
    labels_BL = collate(drawn, pad_id=0)["labels"]
    assert labels_BL.shape == (3, 8)
    assert (labels_BL[:, 0] == IGNORED).all()
    assert (labels_BL[:, 1:] != IGNORED).all()


def test_the_mix_is_trained_on_and_counted(base: Path, texts: Path, tmp_path: Path) -> None:
    mix = {"share": 0.1, "tokens_per_example": 8}
    plain = train(base, tmp_path / "a", None)
    mixed = train(base, tmp_path / "b", texts, pretraining=mix)
    assert mixed[0].metrics["sft/pretraining_examples"] == 2
    assert (plain[1].total, mixed[1].total) == (8, 8)  # 18 and 20 examples, five a batch
    weights = [tmp_path / name / "model/model.safetensors" for name in "ab"]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    again = train(base, tmp_path / "c", texts, pretraining=mix)
    assert (tmp_path / "c/model/model.safetensors").read_bytes() == weights[1].read_bytes()
    assert len(again) == len(mixed)


def test_the_last_epoch_is_the_result_where_configured(base: Path, tmp_path: Path) -> None:
    taught = [Demonstration(f"w{k}", "good") for k in range(18)]  # unlike those it is judged by
    train(base, tmp_path / "best", None, taught, epochs=3)
    train(base, tmp_path / "last", None, taught, epochs=3, result="last")
    best, last = (
        json.loads((tmp_path / n / "selection.json").read_text()) for n in ("best", "last")
    )
    losses = [epoch["validation_loss"] for epoch in last["epochs"]]
    assert best["epoch"] == losses.index(min(losses)) + 1 < 3
    assert (last["epoch"], last["chosen_by"]) == (3, "being the last")


def test_texts_without_a_mix_and_a_mix_without_texts_are_refused(
    base: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="they had no effect"):
        train(base, tmp_path / "a", texts)
    with pytest.raises(ValueError, match="no pretraining texts to read"):
        train(base, tmp_path / "b", None, pretraining={"share": 0.1})
