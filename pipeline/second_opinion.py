"""Who marks a policy while PPO trains it: the quickstart's judge, or a reward model of its own."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.quickstart.judge import judge
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.config import GoldCurve
from stages.models import device, load_tokenizer
from stages.ppo.gold import Gold, Judge
from stages.scoring import score_responses


def gold_of(rule: GoldCurve | None, prompts: Sequence[Prompt]) -> Gold | None:
    """The second opinion that `rule` asks for, on the first of `prompts`; None where none is."""
    if rule is None:
        return None
    return Gold(_judge if rule.by == "judge" else _model(rule.by), prompts[: rule.num_prompts])


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
