"""Episodes as tensors.

Rows are padded on the left, so every response ends in the last column: the response tokens of any
subset of rows are the last T columns, T being the longest response among them. Masks come from
lengths, never from ids.

Dimension key:  B episodes,  L prompt and response,  T response tokens,  G groups of K
episodes that share a prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from stages.generation.generate import Sampled


@dataclass(frozen=True, slots=True)
class Episodes:
    """Prompts with their responses, right-aligned.

    `mask_BL` is true at every token, `response_BT` at the response's, in the last T columns. Every
    `sharing` neighbours have the same prompt, which is computed once where episodes are packed.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    response_BT: Tensor
    ended_B: Tensor
    sharing: int = 1

    @classmethod
    def build(
        cls,
        prompts: Sequence[list[int]],
        responses: Sequence[Sampled],
        device: torch.device,
        *,
        sharing: int = 1,
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
            sharing=sharing,
        )

    def take(self, rows: Tensor) -> Self:
        """Some of the episodes, without the columns that none of them uses.

        Those that share a prompt are taken together, in their order.
        """
        width = int(self.mask_BL[rows].sum(-1).max())
        longest = int(self.response_BT[rows].sum(-1).max())
        return type(self)(
            self.ids_BL[rows, -width:],
            self.mask_BL[rows, -width:],
            self.response_BT[rows, -longest:],
            self.ended_B[rows],
            self.sharing,
        )

    def ended_with(self, end: int) -> Self:
        """The same with `end` in the place of whichever id ended a response."""
        ids_BL = self.ids_BL.clone()
        ids_BL[self.ended_B, -1] = end
        return replace(self, ids_BL=ids_BL)

    def response_tokens(self) -> Tensor:
        """token_BT of the responses; meaningless outside `response_BT`."""
        return self.ids_BL[:, -self.response_BT.shape[1] :]


def by_length(episodes: Episodes, rows: Tensor, size: int | None) -> Iterator[Tensor]:
    """`rows` in batches of at most `size` of similar length, so that little is padded.

    What shares a prompt stays together; a batch holds at least one such group.
    """
    group_GK = rows.view(-1, episodes.sharing)
    order_G = episodes.mask_BL[group_GK].sum((1, 2)).argsort(stable=True)
    most = len(group_GK) if size is None else max(1, size // episodes.sharing)
    for part_GK in torch.split(group_GK[order_G], most):
        yield part_GK.flatten()


def shuffled(count: int, sharing: int, generator: torch.Generator) -> Tensor:
    """So many rows in a random order that keeps together the `sharing` neighbours of a prompt."""
    group_GK = torch.arange(count).view(-1, sharing)
    return group_GK[torch.randperm(len(group_GK), generator=generator)].flatten()


def _last(counts: Sequence[int], width: int) -> Tensor:
    """mask that is true in the last `counts[b]` of `width` columns."""
    return torch.arange(width) >= width - torch.tensor(counts)[:, None]
