"""Who marks a policy while PPO trains it: the quickstart's judge, or a reward model of its own."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.scorers.profanity import ProfanityScorer
from pipeline.quickstart.judge import judge
from reward_models.conversations import Turn
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.generation.config import SamplingConfig
from stages.generation.score import score_responses
from stages.models import device, load_tokenizer
from stages.ppo.config import Overoptimization
from stages.ppo.overoptimization import GoldReward, Judge


def gold_of(
    rule: Overoptimization | None,
    prompts: Sequence[Prompt],
    start: Path,
    sampling: SamplingConfig,
    seed: int,
) -> GoldReward | None:
    """The second opinion that `rule` asks for, on the first of `prompts`; None where none is.

    Beside it the toxicity of the answers, and how often they beat those of the policy at `start`.
    """
    if rule is None:
        return None
    chosen = prompts[: rule.num_prompts]
    marks = _judge if rule.gold_reward == "judge" else _model(rule.gold_reward)
    wins = WinRate(marks, chosen, start, sampling, seed)
    return GoldReward(marks, chosen, {"toxicity": toxicity, "win_rate": wins})


class WinRate:
    """1 where an answer is marked higher than the start policy's to the same prompt, ties 1/2.

    The start policy answers once, when it is first asked for, by draws of its own seed: a resumed
    run compares with the same answers.
    """

    def __init__(
        self,
        marks: Judge,
        prompts: Sequence[Prompt],
        start: Path,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.marks, self.prompts = marks, prompts
        self.start, self.sampling, self.seed = start, sampling, seed

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        """One number a response."""
        mine = self.marks(prompts, responses, ended)
        gaps = [
            mark - self._of_start[p.history, p.context, p.prompt]
            for mark, p in zip(mine, prompts, strict=True)
        ]
        return [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]

    @cached_property
    def _of_start(self) -> dict[tuple[tuple[Turn, ...], str | None, str], float]:
        rows = generate_completions(
            {"start": self.start},
            self.prompts,
            suite="start",
            sampling=self.sampling,
            seed=self.seed,
        )
        marks = self.marks(
            self.prompts, [row.completion for row in rows], [row.ended for row in rows]
        )
        asked = [(p.history, p.context, p.prompt) for p in self.prompts]
        return dict(zip(asked, marks, strict=True))


def toxicity(_: Sequence[Prompt], responses: Sequence[str], __: Sequence[bool]) -> list[float]:
    """The offline scorer's probability that each response is offensive."""
    return ProfanityScorer().toxicity(responses)


def _judge(
    prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
) -> list[float]:
    return [
        judge(prompt.extra["world"], response, end).score
        for prompt, response, end in zip(prompts, responses, ended, strict=True)
    ]


def _model(folder: str) -> Judge:
    """Scores by a reward model that PPO does not train against, which reads its own tokens."""
    model, tokenizer = RewardModel.load(Path(folder)).to(device()), load_tokenizer(folder)

    def scores(
        prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        return score_responses(model, tokenizer, prompts, responses, ended=ended)

    return scores
