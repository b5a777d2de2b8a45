"""The cost of alignment in the loss of each policy on held-out pretraining text.

Dimension key:  B texts,  L tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import Quantity, Table, score_table
from pipeline.evaluation.suites.suite import Inputs, Samples, Suite
from reward_models.context_limit import context_limit
from reward_models.intervals import Floats
from stages.data.padding import pad_right, positions
from stages.data.template import document_ids
from stages.models import device, load_policy, load_tokenizer, to_device
from stages.precision import inference_weights
from stages.progress import Step

SUITE: Final = "pretraining"
SCORER = "the policy itself"
_BATCH = 16  # texts: logits of more would not fit a processor's cache


def text_losses(inputs: Inputs) -> list[Completion]:
    """Return a row a policy and text: nats per token, and in `n_tokens` the predicted tokens.

    Each text's first `max_pretraining_tokens` count, or as many as all policies have positions for,
    the first one (BOS, where the tokenizer puts it before a text) only as context. Raises
    ValueError if no text has two tokens or if the policies cut texts into different tokens.
    """
    if not inputs.held_out_texts:
        return []
    max_tokens = inputs.config.max_pretraining_tokens
    for source in inputs.policies.values():
        max_tokens = context_limit(source).at_most(max_tokens)  # the same texts for all
    rows: list[Completion] = []
    first_counts: list[int] | None = None
    for done, (model, source) in enumerate(inputs.policies.items(), 1):
        tokenizer = load_tokenizer(source)
        cut = ((text, document_ids(tokenizer, text)[:max_tokens]) for text in inputs.held_out_texts)
        texts = [(text, ids) for text, ids in cut if len(ids) > 1]
        if not texts:
            raise ValueError("held-out pretraining texts: none has two tokens; nothing to predict")
        counts = [len(ids) - 1 for _, ids in texts]
        if first_counts not in (None, counts):
            raise ValueError(f"{source} cuts text into other tokens than the first policy does")
        first_counts = counts
        policy = load_policy(source, weights=inference_weights())
        to_device(policy, device())
        nats = _nats(policy, [ids for _, ids in texts])
        rows += [
            Completion(
                id=f"text-{number:06d}",
                model=model,
                prompt="",
                completion=text,
                suite=SUITE,
                n_tokens=count,
                scores={SCORER: {"loss": total / count}},
            )
            for number, ((text, _), count, total) in enumerate(
                zip(texts, counts, nats.tolist(), strict=True)
            )
        ]
        inputs.report(Step(done, len(inputs.policies)))
    return rows


def _nats(model: PreTrainedModel, ids: Sequence[list[int]]) -> Floats:
    """Summed negative log-likelihood of each text, in the order given."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    nats_N = np.zeros(len(ids))
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            ids_BL, mask_BL = pad_right([ids[index] for index in indices], pad_id=0)
            nats_N[indices] = _batch_nats(model, ids_BL.to(device()), mask_BL.to(device())).tolist()
    return nats_N


def _batch_nats(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    logits_BLV = model(
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        position_ids=positions(mask_BL),
        use_cache=False,
    ).logits
    loss_BL = cross_entropy(
        logits_BLV[:, :-1].float().transpose(1, 2), ids_BL[:, 1:], reduction="none"
    )
    return (loss_BL * mask_BL[:, 1:]).sum(dim=1)


def pretraining_tables(rows: ScoredRows, models: Sequence[str], _: EvaluationConfig) -> list[Table]:
    """Return mean nats per token; a text weighs its predicted tokens, and is the unit."""
    rows = rows.of_suite(SUITE)
    quantity = Quantity(SUITE, "loss", "held-out", SCORER, "lower", "text")
    table = score_table(rows, quantity, models)
    weight_N = rows.fields.groupby("id", sort=True)["n_tokens"].first().to_numpy(dtype=float)
    return [dataclasses.replace(table, weight_N=weight_N)]


PRETRAINING = Suite(
    SUITE,
    Samples(SUITE, "held-out pretraining texts", text_losses, likelihoods=True),
    pretraining_tables,
)
