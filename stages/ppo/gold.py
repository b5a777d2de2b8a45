"""A second opinion on the policy while it trains (Gao et al. 2022): when does more score hurt?

The reward model is a proxy. On a fixed sample of prompts, `ppo/gold` is what somebody else thinks
of the answers, `ppo/gold_proxy` what the reward model thinks of the same ones, and
`ppo/gold_kl_nats` how far the policy has moved from the reference on them. Nothing is trained or
chosen by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from reward_models.records import Prompt
from stages.data.template import response_text
from stages.ppo.diagnostics import responses_of
from stages.ppo.learner import Learner
from stages.ppo.selection import answer
from stages.ppo.tally import Tally

Judge = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Gold:
    """Who gives the second opinion, on which prompts.

    `judge(prompts, responses, ended)` gives each response's mark; `ended` tells which responses
    came to their end by themselves. `also` are further judges of the same answers, by what their
    mean is called after `ppo/`.
    """

    judge: Judge
    prompts: Sequence[Prompt]
    also: Mapping[str, Judge] = field(default_factory=dict)


def measure(learner: Learner, gold: Gold, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Mean mark, score and KL (nats a response) on the sample; `prompts` are its token ids."""
    rollout, tally = answer(learner, prompts), Tally()
    texts = [response_text(learner.models.tokenizer, ids) for ids in responses_of(rollout.episodes)]
    ended = rollout.episodes.ended_B.tolist()
    for name, judge in {"gold": gold.judge, **gold.also}.items():
        marks = judge(gold.prompts, texts, ended) if learner.accelerator.is_main_process else ()
        tally.add_all(f"ppo/{name}", torch.tensor(marks))
    tally.add_all("ppo/gold_proxy", rollout.score_B)
    tally.add_all("ppo/gold_kl_nats", (rollout.old_BT - rollout.reference_BT).sum(-1))
    return tally.means(learner.total)
