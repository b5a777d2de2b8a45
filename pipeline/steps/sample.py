"""K outputs to a prompt, from one or several policies and settings, as tasks for annotators.

Ouyang et al. 2022, section 3.5: annotators rank K = 4 to 9 outputs to a prompt. K is spread evenly
over the prompts. Each place among the K has a policy and a setting, taken in turn, so that the
outputs of a prompt compare them. An output that is a near-duplicate of an earlier one of its prompt
is dropped and drawn again, under the policy's next setting; after TRIES draws the place goes to the
next policy, and after the last policy it stays empty. A prompt left with one output is dropped.
What became of everything is reported as `sample/...`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.context_limit import context_limit
from reward_models.records import Prompt, RankingTask, Response
from stages.data.template import conversation_ids, response_text
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Report, Step
from stages.prompt_lengths import require_fit

_WORDS = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The words of a text as they count for likeness; a text without any is one word itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORDS.findall(folded)) or (folded.strip(),)


def is_near_duplicate(text: str, others: Iterable[str], threshold: float) -> bool:
    """Whether a text says the same as one of the others, or almost (`threshold` from 0 to 1)."""
    said = words(text)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(said)
    for other in map(words, others):
        if other == said:
            return True
        matcher.set_seq1(other)
        # The two upper bounds are cheap and settle most pairs.
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(bound() >= threshold for bound in bounds):
            return True
    return False


TRIES = 4  # draws for one place from one policy
LIKENESS = 0.95  # share of matching words from which two outputs count as one


@dataclass(frozen=True, slots=True)
class _Place:
    """One of the K places of a prompt (by number), and the setting (by number) to fill it with."""

    prompt: int
    setting: int


@dataclass(frozen=True, slots=True)
class _Policy:
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class _Sheets:
    """The outputs kept so far, a sheet a prompt, and what became of the others."""

    def __init__(self, ids: Sequence[str], wanted: Sequence[int], likeness: float) -> None:
        self.ids, self.wanted, self.likeness = ids, wanted, likeness
        self.kept: list[list[Response]] = [[] for _ in ids]
        self.near_duplicates = 0
        self.most = 0  # outputs counted as done so far: those drawn again are not counted down

    def offer(self, prompt: int, text: str, model: str, sampling: Mapping[str, object]) -> bool:
        """Keep the output unless its prompt has one like it; whether it was kept."""
        kept = self.kept[prompt]
        if is_near_duplicate(text, (response.text for response in kept), self.likeness):
            self.near_duplicates += 1
            return False
        kept.append(Response(f"{self.ids[prompt]}-{len(kept) + 1}", text, model, sampling))
        return True

    def step(self, doing: str = "", drawing: int = 0) -> Step:
        """Progress, with `drawing` outputs drawn that were not offered yet; it never falls."""
        filled = [len(kept) for kept in self.kept]
        below = sum(1 < num < k for num, k in zip(filled, self.wanted, strict=True))
        counts = {
            "sample/responses": sum(filled),
            "sample/near_duplicates": self.near_duplicates,
            "sample/tasks_below_k": below,
            "sample/prompts_dropped": sum(num < 2 for num in filled),
        }
        total = sum(self.wanted)
        self.most = max(self.most, min(sum(filled) + drawing, total))
        return Step(self.most, total, {} if doing or drawing else counts, doing)


def sample_tasks(
    prompts: Sequence[Prompt],
    policies: Mapping[str, str | Path],
    *,
    responses: tuple[int, int],
    settings: Sequence[SamplingConfig],
    seed: int,
    report: Report,
    likeness: float = LIKENESS,
    prefix: str = "",
) -> list[RankingTask]:
    """A task for every prompt with at least two distinct outputs, in the order of the prompts.

    `policies` are named models; `responses` is the smallest and the largest K. The same arguments
    give the same tasks, ids included. `prefix` begins every id and changes what is drawn. Raises
    ValueError where no prompt is left.
    """
    low, high = responses
    if not 2 <= low <= high <= 9:
        raise ValueError(f"responses is {responses}; expected two numbers, 2 <= low <= high <= 9")
    if not prompts or not policies or not settings:
        raise ValueError("expected at least one prompt, one policy and one setting to sample from")
    wanted = _spread(len(prompts), low, high, f"{prefix}{seed}")
    places = _places(wanted, len(policies), len(settings))
    ids = [prefix + name for name in _task_ids(prompts)]
    sheets = _Sheets(ids, wanted, likeness)
    left: list[_Place] = []
    for number, (name, source) in enumerate(policies.items()):
        policy = _load(name, source, report, sheets)
        asked = [conversation_ids(policy.tokenizer, one) for one in prompts]
        left += places[number]
        for attempt in range(TRIES):
            stream = f"{prefix}{seed}/{number}/{attempt}"
            left = _fill(sheets, left, policy, asked, settings, stream, report, again=attempt > 0)
    report(Step(sum(wanted), sum(wanted), sheets.step().metrics))
    tasks = [
        _task(name, prompt, kept)
        for name, prompt, kept in zip(sheets.ids, prompts, sheets.kept, strict=True)
        if len(kept) > 1
    ]
    if not tasks:
        raise ValueError(
            f"none of {len(prompts)} prompts got two distinct outputs; sample at a higher "
            "temperature or from another policy"
        )
    return tasks


def require_prompts_fit(
    prompts: Sequence[Prompt],
    policies: Mapping[str, str | Path],
    settings: Sequence[SamplingConfig],
) -> None:
    """Raise ValueError where a prompt and its longest output do not fit one of the policies."""
    most = max(setting.max_new_tokens for setting in settings)
    for name, source in policies.items():
        require_fit(
            load_tokenizer(source), prompts, most, [context_limit(source)], f"{name} samples"
        )


def _task_ids(prompts: Sequence[Prompt]) -> list[str]:
    """A prompt's own id, else a hash of what it says; a repeated one gets a number."""
    seen: dict[str, int] = {}
    ids = []
    for prompt in prompts:
        turns = map(str, prompt.history)
        said = "\0".join([*turns, prompt.context or "", prompt.prompt])
        name = prompt.id or hashlib.sha256(said.encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return ids


def _spread(num_prompts: int, low: int, high: int, seed: str) -> list[int]:
    """K of each prompt: every value from low to high equally often, in random order."""
    wanted = [low + number % (high - low + 1) for number in range(num_prompts)]
    Random(f"sample/{seed}").shuffle(wanted)
    return wanted


def _places(wanted: Sequence[int], num_policies: int, num_settings: int) -> list[list[_Place]]:
    """For each policy its places: policies and settings in turn, on from prompt to prompt."""
    places: list[list[_Place]] = [[] for _ in range(num_policies)]
    turn = 0
    for prompt, k in enumerate(wanted):
        for _ in range(k):
            setting = turn // num_policies % num_settings
            places[turn % num_policies].append(_Place(prompt, setting))
            turn += 1
    return places


def _load(name: str, source: str | Path, report: Report, sheets: _Sheets) -> _Policy:
    report(sheets.step(f"loading {name}"))
    model = load_policy(source)
    model.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
    return _Policy(name, model, load_tokenizer(source))


def _fill(
    sheets: _Sheets,
    places: Sequence[_Place],
    policy: _Policy,
    asked: Sequence[list[int]],
    settings: Sequence[SamplingConfig],
    stream: str,
    report: Report,
    *,
    again: bool,
) -> list[_Place]:
    """Draw once for every place, keep what is new; the places left, each with its next setting."""
    left = []
    doing = f"drawing {len(places)} near-duplicates again" if again else ""
    for number, setting in enumerate(settings):
        here = [place for place in places if place.setting == number]
        if not here:
            continue
        drawn = generate_responses(
            policy.model,
            policy.tokenizer,
            [asked[place.prompt] for place in here],
            setting,
            generator=torch.Generator().manual_seed(_seed(f"{stream}/{number}")),
            report=lambda step: report(sheets.step(doing, step.done)),
        )
        for place, sampled in zip(here, drawn, strict=True):
            text = response_text(policy.tokenizer, sampled.ids)
            used = _settings(setting, sampled, f"{stream}/{number}")
            if not sheets.offer(place.prompt, text, policy.name, used):
                left.append(_Place(place.prompt, (number + 1) % len(settings)))
        report(sheets.step())
    return left


def _seed(stream: str) -> int:
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7])


def _settings(setting: SamplingConfig, sampled: Sampled, stream: str) -> dict[str, object]:
    """How an output came about; `stream` names the random numbers (seed/policy/try/setting)."""
    return {
        "temperature": setting.temperature,
        "top_p": setting.top_p,
        "max_new_tokens": setting.max_new_tokens,
        "stream": stream,
        "finish_reason": "stop" if sampled.ended else "length",  # as in samples.jsonl
    }


def _task(name: str, prompt: Prompt, kept: Sequence[Response]) -> RankingTask:
    return RankingTask(
        id=name,
        prompt=prompt.prompt,
        responses=tuple(kept),
        context=prompt.context,
        category=prompt.category,
        history=prompt.history,
        extra={} if prompt.user is None else {"user": prompt.user},
    )
