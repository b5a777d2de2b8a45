"""Log-probabilities from hidden states, a chunk of tokens at a time.

    logits_NV = unembed(state_ND)                       N * V numbers, kept for the way back
    log p_N   = logits[token] - logsumexp(logits)       in chunks: of one chunk at a time

With a vocabulary of 150,000 the logits of a thousand tokens are 600 MB, and the softmax, its
gradient and the float32 copy of 16-bit logits as much each. Here a chunk's logits are made, used
and dropped, and made again on the way back. The numbers are the same up to rounding: in another
order of adding up, in the unembedding's gradient. Few tokens are one chunk, which costs nothing.

The chunks are computed inside the model's own forward pass, in place of its unembedding, so that
whatever gathers weights around that still does.

Dimension key:  B rows,  L tokens of a row,  N tokens,  V vocabulary,  D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

LOGITS_AT_ONCE = 1 << 25  # 128 MiB in float32
IGNORED = -100  # the label of a token that carries no loss, by PyTorch's convention

Unembed = Callable[[Tensor], Tensor]  # states (..., D) to logits (..., V)


def tokens_at_once(model: PreTrainedModel, most: int = LOGITS_AT_ONCE) -> int:
    """Return the number of tokens in a chunk with at most so many logits."""
    return max(1, most // int(model.config.get_text_config().vocab_size))


def logprobs_and_entropy(
    unembed: Unembed,
    state_1ND: Tensor,
    *,
    token_N: Tensor,
    temperature: float,
    chunk: int,
    with_entropy: bool = False,
) -> Tensor:
    """Return (1, N, 2) in float32: log softmax(logits / temperature) at the tokens, and entropy.

    The entropy, in nats, has no gradient, and is 0 unless asked for.
    """
    parts = zip(torch.split(state_1ND[0], chunk), torch.split(token_N, chunk), strict=True)
    one: Callable[..., Tensor] = partial(_of_a_chunk, unembed, temperature, with_entropy)
    if torch.is_grad_enabled():
        one = partial(checkpoint, one, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([one(state_ND, ids_N) for state_ND, ids_N in parts])[None]


def summed_nll(unembed: Unembed, state_BLD: Tensor, *, label_BL: Tensor, chunk: int) -> Tensor:
    """Return the negative log-likelihood of the labels, each from the position before it.

    Labels that are IGNORED do not count.
    """
    counts_BL = label_BL[:, 1:] != IGNORED
    logprob_1N2 = logprobs_and_entropy(
        unembed,
        state_BLD[:, :-1][counts_BL][None],
        token_N=label_BL[:, 1:][counts_BL],
        temperature=1.0,
        chunk=chunk,
    )
    return -logprob_1N2[..., 0].sum()


@contextmanager
def in_place_of_logits(
    head: nn.Module, compute: Callable[[Unembed, Tensor], Tensor]
) -> Iterator[None]:
    """Let a model return, as its logits, what `compute` makes of its unembedding and states."""
    own = head.forward
    before = vars(head).get("forward")
    vars(head)["forward"] = partial(compute, own)
    try:
        yield
    finally:
        del vars(head)["forward"]
        if before is not None:
            vars(head)["forward"] = before


@torch.no_grad()
def returns_what_it_unembeds(model: PreTrainedModel, head: nn.Module) -> bool:
    """Return true where a model's logits are its unembedding's output, not capped or scaled."""
    outputs: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, __, output: outputs.append(output))
    ids_BL = torch.arange(3, device=model.device)[None]
    try:
        logits_BLV: Tensor = model(input_ids=ids_BL, use_cache=False).logits
    finally:
        handle.remove()
    return torch.equal(outputs[-1].float(), logits_BLV.float())


def _of_a_chunk(
    unembed: Unembed, temperature: float, with_entropy: bool, state_ND: Tensor, token_N: Tensor
) -> Tensor:
    logits_NV = unembed(state_ND).float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    norm_N = logits_NV.logsumexp(-1)
    logprob_N = logits_NV.gather(-1, token_N[:, None]).squeeze(-1) - norm_N
    entropy_N = torch.zeros_like(norm_N)
    if with_entropy:
        with torch.no_grad():
            all_NV = logits_NV - norm_N[:, None]
            entropy_N = -(all_NV.exp() * all_NV).sum(-1)
    return torch.stack([logprob_N, entropy_N.detach()], -1)
