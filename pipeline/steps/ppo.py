"""Stage three: PPO against the reward model, without or with the pretraining mix (PPO-ptx).

While PPO trains, a gold reward that it does not see may score the policy: the quickstart's judge,
or a reward model of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.runs.manifest import named_inputs, with_base
from pipeline.runs.run import is_gone
from pipeline.runs.stage import Source
from pipeline.steps.label import labels_until, read_labels
from pipeline.steps.step import ExperimentStage
from reward_models.conversations import Turn
from reward_models.model_card import RewardCard
from reward_models.records import Prompt
from stages.config import without_external_names
from stages.generation.config import SamplingConfig
from stages.ppo.config import Overoptimization, PPOConfig
from stages.progress import Report

if TYPE_CHECKING:
    from stages.ppo.overoptimization import GoldReward, Judge
    from stages.reward.batches import RankedPrompt


@dataclass(frozen=True)
class Ppo(ExperimentStage):
    """Train a policy against the reward model of its round."""

    kind: Literal["ppo", "ppo-ptx"] = field(kw_only=True)
    work = "training"

    @property
    def about(self) -> str:
        return "PPO" if self.kind == "ppo" else "PPO with pretraining mix"

    @property
    def ppo(self) -> PPOConfig:
        """The settings of this kind of PPO."""
        chosen = self.config.ppo if self.kind == "ppo" else self.config.ppo_ptx
        assert chosen is not None
        return chosen

    @property
    def start(self) -> Source:
        """The policy that PPO starts from and is held to."""
        separate = self.config.ppo_init is not None
        return self.folder / "ppo-init/model" if separate else self.fine_tuned

    @property
    def reward_model(self) -> Source:
        """The reward model of this round, or the one that the config names."""
        return self.reward_model_of(self.round)

    def inputs(self) -> Mapping[str, Source]:
        data = self.folder / "data"
        inputs: dict[str, Source] = {
            **with_base("policy", self.start),
            **with_base("reward", self.reward_model),
            "prompts": data / "ppo_prompts.jsonl",
        }
        if self.ppo.pretraining is not None:
            inputs["texts"] = data / "pretraining_texts.jsonl"
        inputs |= named_inputs(self.ppo, self.kind)
        if self._validates:
            inputs["validation"] = data / "validation_prompts.jsonl"
        return inputs

    def settings(self) -> Mapping[str, Any]:
        return self.seeded(ppo=without_external_names(self.ppo))

    def check_settings(self) -> None:
        if self.config.reward is None and not is_gone(self.reward_model):
            from stages.generation.score import check_scorer

            check_scorer(self.reward_model)

    def labels(self, out: Path) -> set[str]:  # noqa: ARG002 - they are the reward model's
        path = Path(self.reward_model)
        named = self.config.reward is None and RewardCard.is_in(path)
        return set(RewardCard.read(path)[0].label_kinds) if named else set()

    def check_data(self) -> None:
        ppo, init = self.ppo, self.config.ppo_init
        start = self.config.sft_adaptation if init is None else init.adaptation
        if ppo.pretraining is not None:
            key = f"{self.kind.replace('-', '_')}.pretraining.tokens_per_example"
            self.require_positions(ppo.pretraining.tokens_per_example, key)
        policies = [start, ppo.adaptation]
        for use in ("ppo", "validation") if self._validates else ("ppo",):
            new_tokens = ppo.sampling.max_new_tokens
            self.require_prompts_fit(use, new_tokens, policies)

    def run(self, out: Path, report: Report) -> None:
        from stages.ppo.train import train_ppo
        from stages.precision import inference_precision

        self.seed_process()
        seed, policy = self.config.seed, self.start
        data = self.data
        validation = data.prompts("validation")
        mixes, rule = self.ppo.pretraining is not None, self.ppo.overoptimization
        with inference_precision(self.ppo.precision):
            train_ppo(
                self.ppo,
                policy=policy,
                reward_model=self.reward_model,
                prompts=data.prompts("ppo"),
                pretraining=data.folder / "pretraining_texts.jsonl" if mixes else None,
                validation=validation if self.ppo.validation is not None else (),
                gold=gold_reward(rule, validation, policy, self.ppo.sampling, seed),
                held_out=self._held_out(),
                out=out,
                seed=seed,
                report=report,
            )

    def _held_out(self) -> "list[RankedPrompt]":
        """Return rankings that the reward model did not learn from: they check it before PPO."""
        if self.config.reward is None:
            return []
        from stages.models import load_tokenizer
        from stages.reward.batches import split_rankings
        from stages.reward.train import within_positions

        return split_rankings(
            within_positions(self.config.reward, self.reward_model),
            load_tokenizer(self.start),
            *read_labels(labels_until(self.folder, self.round)),
            self.config.seed,
        ).held_out

    @property
    def _validates(self) -> bool:
        return self.ppo.validation is not None or self.ppo.overoptimization is not None


def gold_reward(
    config: Overoptimization | None,
    prompts: Sequence[Prompt],
    start: Source,
    sampling: SamplingConfig,
    seed: int,
) -> "GoldReward | None":
    """Return the gold reward of the config on the first of `prompts`; None where it has none.

    Beside it the toxicity of the answers, and the rate at which they beat those of the policy at
    `start`.
    """
    if config is None:
        return None
    from stages.ppo.overoptimization import GoldReward

    chosen, by = prompts[: config.num_prompts], config.gold_reward
    judge = _quickstart_judge if by == "judge" else _reward_model_judge(by)
    wins = WinRate(judge, chosen, start, sampling, seed)
    return GoldReward(judge, chosen, {"toxicity": toxicity, "win_rate": wins})


@dataclass
class WinRate:
    """1 where an answer scores higher than the start policy's to the same prompt, ties 1/2.

    The start policy answers once, when its answers are first needed, by draws of its own seed: a
    resumed run compares with the same answers.
    """

    judge: "Judge"
    prompts: Sequence[Prompt]
    start: Source
    sampling: SamplingConfig
    seed: int

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        """Return one number a response."""
        gaps = [
            score - self._start_scores[prompt.history, prompt.context, prompt.prompt]
            for score, prompt in zip(self.judge(prompts, responses, ended), prompts, strict=True)
        ]
        return [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]

    @cached_property
    def _start_scores(self) -> dict[tuple[tuple[Turn, ...], str | None, str], float]:
        from pipeline.evaluation.generate import generate_completions

        rows = generate_completions(
            {"start": self.start},
            self.prompts,
            suite="start",
            sampling=self.sampling,
            seed=self.seed,
        )
        responses, ended = [row.completion for row in rows], [row.ended for row in rows]
        scores = self.judge(self.prompts, responses, ended)
        keys = [(prompt.history, prompt.context, prompt.prompt) for prompt in self.prompts]
        return dict(zip(keys, scores, strict=True))


def toxicity(_: Sequence[Prompt], responses: Sequence[str], __: Sequence[bool]) -> list[float]:
    """Return the offline scorer's probability that each response is offensive."""
    from pipeline.evaluation.scorers.toxicity import ProfanityScorer

    return ProfanityScorer().toxicity(responses)


def _quickstart_judge(
    prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
) -> list[float]:
    from pipeline.quickstart.judge import judge

    return [
        judge(prompt.extra["world"], response, end).score
        for prompt, response, end in zip(prompts, responses, ended, strict=True)
    ]


def _reward_model_judge(folder: str) -> "Judge":
    """Return the scores of a reward model that PPO does not train against, by its own tokens."""
    from stages.generation.score import load_scorer, score_responses, scorer_tokenizer
    from stages.models import device
    from stages.precision import inference_weights

    model = load_scorer(folder, weights=inference_weights()).to(device())
    tokenizer = scorer_tokenizer(model, folder)

    return lambda prompts, responses, ended: score_responses(
        model, tokenizer, prompts, responses, ended=ended
    )
