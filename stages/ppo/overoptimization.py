"""Overoptimization of the reward model: limited by validation, measured by a gold reward.

The reward model is a proxy (Gao et al. 2022). Validation chooses the policy by what its user has:
the reward model's score and the KL on validation prompts. A gold reward is one that PPO does not
see: on a fixed sample of prompts, `ppo/gold_score` is its mean, `ppo/proxy_score` the reward
model's on the same responses, and `ppo/gold_kl_nats` the KL from the reference on them. Nothing is
trained or chosen by it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from reward_models.records import Prompt
from stages.data.template import response_text
from stages.ppo import forward
from stages.ppo.health import MetricSums
from stages.ppo.rollout import Rollout, collect, gather
from stages.ppo.run import Best, PPORun
from stages.seeding import EVERY_RANK, generator_for

log = logging.getLogger(__name__)

Judge = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class GoldReward:
    """The gold reward and its prompts.

    `judge(prompts, responses, ended)` scores each response; `ended` tells which responses ended by
    themselves. `also` are further judges of the same responses, by their metric's name after
    `ppo/`.
    """

    judge: Judge
    prompts: Sequence[Prompt]
    also: Mapping[str, Judge] = field(default_factory=dict)


def validate(run: PPORun, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Mean score and KL (nats a response) of the result's weights on validation prompts."""
    rollout, sums = result_rollout(run, prompts), MetricSums()
    sums.add_all("ppo/validation_score", rollout.score_B)
    sums.add_all("ppo/validation_kl_nats", (rollout.old_BT - rollout.reference_BT).sum(-1))
    return sums.averages(run.sum_over_ranks)


def gold_scores(run: PPORun, gold: GoldReward, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Mean gold score, score and KL (nats a response); `prompts` are the token ids of `gold`'s."""
    rollout, sums = result_rollout(run, prompts), MetricSums()
    tokenizer, is_main = run.models.tokenizer, run.accelerator.is_main_process
    texts = [response_text(tokenizer, ids) for ids in rollout.episodes.responses()]
    ended = rollout.episodes.ended_B.tolist()
    for name, judge in {"gold_score": gold.judge, **gold.also}.items():
        scores = judge(gold.prompts, texts, ended) if is_main else ()
        sums.add_all(f"ppo/{name}", torch.tensor(scores))
    sums.add_all("ppo/proxy_score", rollout.score_B)
    sums.add_all("ppo/gold_kl_nats", (rollout.old_BT - rollout.reference_BT).sum(-1))
    return sums.averages(run.sum_over_ranks)


def choose_best(
    run: PPORun, metrics: Mapping[str, float], alarms: Sequence[str]
) -> dict[str, float]:
    """Keep a validated policy that is healthy and the best so far; end beyond the KL budget.

    Without any such policy the result is the starting one.
    """
    rule, state = run.config.validation, run.state
    if rule is None or "ppo/validation_score" not in metrics:
        return {}
    score, kl_nats = metrics["ppo/validation_score"], metrics["ppo/validation_kl_nats"]
    state.over_budget = rule.kl_budget_nats is not None and kl_nats > rule.kl_budget_nats
    assert state.best is not None, "a run with validation starts with its start as the best"
    if score > state.best.score and not alarms and not state.over_budget:
        state.best = Best(score, state.iteration, run.result_shards())
    if state.over_budget:
        log.warning(
            "iteration %d: ppo/validation_kl_nats is %.3g, above validation.kl_budget_nats "
            "(%g): training ends here, with the policy of iteration %d as its result",
            state.iteration,
            kl_nats,
            rule.kl_budget_nats,
            state.best.iteration,
        )
    return {"ppo/best_iteration": float(state.best.iteration)}


def result_rollout(run: PPORun, prompts: Sequence[list[int]]) -> Rollout:
    """A rollout on these prompts of the result's weights, with the same draws every time."""
    rows = _even_rows(run.accelerator, len(prompts))
    sampling, device = run.config.sampling, run.accelerator.device
    generator = generator_for(run.seed, "validation", EVERY_RANK)
    with run.result_weights():
        episodes, logprobs = collect(run.sampler, prompts, rows, sampling, generator, device=device)
        own, _ = forward.evaluate(
            run.models,
            episodes,
            temperature=sampling.temperature,
            batch_size=run.micro.episodes,
            sampler_logprobs=logprobs,
        )
        return gather(run.accelerator, own, rows)


def _even_rows(accelerator: Accelerator, prompts: int) -> list[int]:
    """This rank's rows of so many prompts.

    All ranks get equally many, because sharded models need the same forward passes on all: where
    the number is not a multiple, some prompts are answered twice.
    """
    ranks = accelerator.num_processes
    rows = range(accelerator.process_index, -(-prompts // ranks) * ranks, ranks)
    return [row % prompts for row in rows]
