"""Policies that differ from a model by how they are prompted: behind a prefix, or the best of n.

Such a policy is a folder with `baseline.json`, which names the model and its prompting. It has no
weights of its own, so no likelihoods are computed for it.

Ouyang et al. 2022, section 3.5, prompt GPT-3 "into an instruction-following mode" by a few-shot
prefix. `choose_prefix` draws candidates from the demonstrations; the reward model's mean score of
the base's answers to validation prompts decides.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config.baselines import PromptedBase
from reward_models.context_limit import context_limit
from reward_models.model_files import base_name, resolve_base_name
from reward_models.records import Demonstration, Prompt
from stages.data.template import (
    continued,
    conversation_ids,
    response_ids,
    response_text,
    text_ids,
)
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.generation.score import load_scorer, require_readable, score_sampled
from stages.models import device, load_policy, load_tokenizer, to_device
from stages.precision import inference_weights
from stages.progress import Report, Step, silent

FILE = "baseline.json"
BETWEEN = "\n\n"  # between the shots of a tokenizer without a chat template


@dataclass(frozen=True, slots=True)
class PromptedPolicy:
    """A model and its prompting. `prefix` are token ids before every prompt."""

    weights: str
    prefix: tuple[int, ...] = ()
    best_of: int = 1
    temperature: float = 1.0  # of the `best_of` answers
    reward_model: str | None = None

    def write(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write this policy to `folder`; `about` is for people to read."""
        models = {"weights": base_name(self.weights, folder)}
        if self.reward_model is not None:
            models["reward_model"] = base_name(self.reward_model, folder)
        text = json.dumps({**asdict(self), **models, "about": dict(about)}, indent=2)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def prompted_policy(source: str | Path) -> PromptedPolicy:
    """Return the prompting of the policy at `source`: none where it is a plain model."""
    path = Path(source) / FILE
    if not path.is_file():
        return PromptedPolicy(str(source))
    row = json.loads(path.read_text(encoding="utf-8"))
    del row["about"]
    for key in ("weights", "reward_model"):
        row[key] = None if row[key] is None else resolve_base_name(row[key], Path(source))
    return PromptedPolicy(**{**row, "prefix": tuple(row["prefix"])})


