"""Demonstrations as token ids, with the loss on the response only.

Dimension key:  B demonstrations,  L prompt and response,  V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.model_files import first_line
from reward_models.packed_attention import FORWARD_ERRORS
from reward_models.records import Demonstration
from stages.chunked_logprobs import (
    IGNORED,
    in_place_of_logits,
    returns_what_it_unembeds,
    summed_nll,
    tokens_at_once,
)
from stages.data.padding import pad_right, positions
from stages.data.template import conversation_ids, response_ids

ROUNDING = 2e-5  # of a summed loss that is computed in another order


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration as token ids; the response, with its end, starts at `response_start`."""

    ids: list[int]
    response_start: int


def encode(tokenizer: PreTrainedTokenizerBase, demonstration: Demonstration) -> Example:
    """Return the demonstration as every stage encodes it: conversation, response, end of turn."""
    prompt = conversation_ids(tokenizer, demonstration)
    return Example(prompt + response_ids(tokenizer, demonstration.response), len(prompt))


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Return a right-padded batch under the names that a causal language model's forward takes."""
    ids_BL, mask_BL = pad_right([example.ids for example in examples], pad_id)
    start_B = torch.tensor([example.response_start for example in examples])
    in_response_BL = mask_BL & (torch.arange(ids_BL.shape[1])[None, :] >= start_B[:, None])
    return {
        "input_ids": ids_BL,
        "attention_mask": mask_BL.long(),
        "position_ids": positions(mask_BL),
        "labels": ids_BL.masked_fill(~in_response_BL, IGNORED),
    }


def response_loss(
    model: PreTrainedModel, examples: Sequence[Example], pad_id: int, *, batch_size: int
) -> float:
    """Return nats per response token: the mean over all tokens of all responses, dropout off."""
    nats, tokens = 0.0, 0
    by_length = sorted(examples, key=lambda example: len(example.ids))
    # Not inference mode: gathered parameters must stay trainable.
    with without_dropout(model), torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            batch = collate(by_length[start : start + batch_size], pad_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels_BL = batch.pop("labels")
            nats += _batch_nats(model, batch, labels_BL).item()
            tokens += int((labels_BL[:, 1:] != IGNORED).sum())
    return nats / tokens


@contextmanager
def without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Put the model in eval mode for a while."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def check_trained_loss(model: PreTrainedModel, example: Example, pad_id: int) -> None:
    """Raise ValueError unless the loss that TRL trains is that of the model's own logits.

    TRL multiplies hidden states by the unembedding's matrix, which is all there is in most models.
    """
    batch = {name: x.to(model.device) for name, x in collate([example], pad_id).items()}
    name = f"{model.config.name_or_path}: {type(model).__name__}"
    try:
        with without_dropout(model), torch.no_grad():
            output = model(**batch, use_cache=False, fused_lm_head=True)
            labels_BL = batch.pop("labels")
            logits_BLV = model(**batch, use_cache=False).logits
    except FORWARD_ERRORS as error:
        raise ValueError(f"{name} cannot be fine-tuned ({first_line(error)[:120]})") from None
    expected = _summed_nats(logits_BLV, labels_BL).item()
    trained = -output.log_probs.float().sum().item()
    if not abs(trained - expected) <= ROUNDING * max(1.0, expected):
        raise ValueError(
            f"{name} cannot be fine-tuned: its unembedding is more than a matrix, and the loss "
            f"that would be trained is {trained:.4g} nats where its own logits give {expected:.4g}"
        )


def _batch_nats(model: PreTrainedModel, batch: dict[str, Tensor], labels_BL: Tensor) -> Tensor:
    """Return the summed negative log-likelihood, of many tokens a chunk of logits at a time.

    An engine around a model makes all logits at once.
    """
    if not isinstance(model, PreTrainedModel | PeftModel):
        return _summed_nats(model(**batch, use_cache=False).logits, labels_BL)
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    chunk = tokens_at_once(model)
    if labels_BL.numel() <= chunk or not returns_what_it_unembeds(model, head):
        return _summed_nats(model(**batch, use_cache=False).logits, labels_BL)
    with in_place_of_logits(head, partial(summed_nll, label_BL=labels_BL, chunk=chunk)):
        nats: Tensor = model(**batch, use_cache=False).logits
    return nats


def _summed_nats(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Return the negative log-likelihood of the labels, each from the position before it."""
    predicted = logits_BLV[:, :-1].flatten(0, 1).float()
    return cross_entropy(
        predicted, labels_BL[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
