"""What alignment cost: the loss of each policy on held-out pretraining text.

Dimension key:  B texts,  L tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.evaluation.tables import Quantity, Table
from stages.data.padding import pad_right, positions
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Report, Step, silent


def pretraining_table(
    policies: Mapping[str, str | Path],
    texts: Sequence[str],
    *,
    max_tokens: int,
    batch_size: int,
    report: Report = silent,
) -> Table:
    """Mean nats per token by text and policy; a text weighs as many tokens as are predicted.

    Each text's first `max_tokens` count, the first token only as context. The unit is the text.
    Raises ValueError if no text has two tokens or if the policies cut texts into different tokens.
    """
    columns, tokens_N = [], None
    for done, source in enumerate(policies.values()):
        tokenizer = load_tokenizer(source)
        ids = [tokenizer.encode(text, add_special_tokens=False)[:max_tokens] for text in texts]
        ids = [row for row in ids if len(row) > 1]
        if not ids:
            raise ValueError("held-out pretraining texts: none has two tokens; nothing to predict")
        counts_N = np.array([len(row) - 1 for row in ids], dtype=float)
        if tokens_N is not None and not np.array_equal(tokens_N, counts_N):
            raise ValueError(f"{source} cuts text into other tokens than the first policy does")
        tokens_N = counts_N
        policy = load_policy(source)
        policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
        columns.append(_nats(policy, ids, batch_size) / counts_N)
        report(Step(done + 1, len(policies)))
    assert tokens_N is not None
    everything = (len(tokens_N),) * len(policies)
    return Table(
        Quantity("pretraining", "loss", "held-out", "the policy itself", "lower", "text"),
        tuple(policies),
        np.stack(columns, axis=1),
        tokens_N,
        everything,
        (0,) * len(policies),
    )


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
