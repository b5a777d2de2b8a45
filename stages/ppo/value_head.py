"""A critic without a transformer: a scalar head on what the policy's unembedding reads.

    value_t = head . h_t + bias        h_t: the policy's last hidden state before token t

One pass of the policy gives logits and values. It starts at 0: a reward model's head was trained to
read the last token alone, and values read off it explained less of the returns than a constant
for many iterations (docs/ppo.md).

Dimension key:  N response tokens,  D hidden size.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """The head and its bias; `size` is that of the policy's hidden states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        # Of one dimension, because DeepSpeed does not divide a scalar.
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    def forward(self, state_ND: Tensor) -> Tensor:
        """value_N as float32."""
        value_N: Tensor = self.head(state_ND.to(self.head.weight.dtype)).squeeze(-1) + self.bias
        return value_N

    def save(self, folder: Path) -> None:
        """Write the head beside `folder` and rename."""
        aside = folder.with_name(folder.name + ".part")
        aside.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in self.state_dict().items()}, aside / FILE)
        folder.mkdir(exist_ok=True)
        (aside / FILE).replace(folder / FILE)
        aside.rmdir()
