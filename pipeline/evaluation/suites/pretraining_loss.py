"""What alignment cost: the loss of each policy on held-out pretraining text.

Dimension key:  B texts,  L tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.suites.suite import Inputs
from reward_models.context_limit import context_limit
from stages.data.padding import pad_right, positions
from stages.data.template import document_ids
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Step

SUITE, SCORER = "pretraining", "the policy itself"
_AT_ONCE = 16  # texts: logits of more would not fit a processor's cache


def text_losses(inputs: Inputs) -> list[Completion]:
    """One row a policy and text: nats per token, and in `n_tokens` how many were predicted.

    Each text's first `max_pretraining_tokens` count, or as many as all policies have positions for,
    the first one (BOS, where the tokenizer puts it before a text) only as context. Raises
    ValueError if no text has two tokens or if the policies cut texts into different tokens.
    """
    config, rows = inputs.config, list[Completion]()
    most = config.max_pretraining_tokens
    for source in inputs.policies.values() if inputs.held_out_texts else ():
        most = context_limit(source).at_most(most)  # the same texts for all
    counts: list[int] | None = None
    for done, (model, source) in enumerate(
        inputs.policies.items() if inputs.held_out_texts else ()
    ):
        tokenizer = load_tokenizer(source)
        cut = [document_ids(tokenizer, text)[:most] for text in inputs.held_out_texts]
        kept = [
            (text, ids)
            for text, ids in zip(inputs.held_out_texts, cut, strict=True)
            if len(ids) > 1
        ]
        if not kept:
            raise ValueError("held-out pretraining texts: none has two tokens; nothing to predict")
        found = [len(ids) - 1 for _, ids in kept]
        if counts not in (None, found):
            raise ValueError(f"{source} cuts text into other tokens than the first policy does")
        counts = found
        policy = load_policy(source)
        policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
        nats = _nats(policy, [ids for _, ids in kept], _AT_ONCE)
        rows += [
            _row(model, place, text, tokens, total / tokens)
            for place, ((text, _), tokens, total) in enumerate(
                zip(kept, found, nats.tolist(), strict=True)
            )
        ]
        inputs.report(Step(done + 1, len(inputs.policies)))
    return rows


def _row(model: str, place: int, text: str, tokens: int, loss: float) -> Completion:
    return Completion(
        id=f"text-{place:06d}",
        model=model,
        prompt="",
        completion=text,
        suite=SUITE,
        n_tokens=tokens,
        scores={SCORER: {"loss": loss}},
    )


def pretraining_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """Mean nats per token; a text weighs as many tokens as are predicted, and is the unit."""
    read = [row for row in rows if row.suite == SUITE]
    quantity = Quantity(SUITE, "loss", "held-out", SCORER, "lower", "text")
    table = tabulate(read, quantity, lambda row: row.score(SCORER, "loss"), models)
    tokens = {row.id: row.n_tokens for row in read}
    weight_N = np.array([tokens[name] for name in sorted(tokens)], dtype=float)
    return [dataclasses.replace(table, weight_N=weight_N)]


def _nats(model: PreTrainedModel, ids: Sequence[list[int]], batch_size: int) -> np.ndarray:
    """Summed negative log-likelihood of each text, in the order given."""
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    found_N = np.zeros(len(ids))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            ids_BL, mask_BL = pad_right([ids[place] for place in places], pad_id=0)
            found_N[places] = _batch_nats(model, ids_BL.to(device()), mask_BL.to(device())).tolist()
    return found_N


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