def own_weights(policies: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Return the policies that have weights of their own."""
    return {name: src for name, src in policies.items() if not (Path(src) / FILE).is_file()}


def prompting_notes(policies: Mapping[str, str | Path]) -> list[str]:
    """Return notes for the reader about the policies that have none."""
    notes = []
    for name, policy in ((name, prompted_policy(source)) for name, source in policies.items()):
        if policy.best_of > 1:
            notes.append(
                f"{name} picks by the reward model: its score is no evidence. Its KL from the "
                f"policy it samples is at most log n - (n - 1)/n = "
                f"{best_of_n_kl(policy.best_of):.2f} nats"
            )
        if policy.prefix:
            notes.append(
                f"{name} has {len(policy.prefix)} tokens of demonstrations before the prompt"
            )
    return notes


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1)/n, nats from the sampled policy (Stiennon et al. 2020, appendix G.3).

    Exact where no two answers are alike, else an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def generate_answers(
    policy: PromptedPolicy,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    generator: torch.Generator,
    report: Report = silent,
) -> list[Sampled]:
    """Return one answer to each prompt; `model` has the policy's weights."""
    if policy.best_of > 1:
        return _best(policy, model, tokenizer, prompts, sampling, generator, report)
    prompt_ids = [conversation_ids(tokenizer, prompt) for prompt in prompts]
    if policy.prefix:
        prompt_ids = [[*policy.prefix, *continued(tokenizer, ids)] for ids in prompt_ids]
    answers = generate_responses(
        model, tokenizer, prompt_ids, sampling, generator=generator, report=report
    )
    return [_first_answer(tokenizer, answer) for answer in answers] if policy.prefix else answers


def _best(
    policy: PromptedPolicy,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    generator: torch.Generator,
    report: Report,
) -> list[Sampled]:
    assert policy.reward_model is not None
    reward = load_scorer(policy.reward_model, weights=inference_weights()).to(device())
    require_readable(reward, tokenizer, policy.weights)
    n = policy.best_of
    warm = sampling.model_copy(update={"temperature": policy.temperature})
    repeated = [ids for prompt in prompts for ids in [conversation_ids(tokenizer, prompt)] * n]
    answers = generate_responses(
        model, tokenizer, repeated, warm, generator=generator, report=report
    )
    texts = [prompt for prompt in prompts for _ in range(n)]
    scores = score_sampled(
        reward, tokenizer, texts, repeated, answers, batch_size=sampling.batch_size
    )
    best = [max(range(i, i + n), key=scores.__getitem__) for i in range(0, len(answers), n)]
    return [answers[index] for index in best]


def _first_answer(tokenizer: PreTrainedTokenizerBase, answer: Sampled) -> Sampled:
    """Return the answer without the further shots that a model without chat turns goes on with."""
    if tokenizer.chat_template is not None:
        return answer
    text = response_text(tokenizer, answer.ids)
    if BETWEEN not in text:
        return answer
    return Sampled(response_ids(tokenizer, text.partition(BETWEEN)[0]), ended=True)


def choose_prefix(
    config: PromptedBase,
    *,
    base: str | Path,
    reward_model: str | Path,
    demonstrations: Sequence[Demonstration],
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    test_prompts: Sequence[Prompt] = (),
    out: Path,
    seed: int,
    report: Report,
) -> None:
    """Write the best prompted base to `out`.

    Raise ValueError where no candidate leaves positions for every prompt, `test_prompts` too.
    """
    tokenizer, prompts = load_tokenizer(base), list(prompts)[: config.prompts]
    prompt_ids = [conversation_ids(tokenizer, prompt) for prompt in prompts]
    test_lengths = [len(conversation_ids(tokenizer, prompt)) for prompt in test_prompts]
    longest = max([*map(len, prompt_ids), *test_lengths]) + sampling.max_new_tokens
    most = context_limit(base).without(longest).at_most(config.max_prefix_tokens)
    candidates = _candidates(config, tokenizer, demonstrations, seed, most)
    model = load_policy(base, weights=inference_weights())
    to_device(model, device())
    reward = load_scorer(reward_model, weights=inference_weights()).to(device())
    require_readable(reward, tokenizer, base)
    scored: list[tuple[float, PromptedPolicy, list[str]]] = []
    for number, (prefix, shots) in enumerate(candidates):
        policy = PromptedPolicy(str(base), prefix=prefix)
        generator = torch.Generator().manual_seed(seed)  # the same draws for every candidate
        answers = generate_answers(policy, model, tokenizer, prompts, sampling, generator)
        batch_size = sampling.batch_size
        score = fmean(
            score_sampled(reward, tokenizer, prompts, prompt_ids, answers, batch_size=batch_size)
        )
        scored.append((score, policy, shots))
        report(Step(number + 1, len(candidates), {"prompted/mean_score": score}))
    score, policy, _ = max(scored, key=lambda row: row[0])
    rows = [
        {"mean_score": mean, "tokens": len(each.prefix), "shots": shots}
        for mean, each, shots in scored
    ]
    policy.write(out, {"kind": "prompted", "mean_score": score, "candidates": rows})


def _candidates(
    config: PromptedBase,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    seed: int,
    most: int,
) -> list[tuple[tuple[int, ...], list[str]]]:
    """Return the token ids and the prompts of each candidate that is short enough."""
    rng = Random(f"prefix/{seed}")
    shots = min(config.shots, len(demonstrations))
    drawn = [rng.sample(list(demonstrations), shots) for _ in range(config.candidates)]
    candidates = [
        (shots_ids(tokenizer, chosen), [shot.prompt for shot in chosen]) for chosen in drawn
    ]
    fitting = [candidate for candidate in candidates if len(candidate[0]) <= most]
    if not fitting:
        limit = (
            f"max_prefix_tokens ({most})"
            if most == config.max_prefix_tokens
            else f"the {max(most, 0)} positions that the base has beside the longest prompt"
        )
        raise ValueError(
            f"no {shots} demonstrations fit in {limit}; the shortest of {len(candidates)} sets has "
            f"{min(len(ids) for ids, _ in candidates)} tokens"
        )
    return fitting


def shots_ids(
    tokenizer: PreTrainedTokenizerBase, shots: Sequence[Demonstration]
) -> tuple[int, ...]:
    """Return demonstrations, one after another, as token ids."""
    templated = tokenizer.chat_template is not None
    between = [] if templated else text_ids(tokenizer, BETWEEN)
    ids: list[int] = []
    for shot in shots:
        prompt = Prompt(shot.prompt, context=shot.context, history=shot.history)
        shot_ids = conversation_ids(tokenizer, prompt)
        ids += continued(tokenizer, shot_ids) if ids else shot_ids
        ids += response_ids(tokenizer, shot.response, ended=templated) + between
    return tuple(ids)
