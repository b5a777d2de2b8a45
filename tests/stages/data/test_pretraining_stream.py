"""Pretraining text is streamed: constant memory, every document once a pass, resumed in place."""

import json
import tracemalloc
from pathlib import Path

import pytest
import torch

from stages.data.streams import PretrainingStream, TextStream
from stages.models import load_tokenizer
from tests.reward_models.tiny import tiny_base
from tests.stages.ppo.tiny_ppo import TEXTS, texts_file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def numbered(folder: Path, count: int) -> Path:
    return texts_file(folder, [f"text {number}" for number in range(count)])


@pytest.mark.parametrize("window", [3, 7, 50])
def test_every_pass_reads_every_document_once_in_its_own_order(tmp_path: Path, window: int) -> None:
    stream = TextStream(numbered(tmp_path, 20), 0, window=window)
    passes = [[stream.next() for _ in range(20)] for _ in range(3)]
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 20 for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert [stream.next() for _ in range(20)] != [
        TextStream(stream.path, 1, window=window).next() for _ in range(20)
    ]


@pytest.mark.parametrize("taken", [0, 1, 6, 7, 13, 20, 33])
def test_a_text_stream_goes_on_at_the_same_document(tmp_path: Path, taken: int) -> None:
    path = numbered(tmp_path, 20)
    stream = TextStream(path, 0, window=7)
    for _ in range(taken):
        stream.next()
    other = TextStream(path, 0, window=7)
    other.restore(json.loads(json.dumps(stream.state())))
    assert [other.next() for _ in range(30)] == [stream.next() for _ in range(30)]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("taken", [1, 5, 40])
def test_examples_go_on_at_the_same_token(base: Path, tmp_path: Path, pack: bool, taken: int):
    def fresh() -> PretrainingStream:
        return PretrainingStream(texts_file(tmp_path), load_tokenizer(base), 7, pack=pack, seed=0)

    stream, other = fresh(), fresh()
    stream.next(taken)
    other.restore(stream.state())
    for drawn, expected in zip(other.next(60), stream.next(60), strict=True):
        assert torch.equal(drawn, expected)


def test_packed_blocks_join_the_documents_with_eos(base: Path, tmp_path: Path) -> None:
    tokenizer, path = load_tokenizer(base), texts_file(tmp_path)
    ids_BL, mask_BL = PretrainingStream(path, tokenizer, 10, pack=True, seed=3).next(15)
    texts, joined = TextStream(path, 3), []
    while len(joined) < 150:
        joined += [*tokenizer.encode(texts.next()), tokenizer.eos_token_id]
    assert ids_BL.flatten().tolist() == joined[:150]
    assert mask_BL.all()


def test_separate_examples_hold_one_document_each(base: Path, tmp_path: Path) -> None:
    tokenizer, path = load_tokenizer(base), texts_file(tmp_path)
    ids_BL, mask_BL = PretrainingStream(path, tokenizer, 8, pack=False, seed=3).next(len(TEXTS))
    drawn = [ids_L[mask_L].tolist() for ids_L, mask_L in zip(ids_BL, mask_BL, strict=True)]
    whole = [[*tokenizer.encode(text), tokenizer.eos_token_id][:8] for text in TEXTS]
    assert sorted(drawn) == sorted(whole)


def test_a_thousand_times_the_text_takes_no_more_memory(base: Path, tmp_path: Path) -> None:
    tokenizer, peaks = load_tokenizer(base), []
    for count in (30, 30_000):
        texts = (f"w{number % 9} " * 60 for number in range(count))
        (tmp_path / str(count)).mkdir()
        path = texts_file(tmp_path / str(count), texts)
        stream = PretrainingStream(path, tokenizer, 32, pack=True, seed=0)
        tracemalloc.start()
        for _ in range(100):
            stream.next(8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 5_000_000
    assert peaks[1] < peaks[0] + 500_000  # the places of 10,000 documents, and their order


def test_text_that_is_none_is_refused_by_its_place(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"body": "b"}\n')
    stream = TextStream(path, 0)
    with pytest.raises(ValueError, match=r"texts.jsonl, byte 14: expected a line"):
        stream.next(), stream.next()
    path.write_text("\n")
    with pytest.raises(ValueError, match="no text in it"):
        TextStream(path, 0)
    short = PretrainingStream(
        texts_file(tmp_path, ["w1"]), load_tokenizer(base), 8, pack=True, seed=0
    )
    with pytest.raises(ValueError, match="has 2 tokens, expected at least"):
        short.next(1)
