"""The prompted base: which few demonstrations before a prompt make the base answer best.

Ouyang et al. 2022, section 3.5, prompt GPT-3 "into an instruction-following mode" by a few-shot
prefix. Candidates are drawn from the demonstrations; the reward model's mean score of the base's
answers to validation prompts decides.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.config.baselines import PromptedBase
from pipeline.models.speaker import Speaker, ask, shots_ids
from reward_models.context_limit import context_limit
from reward_models.model import RewardModel
from reward_models.records import Demonstration, Prompt
from stages.data.template import conversation_ids, with_trained_end
from stages.generation.config import SamplingConfig
from stages.generation.score import score_sequences
from stages.models import device, load_policy, load_tokenizer, tokenizer_hash
from stages.progress import Report, Step


def choose_prefix(
    config: PromptedBase,
    *,
    base: str | Path,
    reward_model: Path,
    demonstrations: Sequence[Demonstration],
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    asked_later: Sequence[Prompt] = (),
    out: Path,
    seed: int,
    report: Report,
) -> None:
    """Write the policy to `out`; ValueError where no set of demonstrations is short enough.

    The base has to have positions for a set before every prompt, those `asked_later` too.
    """
    tokenizer, asked = load_tokenizer(base), list(prompts)[: config.prompts]
    plain = [conversation_ids(tokenizer, one) for one in asked]
    later = [len(conversation_ids(tokenizer, one)) for one in asked_later]
    longest = max([*map(len, plain), *later]) + sampling.max_new_tokens
    most = context_limit(base).without(longest).at_most(config.max_prefix_tokens)
    sets = _candidates(config, tokenizer, demonstrations, seed, most)
    policy = load_policy(base)
    policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
    reward = RewardModel.load(reward_model).to(device())
    reward.card.require_tokenizer(tokenizer_hash(tokenizer), str(base))
    tried: list[tuple[float, Speaker, list[str]]] = []
    for number, (ids, shown) in enumerate(sets):
        speaker = Speaker(str(base), prefix=ids)
        generator = torch.Generator().manual_seed(seed)  # the same draws for every candidate
        answers = ask(speaker, policy, tokenizer, asked, sampling, generator)
        whole = [
            before + with_trained_end(tokenizer, one.ids, ended=one.ended)
            for before, one in zip(plain, answers, strict=True)
        ]
        score = fmean(score_sequences(reward, whole, batch_size=sampling.batch_size))
        tried.append((score, speaker, shown))
        report(Step(number + 1, len(sets), {"prompted/mean_score": score}))
    score, speaker, _ = max(tried, key=lambda one: one[0])
    told = [
        {"mean_score": mean, "tokens": len(one.prefix), "shots": shown}
        for mean, one, shown in tried
    ]
    speaker.write(out, {"kind": "prompted", "mean_score": score, "candidates": told})


def _candidates(
    config: PromptedBase,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    seed: int,
    most: int,
) -> list[tuple[tuple[int, ...], list[str]]]:
    """The token ids and the prompts of each set that is short enough."""
    rng = Random(f"prefix/{seed}")
    shots = min(config.shots, len(demonstrations))
    drawn = [rng.sample(list(demonstrations), shots) for _ in range(config.candidates)]
    found = [
        (
            shots_ids(tokenizer, [(_prompt(one), one.response) for one in chosen]),
            [one.prompt for one in chosen],
        )
        for chosen in drawn
    ]
    kept = [one for one in found if len(one[0]) <= most]
    if not kept:
        raise ValueError(
            f"no {shots} demonstrations fit in {_limit(config, most)}; "
            f"the shortest of {len(found)} sets has {min(len(ids) for ids, _ in found)} tokens"
        )
    return kept


def _limit(config: PromptedBase, most: int) -> str:
    if most == config.max_prefix_tokens:
        return f"max_prefix_tokens ({most})"
    return f"the {max(most, 0)} positions that the base has beside the longest prompt"


def _prompt(shot: Demonstration) -> Prompt:
    return Prompt(shot.prompt, context=shot.context, history=shot.history)
