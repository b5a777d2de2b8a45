"""Pretraining text among the demonstrations, as in the model that PPO starts from (appendix C.3).

The paper mixes in 10 % of pretraining data and does not say of what; here it is a share of the
examples, which is what GPT-3's "weight in training mix" counts (Brown et al. 2020, table 2.2).
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stages.config import SupervisedMix
from stages.data.pretraining_stream import PretrainingStream
from stages.data.supervised import Example


def pretraining_examples(
    mix: SupervisedMix,
    texts: Path,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Example],
    seed: int,
) -> list[Example]:
    """So many that they make up `mix.share` of all; every token but the first carries loss.

    `texts` are JSON lines {"text": ...}; ValueError where they are too short for one block.
    """
    count = max(1, round(len(demonstrations) * mix.share / (1.0 - mix.share)))
    stream = PretrainingStream(texts, tokenizer, mix.tokens_per_example, pack=mix.pack, seed=seed)
    ids_BL, mask_BL = stream.next(count)
    rows = zip(ids_BL.tolist(), mask_BL.sum(-1).tolist(), strict=True)
    return [Example(row[:tokens], response_start=1) for row, tokens in rows]
