"""Observations of an architecture: the ways it is run and sampled, and their correctness.

`python -m tests.architectures.observe` writes the table of docs/architectures.md to stdout.
"""

import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.records import Demonstration, Prompt
from stages.data.supervised import encode, response_loss
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.generation.kv_cache import decoding_of
from stages.generation.score import score_sequences
from stages.models import load_policy, load_tokenizer, tokenizer_hash
from stages.ppo.config import PPOConfig
from stages.ppo.forward_checks import obstacle_to_packing, pads_right
from stages.ppo.models import Models, load_models
from stages.ppo.rollout import Episodes
from stages.ppo.train import train_ppo
from stages.progress import Step
from stages.reward.batches import RankedPrompt
from stages.reward.held_out import score_elements
from stages.reward.shared_prompt import SharedPrompt, choose_layout
from stages.sft.config import SFTConfig
from stages.sft.train import train_sft
from tests.architectures.tiny import ARCHITECTURES, save
from tests.stages.ppo.tiny_ppo import outputs

PROMPT_TOKENS = (1, 2, 8, 8, 20)
NEW_TOKENS = 12
NUMBER = r" \(it differs by [^)]*\)"
NATS = 1e-4  # a log-probability's or score's rounding, over all kinds


@dataclass(frozen=True)
class Observed:
    """The ways in which stages run an architecture, or the line with which they refuse it."""

    sampling: str = ""
    rows: str = ""
    prompts: str = ""
    refused: str = ""


def observe(name: str, folder: Path) -> Observed:
    """Read a tiny model in every way; AssertionError where two ways differ."""
    source = save(name, folder / "base")
    try:
        policy, tokenizer = load_policy(source), load_tokenizer(source)
    except ValueError as error:
        return Observed(refused=str(error).removeprefix(f"{source}: "))
    sampling = check_sampling(policy, tokenizer)
    reward = RewardModel.from_base(source, seed=0)
    reward.record_training(tokenizer_hash(tokenizer), {"simulated"})
    reward.save(folder / "reward")
    prompts = check_scores(reward)
    rows = check_episodes(source, folder / "reward", tokenizer)
    return Observed(sampling, rows, prompts)


def check_sampling(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Greedy tokens are what full passes over their texts find likeliest."""
    prompt_ids = prompts()
    for prompt, response in zip(prompt_ids, greedy(policy, tokenizer, prompt_ids), strict=True):
        logits_TV = alone(policy, prompt + response.ids)[len(prompt) - 1 : -1]
        chosen_T = logits_TV[range(len(response.ids)), response.ids]
        assert float((logits_TV.max(-1).values - chosen_T).max()) < NATS * scale(logits_TV)
    with torch.inference_mode():
        decoding = decoding_of(policy, None, max(PROMPT_TOKENS) + NEW_TOKENS)
    if not decoding.cached:
        return "without cache"
    return "cache" if decoding.in_parts else "cache, prompts whole"


def check_scores(reward: RewardModel) -> str:
    """Scores in training are those of the texts alone; the backbone stays causal."""
    elements = ranked()
    expected = [
        [score_sequences(reward, [e.prompt + response])[0] for response in e.responses]
        for e in elements
    ]
    layout = choose_layout(reward, elements)
    for score, one in zip(score_elements(reward, elements, layout), expected, strict=True):
        assert max(abs(a - b) for a, b in zip(score, one, strict=True)) < NATS * 3
    assert_causal(transformer(reward.backbone))
    return "shared" if isinstance(layout, SharedPrompt) else "separate"


def check_episodes(source: Path, reward: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """PPO reads log-probabilities and scores that the texts have alone, in rows of any kind."""
    config = PPOConfig.model_validate({"episodes": 4, "episodes_per_rollout": 4, "minibatch": 4})
    models = load_models(
        *(source, reward, config.adaptation, config.models), seed=0, device=torch.device("cpu")
    )
    prompt_ids = prompts()
    responses = greedy(models.policy, tokenizer, prompt_ids)
    expected = [
        torch.cat(
            [
                logprobs_alone(models.policy, p, r)
                for p, r in zip(prompt_ids, responses, strict=True)
            ]
        ),
        Tensor(
            score_sequences(
                models.reward, [p + r.ids for p, r in zip(prompt_ids, responses, strict=True)]
            )
        ),
    ]
    models = replace(models, pads_right=pads_right(models, max(PROMPT_TOKENS) + NEW_TOKENS))
    obstacle = obstacle_to_packing(models, max(prompt_ids, key=len), NEW_TOKENS, 1)
    computed = read(replace(models, packed=obstacle is None), prompt_ids, responses)
    for ours, theirs in zip(computed, expected, strict=True):
        assert float((ours - theirs).abs().max()) < NATS * scale(theirs)
    assert_causal(transformer(models.policy))
    assert_causal(transformer(models.reward.backbone))
    if obstacle is None:
        return "packed"
    return "padded on the right" if models.pads_right else "padded on the left"


def read(
    models: Models, prompt_ids: Sequence[list[int]], responses: Sequence[Sampled]
) -> tuple[Tensor, Tensor]:
    """logprob_N of all response tokens and score_B."""
    episodes = Episodes.build(prompt_ids, responses, models.policy.device)
    rollout = outputs(models, episodes)
    return rollout.old_BT[episodes.response_BT], rollout.score_B


def prompts() -> list[list[int]]:
    """Prompts of several lengths, of which two are one; the longest outgrows the tiny windows."""
    generator = torch.Generator().manual_seed(4)
    made = [torch.randint(2, 250, (n,), generator=generator).tolist() for n in PROMPT_TOKENS]
    made[3] = made[2]
    return made


def ranked() -> list[RankedPrompt]:
    """A prompt with many short responses, and a longer path with fewer tokens in its row."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 250, (count,), generator=generator).tolist())

    shapes = ((5, (7,) * 6), (24, (6, 9)), (3, (1, 4)))
    return [
        RankedPrompt(
            str(q),
            str(q),
            ids(q),
            tuple(ids(t) for t in lengths),
            ("m",) * len(lengths),
            ("x",),
            (tuple(range(1, len(lengths) + 1)),),
        )
        for q, lengths in shapes
    ]


def greedy(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[list[int]]
) -> list[Sampled]:
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS, batch_size=8)
    generator = torch.Generator().manual_seed(0)
    return generate_responses(policy, tokenizer, prompt_ids, sampling, generator=generator)


