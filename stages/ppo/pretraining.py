"""The pretraining text that PPO-ptx mixes in, as examples of at most so many tokens, streamed.

Documents begin as the tokenizer begins a text (BOS, where it puts one) and end with EOS. Packed,
they are joined and cut into equal blocks, as large models read them; unpacked, every document is an
example of its own, which suits a model that never saw two in one context.
Nothing but the document at hand is in memory, so the text may be of any size.

Dimension key:  B examples,  L tokens of an example.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from stages.distributed.network import Network
from stages.distributed.sharding import autocast
from stages.ppo.config import PretrainingMix
from stages.ppo.tally import Tally


def pretraining_nll(model: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of every token but each example's first, float32."""
    position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    logits_BLV = model(input_ids=ids_BL, position_ids=position_BL, use_cache=False).logits
    label_BL = ids_BL.masked_fill(~mask_BL, -100)
    return cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), label_BL[:, 1:].flatten(), reduction="sum"
    )


def add_gradients(
    policy: Network,
    accelerator: Accelerator,
    mix: PretrainingMix,
    drawn: tuple[Tensor, Tensor],
    tally: Tally,
    *,
    size: int,
) -> None:
    """Add coefficient * d(nll)/d(theta) of this rank's examples to the policy's gradients.

    `drawn` is what `PretrainingStream.next` gave, on every rank the same; `size` examples are read
    at once.
    """
    ranks, rank, count = accelerator.num_processes, accelerator.process_index, len(drawn[0])
    predicted = int(drawn[1][:, 1:].sum())  # over all ranks
    divisor = predicted if mix.normaliser == "token" else count
    # Blank rows, so that all ranks make equally many passes.
    even = (pad(x_BL, (0, 0, 0, -count % ranks)) for x_BL in drawn)
    ids_BL, mask_BL = (x_BL[rank::ranks].to(accelerator.device) for x_BL in even)
    for part_BL, part_mask_BL in zip(
        torch.split(ids_BL, size), torch.split(mask_BL, size), strict=True
    ):
        with autocast(accelerator):
            nll = pretraining_nll(policy.model, part_BL, part_mask_BL)
        policy.backward(mix.coefficient * nll / divisor)
        tokens = int(part_mask_BL[:, 1:].sum())
        tally.add("ppo/pretraining_loss_nats_per_token", nll.item(), tokens)
