"""Policies that differ from a model by how it is asked: behind a prefix, or the best of n answers.

Such a policy is a folder with `baseline.json`, which names the model and says how it is asked. It
has no weights of its own, so nothing that reads likelihoods is asked of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.model import RewardModel
from reward_models.model_files import base_name, resolve_base_name
from reward_models.records import Prompt
from stages.data.template import (
    continued,
    conversation_ids,
    response_ids,
    response_text,
    text_ids,
    with_trained_end,
)
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.generation.score import score_sequences
from stages.models import device, tokenizer_hash
from stages.progress import Report, silent

FILE = "baseline.json"
BETWEEN = "\n\n"  # between the shots of a tokenizer without a chat template


@dataclass(frozen=True, slots=True)
class Speaker:
    """How a model is asked. `prefix` are token ids before every prompt."""

    weights: str
    prefix: tuple[int, ...] = ()
    best_of: int = 1
    temperature: float = 1.0  # of the `best_of` answers
    reward_model: str | None = None

    def write(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Make `folder` this policy; `about` is for people to read."""
        models = {"weights": base_name(self.weights, folder)}
        if self.reward_model is not None:
            models["reward_model"] = base_name(self.reward_model, folder)
        found = json.dumps({**asdict(self), **models, "about": dict(about)}, indent=2)
        (folder / FILE).write_text(found + "\n", encoding="utf-8")


def speaker_of(source: str | Path) -> Speaker:
    """How the policy at `source` is asked: a plain model is asked as it is."""
    path = Path(source) / FILE
    if not path.is_file():
        return Speaker(str(source))
    row = json.loads(path.read_text(encoding="utf-8"))
    del row["about"]
    for key in ("weights", "reward_model"):
        row[key] = None if row[key] is None else resolve_base_name(row[key], Path(source))
    return Speaker(**{**row, "prefix": tuple(row["prefix"])})


def own_weights(policies: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Those of the policies that are models."""
    return {name: src for name, src in policies.items() if not (Path(src) / FILE).is_file()}


def notes_of(policies: Mapping[str, str | Path]) -> list[str]:
    """What a reader must know about those that are not."""
    notes = []
    for name, speaker in ((name, speaker_of(source)) for name, source in policies.items()):
        if speaker.best_of > 1:
            notes.append(
                f"{name} picks by the reward model: its score is no evidence. Its KL from the "
                f"policy it samples is at most log n - (n - 1)/n = "
                f"{best_of_n_kl(speaker.best_of):.2f} nats"
            )
        if speaker.prefix:
            notes.append(f"{name} reads {len(speaker.prefix)} tokens of demonstrations first")
    return notes


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1)/n: nats from the sampled policy (Stiennon et al. 2020, appendix G.3).

    Exact where no two answers are alike, else an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def shots_ids(
    tokenizer: PreTrainedTokenizerBase, shots: Sequence[tuple[Prompt, str]]
) -> tuple[int, ...]:
    """Prompts with their answers, one after another, as token ids."""
    templated = tokenizer.chat_template is not None
    between = [] if templated else text_ids(tokenizer, BETWEEN)
    ids: list[int] = []
    for prompt, response in shots:
        shot = conversation_ids(tokenizer, prompt)
        ids += continued(tokenizer, shot) if ids else shot
        ids += response_ids(tokenizer, response, ended=templated) + between
    return tuple(ids)


def ask(
    speaker: Speaker,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    generator: torch.Generator,
    report: Report = silent,
) -> list[Sampled]:
    """One answer to each prompt. `policy` are the speaker's weights, loaded."""
    asked = [conversation_ids(tokenizer, prompt) for prompt in prompts]
    if speaker.best_of > 1:
        return _best(speaker, policy, tokenizer, asked, sampling, generator, report)
    if speaker.prefix:
        asked = [[*speaker.prefix, *continued(tokenizer, ids)] for ids in asked]
    drawn = generate_responses(
        policy, tokenizer, asked, sampling, generator=generator, report=report
    )
    return [_cut(tokenizer, one) for one in drawn] if speaker.prefix else drawn


def _best(
    speaker: Speaker,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[list[int]],
    sampling: SamplingConfig,
    generator: torch.Generator,
    report: Report,
) -> list[Sampled]:
    assert speaker.reward_model is not None
    reward = RewardModel.load(speaker.reward_model).to(device())
    reward.card.require_tokenizer(tokenizer_hash(tokenizer), speaker.weights)
    n = speaker.best_of
    warm = sampling.model_copy(update={"temperature": speaker.temperature})
    repeated = [ids for ids in asked for _ in range(n)]
    drawn = generate_responses(
        policy, tokenizer, repeated, warm, generator=generator, report=report
    )
    whole = [
        ids + with_trained_end(tokenizer, one.ids, ended=one.ended)
        for ids, one in zip(repeated, drawn, strict=True)
    ]
    scores = score_sequences(reward, whole, batch_size=sampling.batch_size)
    places = [max(range(i, i + n), key=scores.__getitem__) for i in range(0, len(drawn), n)]
    return [drawn[place] for place in places]


def _cut(tokenizer: PreTrainedTokenizerBase, answer: Sampled) -> Sampled:
    """The answer without the further shots that a model without chat turns goes on to write."""
    if tokenizer.chat_template is not None:
        return answer
    text = response_text(tokenizer, answer.ids)
    if BETWEEN not in text:
        return answer
    return Sampled(response_ids(tokenizer, text.partition(BETWEEN)[0]), ended=True)
