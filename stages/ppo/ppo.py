"""Proximal policy optimisation against the reward model, with or without the pretraining mix.

    maximise  E[ r(x, y) - beta log(pi(y|x) / pi_SFT(y|x)) ] + gamma E_pretrain[ log pi(x) ]
                                                           (Ouyang et al. 2022, equation 2 and C.4)

This file is the algorithm, top to bottom: `train` repeats `iterate` (steps 1 to 5) and checks it
(steps 6 to 9); `update` is step 5. The formulas are in `losses.py`; the networks, optimisers and
counters in `run.py`. How forward passes are made quick is behind `forward.py`, and how networks are
sharded behind `stages.distributed`.

An own loop on accelerate rather than a subclass of `transformers.Trainer`: two trained networks,
two frozen ones, a rollout before every update, pretraining gradients in the same buffers and a
moving average are each a few lines here, and each an override against the grain there.

Gradients are sums over global counts, added up over micro-batches and ranks, so how the work is
divided changes nothing: every rank has the whole rollout and computes its part of each minibatch.

Dimension key:  B episodes,  L tokens,  T response tokens,  N response tokens of a batch in a list.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from stages.distributed.checkpoints import Checkpoints
from stages.generation.vllm import VllmSampler
from stages.ppo import forward, health, losses
from stages.ppo.config import AdaptiveKL, PPOConfig
from stages.ppo.health import MetricSums, RecoverableRunError, UnhealthyRunError
from stages.ppo.overoptimization import GoldReward, choose_best, gold_scores, validate
from stages.ppo.rollout import Experience, Rollout, collect, gather, shuffled
from stages.ppo.run import Best, PPORun
from stages.progress import Report, announce
from stages.seeding import EVERY_RANK, endless_order, generator_for

log = logging.getLogger(__name__)


def train(
    run: PPORun,
    prompts: Sequence[list[int]],
    checkpoints: Checkpoints,
    report: Report,
    *,
    validation: Sequence[list[int]] = (),
    gold: GoldReward | None = None,
    gold_prompts: Sequence[list[int]] = (),
) -> None:
    """Run the iterations that are left, from the last checkpoint on. Prompts are token ids."""
    config, doing = run.config, partial(announce, report)

    def measure(*, at_start: bool = False) -> dict[str, float]:
        """Score the policy on validation and gold prompts, in the iterations that are due."""
        metrics: dict[str, float] = {}
        if config.validation is not None and not at_start and run.is_due(config.validation.every):
            doing("validating")
            metrics |= validate(run, validation)
        rule = config.overoptimization
        if gold is not None and rule is not None and run.is_due(rule.every):
            doing("gold scores")
            metrics |= gold_scores(run, gold, gold_prompts)
        return metrics

    saved = checkpoints.latest()
    if saved is not None:
        run.load_state_dict(saved)
    else:
        if config.validation is not None:
            run.state.best = Best(-math.inf, 0, run.result_shards())
        if gold is not None:
            run.report(report, measure(at_start=True))
        if config.health.action == "rollback":
            run.save(checkpoints)

    while run.state.iteration < config.iterations and not run.state.over_budget:
        run.state.iteration += 1
        try:
            # Steps 1 to 5: a rollout of the current policy, and the updates from it.
            metrics = iterate(run, prompts, run.state.iteration - 1, doing)
            if config.health.action == "rollback":
                metrics["ppo/rollbacks"] = float(len(run.state.rollbacks))
            # 6. Adapt the KL coefficient for the next iteration.
            if isinstance(config.kl, AdaptiveKL):
                run.state.kl_coefficient = losses.next_kl_coefficient(
                    run.state.kl_coefficient,
                    metrics["ppo/kl_nats"],
                    target_nats=config.kl.target_nats,
                    episodes=config.episodes_per_rollout,
                    horizon=config.kl.horizon_episodes,
                )
            # 7. Measure overoptimization, and choose the best policy by validation.
            metrics |= measure()
            alarms = health.alarms(metrics, config.health)
            metrics |= choose_best(run, metrics, alarms)
            run.report(report, metrics)
            # 8. Stop, warn or roll back if the run is unstable. An iteration's rollout is of the
            # policy that it began with, so alarms are about that one, and it is not returned to.
            if alarms and config.health.action == "rollback":
                checkpoints.drop(run.state.iteration - 1)
            for alarm in alarms:
                if config.health.action == "warn":
                    log.warning("iteration %d: %s", run.state.iteration, alarm)
                elif health.negative_kl(metrics) is None:
                    raise RecoverableRunError(alarm)
                else:
                    raise UnhealthyRunError(alarm)
            # 9. Save what passed.
            if run.state.over_budget or run.is_due(config.checkpoint_every):
                run.save(checkpoints)
        except UnhealthyRunError as error:
            run.roll_back(error, checkpoints)


def iterate(
    run: PPORun,
    prompts: Sequence[list[int]],
    iteration: int,
    doing: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """One rollout and the updates from it; return the metrics of all ranks together.

    `prompts` are all there are; `doing` is called with what comes next. Raises UnhealthyRunError
    where a check that holds by construction fails.
    """
    config, state, accelerator = run.config, run.state, run.accelerator
    sums, times = MetricSums(), [time.perf_counter()]

    # 1. Sample a response to each of the next prompts from the current policy. Each rank takes the
    # episodes that it will train on first.
    doing("sampling responses")
    own_minibatches = [run.own(rows) for rows in minibatches(run, iteration, epoch=0)]
    row_N = torch.cat(own_minibatches).sort().values
    episodes, sampler_logprobs = collect(
        run.sampler,
        next_prompts(run, prompts, iteration),
        row_N.tolist(),
        config.sampling,
        generator_for(run.seed, "rollout", iteration, EVERY_RANK),
        device=accelerator.device,
        sharing=config.responses_per_prompt,
    )
    times.append(time.perf_counter())

    # 2. Compute log-probabilities of policy and reference, values, and the reward model's scores,
    # in the batches of the first minibatches: so their ratio is exactly 1.
    doing("scoring the responses")
    own_rollout, forwards = forward.evaluate(
        run.models,
        episodes,
        temperature=config.sampling.temperature,
        batch_size=run.micro.episodes,
        minibatches=[torch.searchsorted(row_N, rows) for rows in own_minibatches],
        sampler_logprobs=sampler_logprobs,
        keep_graphs=run.keeps_first_forward,
    )
    forwards = [replace(one, rows=row_N[one.rows]) for one in forwards]
    rollout = gather(accelerator, own_rollout, row_N.tolist())
    health.check_finite(rollout)
    if iteration == 0:
        health.check_starting_kl(rollout.old_BT - rollout.reference_BT)

    # 3. and 4. Rewards, advantages and returns.
    data, reward_BT = experience(rollout, config, state.kl_coefficient)
    times.append(time.perf_counter())

    # 5. Update policy and critic in minibatches.
    doing("updating policy and critic")
    update(run, data, iteration, sums, forwards)
    run.models.lower.forget()
    times.append(time.perf_counter())

    health.add_rollout(sums, rollout, reward_BT)
    if isinstance(run.sampler, VllmSampler):
        health.add_sampler_gap(sums, rollout, config.importance_cap)
    metrics = sums.averages(run.sum_over_ranks)
    metrics = health.with_standard_error(metrics, config.episodes_per_rollout)
    state.first_response_tokens = state.first_response_tokens or metrics["ppo/response_tokens"]
    names = ("time/rollout_s", "time/scoring_s", "time/update_s")
    return {
        **metrics,
        **health.experience_moments(data),
        "ppo/length_growth": metrics["ppo/response_tokens"] / state.first_response_tokens,
        "ppo/kl_coefficient": state.kl_coefficient,
        "ppo/learning_rate": run.learning_rate(iteration),
        **{name: end - start for name, start, end in zip(names, times, times[1:], strict=False)},
    }


def experience(
    rollout: Rollout, config: PPOConfig, kl_coefficient: float
) -> tuple[Experience, Tensor]:
    """Steps 3 and 4: the tensors of the update, and the rewards that they come from."""
    mask_BT = rollout.episodes.response_BT
    # 3. Rewards: a KL penalty at every token, and the score at the last one.
    score_B = losses.final_scores(
        rollout.score_B,
        rollout.episodes.ended_B,
        clip=config.score_clip,
        missing_eos=config.missing_eos_score,
    )
    reward_BT = losses.shaped_rewards(
        score_B, rollout.old_BT, rollout.reference_BT, mask_BT, kl_coefficient
    )
    # 4. Advantages by GAE, whitened, and returns.
    advantage_BT = losses.advantages(
        reward_BT, rollout.value_BT, mask_BT, gamma=config.gamma, lam=config.lam
    )
    return_BT = advantage_BT + rollout.value_BT
    if config.whiten_advantages:
        advantage_BT = losses.whiten(advantage_BT, mask_BT)
    if config.importance_cap is not None:  # another program sampled, with probabilities of its own
        advantage_BT = advantage_BT * losses.importance_weights(
            rollout.old_BT, rollout.sampler_BT, cap=config.importance_cap
        )
    data = Experience(rollout.episodes, rollout.old_BT, rollout.value_BT, advantage_BT, return_BT)
    return data, reward_BT


def update(
    run: PPORun,
    data: Experience,
    iteration: int,
    sums: MetricSums,
    forwards: Sequence[forward.Forward] = (),
) -> None:
    """Step 5: all minibatches of all inner epochs, with an optimiser step each.

    `forwards` are those of the rollout with their graphs, for the first minibatch; without them it
    computes its own. Raises UnhealthyRunError before a step that would spoil the weights.
    """
    for epoch in range(run.config.inner_epochs):
        for number, rows in enumerate(minibatches(run, iteration, epoch)):
            first = epoch == 0 and number == 0
            add_ppo_gradients(run, data, rows, sums, forwards if first else (), first=first)
            if run.stream is not None:
                add_pretraining_gradients(run, sums, measure=first)
            optimizer_step(run, iteration, sums)


def add_ppo_gradients(
    run: PPORun,
    data: Experience,
    rows: Tensor,
    sums: MetricSums,
    forwards: Sequence[forward.Forward] = (),
    *,
    first: bool = False,
) -> None:
    """Step 5a: the gradients of the clipped losses over a minibatch, in micro-batches."""
    config, accelerator = run.config, run.accelerator
    count = float(data.episodes.response_BT[rows].sum())  # response tokens, over all ranks
    ratio_error = torch.zeros((), device=rows.device)
    for one in forwards or forward.policy_forwards(
        run.models,
        run.policy,
        data.episodes,
        run.own(rows),
        size=run.micro.episodes,
        temperature=config.sampling.temperature,
    ):
        batch = data.take(one.rows)
        mask_BT, new_N = batch.episodes.response_BT, one.logprob_N
        old_N, advantage_N = batch.old_BT[mask_BT], batch.advantage_BT[mask_BT]
        old_value_N, return_N = batch.value_BT[mask_BT], batch.return_BT[mask_BT]
        policy_loss = losses.policy_loss(new_N, old_N, advantage_N, clip=config.clip, count=count)
        value_loss = partial(
            losses.value_loss,
            old_N=old_value_N,
            return_N=return_N,
            clip=config.value_clip,
            count=count,
        )
        value_N = forward.backward(
            run.models,
            run.policy,
            run.critic,
            one,
            policy_loss,
            value_loss,
            value_coefficient=run.value_coefficient,
        )
        with torch.no_grad():
            ratio_N = (new_N - old_N).exp()
            ratio_error = torch.maximum(ratio_error, (ratio_N - 1.0).abs().max())
            sums.add("ppo/policy_loss", policy_loss.item() * count, len(new_N))
            sums.add("ppo/value_loss", value_loss(value_N).item() * count, len(new_N))
            sums.add_all("ppo/ratio", ratio_N)
            sums.add_all("ppo/approx_kl", losses.kl_k3(old_N, new_N))
            clipped_N = losses.policy_clipped(new_N, old_N, advantage_N, config.clip)
            sums.add_all("ppo/policy_clip_fraction", clipped_N)
            clipped_N = losses.value_clipped(value_N, old_value_N, return_N, config.value_clip)
            sums.add_all("ppo/value_clip_fraction", clipped_N)
    if first:
        ratio_error = accelerator.gather(ratio_error).max()
        sums.add("ppo/first_ratio_error", ratio_error)
        models = run.models
        health.check_first_ratio(float(ratio_error), models.numerics.compute, models.policy)


def add_pretraining_gradients(run: PPORun, sums: MetricSums, *, measure: bool = False) -> None:
    """Step 5b: add gamma * d(nll)/d(theta) of pretraining text to the policy's gradients.

    With `measure`, their norm is compared with that of PPO's own.
    """
    config, policy, accelerator = run.config.pretraining, run.policy, run.accelerator
    assert config is not None
    assert run.stream is not None
    ranks, rank, device = accelerator.num_processes, accelerator.process_index, accelerator.device
    count = max(1, round(config.examples_per_episode * run.config.minibatch))
    all_ids_BL, all_mask_BL = run.stream.next(count)  # the same on every rank
    before = policy.gradients() if measure else []
    divisor = int(all_mask_BL[:, 1:].sum()) if config.normaliser == "token" else count
    # Blank rows, so that all ranks make equally many forward passes.
    ids_BL, mask_BL = (
        pad(x_BL, (0, 0, 0, -count % ranks))[rank::ranks].to(device)
        for x_BL in (all_ids_BL, all_mask_BL)
    )
    for part in torch.split(torch.arange(len(ids_BL), device=device), run.micro.examples):
        nll = forward.pretraining_nll(run.models, policy.model, ids_BL[part], mask_BL[part])
        policy.backward(config.coefficient * nll / divisor)
        tokens = int(mask_BL[part, 1:].sum())
        sums.add("ppo/pretraining_loss_nats_per_token", nll.item(), tokens)
    if before:
        added = [after - old for after, old in zip(policy.gradients(), before, strict=True)]
        ratio = policy.norm(added) / policy.norm(before)
        sums.add("ppo/pretraining_gradient_ratio", ratio)


def optimizer_step(run: PPORun, iteration: int, sums: MetricSums) -> None:
    """Step 5c: a step of both networks, each with its own learning rate and gradient clip."""
    norms = {  # both, so that no gradient is left for an iteration after a rollback
        "gradient": run.policy.step(run.learning_rate(iteration)),
        "critic_gradient": run.critic.step(run.critic_learning_rate),
    }
    for name, norm in norms.items():
        if not torch.isfinite(norm):
            raise RecoverableRunError(
                f"the {name.replace('_', ' ')} is not finite: the learning rate is too high "
                "or a score is not finite; lower learning_rate, or set score_clip"
            )
        sums.add(f"ppo/{name}_norm", norm)
    if run.average is not None:
        run.average.step(run.policy.shards())


def next_prompts(run: PPORun, prompts: Sequence[list[int]], iteration: int) -> list[list[int]]:
    """The iteration's prompts, each as often as it has responses, in a seeded order."""
    times = run.config.responses_per_prompt
    count = run.config.episodes_per_rollout // times
    order = endless_order(len(prompts), iteration * count, count, run.seed, "prompts")
    return [prompts[number] for number in order for _ in range(times)]


def minibatches(run: PPORun, iteration: int, epoch: int) -> tuple[Tensor, ...]:
    """A rollout's rows in the order of an epoch's update."""
    generator = generator_for(run.seed, "minibatches", iteration, epoch, EVERY_RANK)
    order = shuffled(run.config.episodes_per_rollout, run.config.responses_per_prompt, generator)
    return torch.split(order.to(run.accelerator.device), run.config.minibatch)
