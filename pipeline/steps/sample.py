"""K outputs to a prompt, from one or several policies and settings, as tasks for annotators.

Ouyang et al. 2022, section 3.5: annotators rank K = 4 to 9 outputs to a prompt. K is spread evenly
over the prompts. Each slot among the K has a policy and a setting, taken in turn, so that the
outputs of a prompt compare them. An output that is a near-duplicate of an earlier one of its prompt
is dropped and drawn again, under the policy's next setting; after TRIES draws the slot goes to the
next policy, and after the last policy it stays empty. A prompt left with one output is dropped.
The counts are reported as `sample/...`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from pipeline.runs.stage import Source
from pipeline.steps.step import ExperimentStage
from reward_models.atomic_files import write_jsonl
from reward_models.records import Prompt, RankingTask, Response
from stages.config import without_external_names
from stages.generation.config import SamplingConfig
from stages.progress import Report, Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRIES = 4  # draws for one slot from one policy
LIKENESS = 0.95  # share of matching words from which two outputs count as one
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Sample(ExperimentStage):
    """Draw K responses to each ranking prompt; later rounds also from the policy so far."""

    kind = "sample"
    about = "outputs to be ranked"

    @property
    def policies(self) -> dict[str, Source]:
        """The policies to sample from, by name, the one of the round before first."""
        start: dict[str, Source] = {"base": self.base_model, "sft": self.sft_model}
        policies: dict[str, Source] = {name: start[name] for name in self.config.sampling.policies}
        if self.round > 1:
            current = self.trained_policies(self.round - 1)[-1]
            policies = {current: self.folder / current / "model", **policies}
        return policies

    def inputs(self) -> Mapping[str, Source]:
        return {"prompts": self.folder / "data/ranking_prompts.jsonl", **self.policies}

    def settings(self) -> Mapping[str, Any]:
        return self.seeded(sampling=without_external_names(self.config.sampling))

    def check_data(self) -> None:
        new_tokens = max(setting.max_new_tokens for setting in self.config.sampling.settings)
        policies = [self.config.sft_adaptation]
        self.require_prompts_fit("ranking", new_tokens, policies, scored=False)

    def run(self, out: Path, report: Report) -> None:
        from reward_models.compat import attention_implementation
        from reward_models.context_limit import context_limit
        from stages.models import load_tokenizer
        from stages.precision import inference_precision
        from stages.prompt_lengths import require_fit

        self.seed_process()
        sampling, policies = self.config.sampling, self.policies
        prompts = self.data.prompts("ranking")
        new_tokens = max(setting.max_new_tokens for setting in sampling.settings)
        for name, source in policies.items():
            limits = [context_limit(source)]
            require_fit(load_tokenizer(source), prompts, new_tokens, limits, f"{name} samples")
        with (
            attention_implementation(sampling.attn_implementation),
            inference_precision(sampling.precision),
        ):
            tasks = sample_tasks(
                prompts,
                policies,
                responses=sampling.responses,
                settings=sampling.settings,
                seed=self.config.seed,
                report=report,
                prefix="" if self.round == 1 else f"round-{self.round}-",
            )
        write_jsonl(out / "tasks.jsonl", (task.to_json() for task in tasks))


@dataclass(frozen=True, slots=True)
class _Slot:
    """One of the K outputs of a prompt (by number), and the setting (by number) to draw it with."""

    prompt: int
    setting: int


@dataclass(frozen=True, slots=True)
class _Policy:
    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


class _Outputs:
    """The distinct outputs of each prompt so far, and the counts of the others."""

    def __init__(self, ids: Sequence[str], num_wanted: Sequence[int]) -> None:
        self.ids, self.num_wanted = ids, num_wanted
        self.responses: list[list[Response]] = [[] for _ in ids]
        self.near_duplicates = 0
        self.done = 0  # outputs counted as done so far: those drawn again are not counted down

    def add(self, prompt: int, text: str, model: str, sampling: Mapping[str, object]) -> bool:
        """Add the output and return true, unless its prompt has one like it."""
        responses = self.responses[prompt]
        if is_near_duplicate(text, (response.text for response in responses), LIKENESS):
            self.near_duplicates += 1
            return False
        name = f"{self.ids[prompt]}-{len(responses) + 1}"
        responses.append(Response(name, text, model, sampling))
        return True

    def step(self, doing: str = "", drawing: int = 0) -> Step:
        """Return the progress, with `drawing` outputs not yet added; it never falls."""
        filled = [len(responses) for responses in self.responses]
        below = sum(1 < num < k for num, k in zip(filled, self.num_wanted, strict=True))
        counts = {
            "sample/responses": sum(filled),
            "sample/near_duplicates": self.near_duplicates,
            "sample/tasks_below_k": below,
            "sample/prompts_dropped": sum(num < 2 for num in filled),
        }
        total = sum(self.num_wanted)
        self.done = max(self.done, min(sum(filled) + drawing, total))
        return Step(self.done, total, {} if doing or drawing else counts, doing)


def sample_tasks(
    prompts: Sequence[Prompt],
    policies: Mapping[str, Source],
    *,
    responses: tuple[int, int],
    settings: Sequence[SamplingConfig],
    seed: int,
    report: Report,
    prefix: str = "",
) -> list[RankingTask]:
    """Return a task for every prompt with two distinct outputs or more, in the prompts' order.

    `policies` are named models; `responses` is the smallest and the largest K. The same arguments
    give the same tasks, ids included. `prefix` begins every id and changes what is drawn. Raise
    ValueError where no prompt is left.
    """
    from stages.data.template import conversation_ids
    from stages.models import device, load_policy, load_tokenizer, to_device
    from stages.precision import inference_weights

    if not prompts or not policies or not settings:
        raise ValueError("expected at least one prompt, one policy and one setting to sample from")
    num_wanted = _spread(len(prompts), *responses, f"{prefix}{seed}")
    slots = _slots(num_wanted, len(policies), len(settings))
    ids = [prefix + name for name in _task_ids(prompts)]
    outputs = _Outputs(ids, num_wanted)
    left: list[_Slot] = []
    for number, (name, source) in enumerate(policies.items()):
        report(outputs.step(f"loading {name}"))
        model, tokenizer = load_policy(source, weights=inference_weights()), load_tokenizer(source)
        to_device(model, device())
        policy = _Policy(name, model, tokenizer)
        prompt_ids = [conversation_ids(tokenizer, prompt) for prompt in prompts]
        left += slots[number]
        for attempt in range(TRIES):
            stream = f"{prefix}{seed}/{number}/{attempt}"
            doing = f"drawing {len(left)} near-duplicates again" if attempt else ""
            left = _draw(outputs, left, policy, prompt_ids, settings, stream, report, doing)
    report(Step(sum(num_wanted), sum(num_wanted), outputs.step().metrics))
    tasks = [
        _task(name, prompt, distinct)
        for name, prompt, distinct in zip(ids, prompts, outputs.responses, strict=True)
        if len(distinct) > 1
    ]
    if not tasks:
        raise ValueError(
            f"none of {len(prompts)} prompts got two distinct outputs; sample at a higher "
            "temperature or from another policy"
        )
    return tasks


def _spread(num_prompts: int, low: int, high: int, seed: str) -> list[int]:
    """Return K of each prompt: every value from low to high equally often, in random order."""
    num_wanted = [low + number % (high - low + 1) for number in range(num_prompts)]
    Random(f"sample/{seed}").shuffle(num_wanted)
    return num_wanted


def _slots(num_wanted: Sequence[int], num_policies: int, num_settings: int) -> list[list[_Slot]]:
    """Return the slots of each policy: policies and settings in turn, on from prompt to prompt."""
    slots: list[list[_Slot]] = [[] for _ in range(num_policies)]
    turn = 0
    for prompt, k in enumerate(num_wanted):
        for _ in range(k):
            setting = turn // num_policies % num_settings
            slots[turn % num_policies].append(_Slot(prompt, setting))
            turn += 1
    return slots


def _draw(
    outputs: _Outputs,
    slots: Sequence[_Slot],
    policy: _Policy,
    prompt_ids: Sequence[list[int]],
    settings: Sequence[SamplingConfig],
    stream: str,
    report: Report,
    doing: str,
) -> list[_Slot]:
    """Draw once for every slot, add what is new; return the slots left, each with its next setting.

    `stream` names the random numbers: seed/policy/try.
    """
    import torch

    from stages.data.template import response_text
    from stages.generation.generate import generate_responses

    left = []
    for number, setting in enumerate(settings):
        here = [slot for slot in slots if slot.setting == number]
        if not here:
            continue
        seed = int.from_bytes(hashlib.sha256(f"{stream}/{number}".encode()).digest()[:7])
        drawn = generate_responses(
            policy.model,
            policy.tokenizer,
            [prompt_ids[slot.prompt] for slot in here],
            setting,
            generator=torch.Generator().manual_seed(seed),
            report=lambda step: report(outputs.step(doing, step.done)),
        )
        for slot, sampled in zip(here, drawn, strict=True):
            text = response_text(policy.tokenizer, sampled.ids)
            sampling = {
                "temperature": setting.temperature,
                "top_p": setting.top_p,
                "max_new_tokens": setting.max_new_tokens,
                "stream": f"{stream}/{number}",
                "finish_reason": "stop" if sampled.ended else "length",  # as in samples.jsonl
            }
            if not outputs.add(slot.prompt, text, policy.name, sampling):
                left.append(_Slot(slot.prompt, (number + 1) % len(settings)))
        report(outputs.step())
    return left


def _task_ids(prompts: Sequence[Prompt]) -> list[str]:
    """Return each prompt's own id, else a hash of its texts; a repeated one gets a number."""
    seen: dict[str, int] = {}
    ids = []
    for prompt in prompts:
        texts = [*map(str, prompt.history), prompt.context or "", prompt.prompt]
        name = prompt.id or hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return ids


def _task(name: str, prompt: Prompt, responses: Sequence[Response]) -> RankingTask:
    return RankingTask(
        id=name,
        prompt=prompt.prompt,
        responses=tuple(responses),
        context=prompt.context,
        category=prompt.category,
        history=prompt.history,
        extra={} if prompt.user is None else {"user": prompt.user},
    )


def words(text: str) -> tuple[str, ...]:
    """Return a text's words as they count for likeness; without any, the text is one itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORDS.findall(folded)) or (folded.strip(),)


def is_near_duplicate(text: str, others: Iterable[str], threshold: float) -> bool:
    """Return true for a text that equals another one, or almost (`threshold` from 0 to 1)."""
    own_words = words(text)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(own_words)
    for other in map(words, others):
        if other == own_words:
            return True
        matcher.set_seq1(other)
        # The two upper bounds are cheap and settle most pairs.
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(bound() >= threshold for bound in bounds):
            return True
    return False
