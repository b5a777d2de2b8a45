"""The speed of 32 users in one batch against one after another, on real bases.

python -m pytest -m bench tests/benchmarks/test_users_speed.py -s
"""

import time
from pathlib import Path

import pytest
import torch

from pipeline.runs.manifest import QUICKSTART
from stages.adapters.config import LoRA
from stages.data.template import prompt_ids
from stages.generation.config import SamplingConfig
from stages.models import load_policy, load_tokenizer
from stages.users.adapters import UserAdapter
from stages.users.train import generate_for_users, new_adapter, open_user_store

SMOLLM2 = Path("models/SmolLM2-135M-Instruct")
USERS = 32


@pytest.mark.bench
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("base", "tokens"), [(QUICKSTART / "base", 24), (SMOLLM2, 6)], ids=["quickstart", "smollm2"]
)
def test_32_users_in_one_batch_are_five_times_as_fast_as_one_after_another(base, tokens, tmp_path):
    if not (base / "config.json").is_file():
        pytest.skip(f"no model at {base} (rlhf fetch smollm2)")
    model, tokenizer = load_policy(base), load_tokenizer(base)
    store, start = (
        open_user_store(tmp_path, model),
        new_adapter(model, tokenizer, LoRA(rank=8, alpha=16.0), 0),
    )
    for user in range(USERS):
        generator = torch.Generator().manual_seed(user)
        moved = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in start.tensors.items()
        }
        store.put(f"u{user}", UserAdapter(start.config, moved))
    names = store.names()
    prompts = [prompt_ids(tokenizer, f"Say something about the number {n}.") for n in range(USERS)]
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=tokens, batch_size=USERS)

    def rate(groups: list[list[int]]) -> tuple[float, list[list[int]]]:
        """Tokens a second, and the answers, where each group is one call."""
        began, responses = time.perf_counter(), []
        for group in groups:
            responses += generate_for_users(
                model,
                tokenizer,
                store,
                [prompts[n] for n in group],
                sampling,
                users=[names[n] for n in group],
                generator=torch.Generator(),
            )
        answers = [one.ids for one in responses]
        return sum(map(len, answers)) / (time.perf_counter() - began), answers

    rate([[0]])  # what is only paid once
    together, apart = 0.0, 0.0
    for _ in range(2):
        fast, one = rate([list(range(USERS))])
        slow, other = rate([[n] for n in range(USERS)])
        assert one == other
        together, apart = together + fast / 2, apart + slow / 2
    print(f"\n{base.name}: {together:.0f} tokens/s together, {apart:.0f} apart")
    assert together / apart > 5
