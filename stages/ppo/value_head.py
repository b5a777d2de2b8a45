"""A critic without a transformer: a scalar head on what the policy's unembedding reads.

    value_t = head . h_t + bias        h_t: the policy's last hidden state before token t

One pass of the policy gives logits and values. It starts from the reward model's head, as a critic
of its own starts from the reward model (Ouyang et al. 2022, appendix C.4), and at 0 where that head
reads vectors of another size.

Dimension key:  N response tokens,  D hidden size.
"""

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.model import RewardModel

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """The head, its bias, and the layer before it where the reward model has one."""

    def __init__(self, reward: RewardModel, size: int) -> None:
        """`size` is that of the policy's hidden states."""
        super().__init__()
        fits = reward.head.in_features == size
        self.inner = copy.deepcopy(reward.inner) if fits else None
        self.head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))
        with torch.no_grad():
            self.head.weight.copy_(reward.head.weight if fits else torch.zeros(1, size))
            self.bias.copy_(reward.bias if fits else torch.zeros(1))
        self.requires_grad_(True)

    def forward(self, state_ND: Tensor) -> Tensor:
        """value_N as float32."""
        state_ND = state_ND.to(self.head.weight.dtype)
        if self.inner is not None:
            state_ND = state_ND + self.inner(state_ND)
        value_N: Tensor = self.head(state_ND).squeeze(-1) + self.bias
        return value_N

    def save(self, folder: Path) -> None:
        """Write the head beside `folder` and rename."""
        aside = folder.with_name(folder.name + ".part")
        aside.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in self.state_dict().items()}, aside / FILE)
        folder.mkdir(exist_ok=True)
        (aside / FILE).replace(folder / FILE)
        aside.rmdir()