def alone(policy: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """logits_LV of a text, from a pass that is given its tokens and nothing else."""
    with torch.no_grad():
        logits_LV: Tensor = policy(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits_LV


def logprobs_alone(policy: PreTrainedModel, prompt: list[int], response: Sampled) -> Tensor:
    logits_TV = alone(policy, prompt + response.ids)[len(prompt) - 1 : -1]
    return logits_TV.log_softmax(-1)[range(len(response.ids)), response.ids]


def assert_causal(backbone: PreTrainedModel) -> None:
    ids_BL = torch.arange(3, 23).repeat(2, 1)
    ids_BL[1, -1] = 99
    with torch.no_grad():
        state_BLD = backbone(input_ids=ids_BL, use_cache=False).last_hidden_state
    assert float((state_BLD[0, :-1] - state_BLD[1, :-1]).abs().max()) < NATS * scale(state_BLD)


def scale(x: Tensor) -> float:
    return max(1.0, float(x.abs().max()))


def columns(observed: Observed) -> list[str]:
    """The cells of the table that `observe` fills."""
    if observed.refused:
        return [f"refused: {re.sub(NUMBER, '', observed.refused)}", "", ""]
    return [observed.sampling, observed.rows, observed.prompts]


def trained(name: str, folder: Path) -> str:
    """Fine-tune and run PPO for a few steps: what is reported is what the logits say.

    Return `SFT, PPO`, those that were done, or the line that refuses; empty if none reads it.
    """
    source = save(name, folder / "base")
    try:
        policy, tokenizer = load_policy(source), load_tokenizer(source)
    except ValueError:
        return ""
    demonstrations = [Demonstration(f"say {i}", f"hello {'x' * i} {i}") for i in range(4)]
    examples = [encode(tokenizer, one) for one in demonstrations]
    expected = response_loss(policy, examples, 0, batch_size=4)
    lines = []
    try:
        loss = _fine_tuned(source, demonstrations, folder / "sft")
        assert abs(loss - expected) < NATS * max(1.0, expected)
        lines.append("SFT")
    except ValueError as error:
        if "cannot be fine-tuned" not in str(error):
            raise
    reward = RewardModel.from_base(source, seed=0)
    reward.record_training(tokenizer_hash(tokenizer), {"simulated"})
    reward.save(folder / "reward")
    assert abs(_after_ppo(source, folder)) < NATS
    return ", ".join([*lines, "PPO"])


def _fine_tuned(source: Path, demonstrations: Sequence[Demonstration], out: Path) -> float:
    """The loss that SFT reports of its first step."""
    steps: list[Step] = []
    config = {"epochs": 1, "batch_size": 4, "max_tokens": 64, "dropout": 0.0}
    train_sft(
        SFTConfig.model_validate(config),
        base=source,
        demonstrations=demonstrations,
        out=out,
        seed=0,
        report=steps.append,
    )
    name = "sft/loss_nats_per_token"
    return next(step.metrics[name] for step in steps if name in step.metrics)


def _after_ppo(source: Path, folder: Path) -> float:
    """The error of the first ratio in the last of two iterations."""
    steps: list[Step] = []
    config = {
        "episodes": 16,
        "episodes_per_rollout": 8,
        "minibatch": 8,
        "micro_batch_size": 8,
        "warmup_iterations": 1,
        "learning_rate": 1e-4,
        "sampling": {"max_new_tokens": 6, "batch_size": 8},
        "health": {"action": "warn"},
    }
    train_ppo(
        PPOConfig.model_validate(config),
        policy=source,
        reward_model=folder / "reward",
        prompts=[Prompt("hello " + "ab"[i % 2] * (i + 1)) for i in range(8)],
        out=folder / "run",
        seed=0,
        report=steps.append,
    )
    assert steps[-1].done == 2
    return steps[-1].metrics["ppo/first_ratio_error"]


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    print("| architecture | sampling | PPO's rows | prompt of K responses | trained |")
    print("|---|---|---|---|---|")
    for name in sys.argv[1:] or sorted(ARCHITECTURES):
        with tempfile.TemporaryDirectory() as folder:
            cells = columns(observe(name, Path(folder) / "read"))
            cells.append(trained(name, Path(folder) / "trained"))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
