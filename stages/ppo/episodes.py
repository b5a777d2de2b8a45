"""Episodes as tensors, and what models say about their responses.

Rows are padded on the left, so every response ends in the last column: the response tokens of any
subset of rows are the last T columns, T being the longest response among them. Masks come from
lengths, never from ids; positions are explicit.

Dimension key:  B episodes,  L prompt and response,  T response tokens,  N response tokens of a
batch in one list,  V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward_models.model import RewardModel
from stages.data.padding import positions
from stages.generation import Sampled


@dataclass(frozen=True, slots=True)
class Episodes:
    """Prompts with their responses, right-aligned.

    `mask_BL` is true at every token, `response_BT` at the response's, in the last T columns.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    response_BT: Tensor
    ended_B: Tensor

    @classmethod
    def build(
        cls, prompts: Sequence[list[int]], responses: Sequence[Sampled], device: torch.device
    ) -> Self:
        """Right-align each prompt with its response; responses have at least one token."""
        rows = [prompt + r.ids for prompt, r in zip(prompts, responses, strict=True)]
        width = max(map(len, rows))
        longest = max(len(r.ids) for r in responses)
        padded = [[0] * (width - len(row)) + row for row in rows]
        return cls(
            ids_BL=torch.tensor(padded, device=device),
            mask_BL=_last([len(row) for row in rows], width).to(device),
            response_BT=_last([len(r.ids) for r in responses], longest).to(device),
            ended_B=torch.tensor([r.ended for r in responses], device=device),
        )

    def take(self, rows: Tensor) -> Self:
        """Some of the episodes, without the columns that none of them uses."""
        width = int(self.mask_BL[rows].sum(-1).max())
        longest = int(self.response_BT[rows].sum(-1).max())
        return type(self)(
            self.ids_BL[rows, -width:],
            self.mask_BL[rows, -width:],
            self.response_BT[rows, -longest:],
            self.ended_B[rows],
        )

    def response_tokens(self) -> Tensor:
        """token_BT of the responses; meaningless outside `response_BT`."""
        return self.ids_BL[:, -self.response_BT.shape[1] :]


def by_length(episodes: Episodes, rows: Tensor, size: int | None) -> Iterator[Tensor]:
    """`rows` in batches of at most `size` of similar length, so that little padding is computed."""
    order = episodes.mask_BL[rows].sum(-1).argsort(stable=True)
    yield from torch.split(rows[order], size or len(rows))


def response_logits(policy: PreTrainedModel, batch: Episodes) -> Tensor:
    """logits_NV that predict the response tokens, in the order of `response_BT`'s true places."""
    longest = batch.response_BT.shape[1]
    output = policy(
        input_ids=batch.ids_BL,
        attention_mask=batch.mask_BL.long(),
        position_ids=positions(batch.mask_BL),
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    logits_NV: Tensor = output.logits[:, :-1][batch.response_BT]
    return logits_NV


def response_values(critic: RewardModel, batch: Episodes) -> Tensor:
    """value_N before each response token, read at the token that comes before it."""
    width, longest = batch.ids_BL.shape[1], batch.response_BT.shape[1]
    read_T = torch.arange(width - longest - 1, width - 1, device=batch.ids_BL.device)
    read_BT = read_T.expand(len(batch.ids_BL), -1)
    value_BT: Tensor = critic(batch.ids_BL, batch.mask_BL, positions(batch.mask_BL), read_BT)
    return value_BT[batch.response_BT]


def response_scores(reward: RewardModel, batch: Episodes) -> Tensor:
    """score_B at the last token of each response."""
    score_B: Tensor = reward(batch.ids_BL, batch.mask_BL, positions(batch.mask_BL))
    return score_B


def _last(counts: Sequence[int], width: int) -> Tensor:
    """mask that is true in the last `counts[b]` of `width` columns."""
    return torch.arange(width) >= width - torch.tensor(counts)[:, None]
