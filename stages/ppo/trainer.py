"""Stage three: PPO against the reward model, with or without the pretraining mix (appendix C.4).

An own loop on accelerate rather than a subclass of `transformers.Trainer`: two trained networks,
two frozen ones, a rollout before every update, pretraining gradients in the same buffers and a
moving average are each a few lines here, and each an override against the grain there. accelerate
gives the device, the ranks and the precision; how the networks are divided among ranks is
`stages/distributed/sharding.py`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from reward_models.atomic_files import write_jsonl
from reward_models.records import Prompt
from stages.adapters.backbone import trained_share
from stages.config import without_external_names
from stages.data.streams import PretrainingStream
from stages.data.template import conversation_ids, stop_ids
from stages.distributed.network import trained_parameters
from stages.distributed.ranks import limit_waits
from stages.distributed.sharding import autocast, load_models_whole, require_trainable_precision
from stages.models import save_policy, tokenizer_hash
from stages.ppo.averaging import copy_weights
from stages.ppo.checkpoint import Checkpoints
from stages.ppo.config import OwnRollouts, PPOConfig
from stages.ppo.course import Course
from stages.ppo.diagnostics import preflight
from stages.ppo.gold import Gold
from stages.ppo.learner import Learner
from stages.ppo.micro_batches import UpdateCost, bytes_to_come, fitting, update_cost
from stages.ppo.models import Models, load_models, require_ppo_fits
from stages.ppo.packing import obstacle_to_packing, pads_right, without_wrong_states
from stages.ppo.served import PolicyServer
from stages.ppo.value_head import ValueHead
from stages.progress import Report, Step, announce, counted
from stages.reward.batches import RankedPrompt
from stages.reward.held_out import check_reward_model

log = logging.getLogger(__name__)

_START = "the result is the starting policy: none was within the KL budget and without an alarm"
_FREE = {"episodes", "checkpoint_every", "rollouts"}  # what a run that goes on may change


def train_ppo(
    config: PPOConfig,
    *,
    policy: str | Path,
    reward_model: Path,
    prompts: Sequence[Prompt],
    pretraining: Path | None,
    out: Path,
    seed: int,
    report: Report,
    validation: Sequence[Prompt] = (),
    gold: Gold | None = None,
    held_out: Sequence[RankedPrompt] = (),
) -> None:
    """Train the policy and write `out`/model, `out`/critic and `out`/checkpoints.

    `pretraining` is the file of the ptx term's texts, given if and only if `config.pretraining` is
    set; so are `validation`, the prompts of `config.validation`, and `gold`. By `held_out`, which
    the reward model did not learn from, it is checked before anything else. A run that was cut off
    goes on from its last checkpoint and ends with the same numbers. Raises ValueError for input
    that does not fit together, UnhealthyRunError (a ValueError) where a guard stops the run.
    """
    accelerator = Accelerator()
    require_trainable_precision(accelerator)
    given = {"pretraining": pretraining, "validation": validation, "gold": gold}
    _check_given(config, {name for name, there in given.items() if there})
    _check_cut(config, len(prompts), accelerator.num_processes)
    compared = () if gold is None else gold.prompts
    require_ppo_fits(config, policy, reward_model, [*prompts, *validation, *compared])
    announce(report, "loading policy, reference, critic and reward model")
    load = partial(load_models, policy, reward_model, config.adaptation, config.models, seed=seed)
    load_models_whole(accelerator)
    models = load(device=accelerator.device)
    asked, validated, marked = (_tokens(models, x) for x in (prompts, validation, compared))
    preflight(models, config, asked + validated + marked)
    models = _as_they_can_be_read(models, asked, config, report)
    learner = _learner(models, config, accelerator, seed, out, report, asked)
    check_reward_model(models.reward, held_out, counted(report, "checking the reward model"))
    course = Course(
        config=config,
        learner=learner,
        prompts=asked,
        validation=validated,
        examples=_examples(config, models.tokenizer, pretraining, seed),
        gold=gold,
        gold_prompts=marked,
    )
    limit_waits()  # of all process groups: there are no more to come
    course.run(_checkpoints(course, out), report)
    _write(course, out, load)


def _learner(
    models: Models,
    config: PPOConfig,
    accelerator: Accelerator,
    seed: int,
    out: Path,
    report: Report,
    prompts: Sequence[list[int]],
) -> Learner:
    """The learner, after what it trains was told, and who samples for it where that is a server."""
    announce(report, "measuring how many episodes fit into memory")
    cost, told = _update_cost(models, config, prompts, accelerator), _trained_shares(models)
    learner = Learner(models, config, accelerator, seed)
    learner.models = without_wrong_states(learner.models, prompts[0])
    if cost is not None:
        longest = max(map(len, prompts)) + config.sampling.max_new_tokens
        tokens = config.episodes_per_rollout // accelerator.num_processes * longest
        to_come = bytes_to_come((learner.policy, learner.critic), learner.models.lower, tokens)
        learner.micro = learner.micro.at_most(fitting(cost, config, accelerator, to_come))
    if accelerator.is_main_process:
        report(Step(0, 0, told | {"ppo/micro_batch_size": learner.micro.episodes}))
    if learner.policy.shards_weights:
        _check_divided(config)
    if config.kept.first_pass and not learner.keeps_first_pass:
        log.warning(
            "kept.first_pass has no effect: it takes one minibatch a rollout (minibatch is %d of "
            "%d episodes), and one process or ddp",
            *(config.minibatch, config.episodes_per_rollout),
        )
    if not isinstance(config.rollouts, OwnRollouts):
        stops = stop_ids(models.tokenizer, models.policy)
        learner.server = PolicyServer(
            *(config.rollouts, models.policy, learner.policy, stops, out / "sent", accelerator)
        )
    return learner


def _trained_shares(models: Models) -> dict[str, float]:
    critic = trained_share(models.critic, "ppo/critic_")
    if isinstance(models.critic, ValueHead):
        del critic["ppo/critic_trained_share"]  # it has no base of its own
    return trained_share(models.policy, "ppo/") | critic


def _checkpoints(course: Course, out: Path) -> Checkpoints:
    """The run's checkpoints, with what a run that goes on must share with them."""
    learner, config = course.learner, course.config
    identity = {
        "config": {k: v for k, v in without_external_names(config).items() if k not in _FREE},
        "seed": learner.seed,
        "tokenizer": tokenizer_hash(learner.models.tokenizer),
        "format": 4,
    }
    return Checkpoints(out / "checkpoints", identity)


def _as_they_can_be_read(
    models: Models, prompts: Sequence[list[int]], config: PPOConfig, report: Report
) -> Models:
    """The models, and whether episodes lie in one row, or where rows are padded."""
    longest, response_tokens = max(prompts, key=len), config.sampling.max_new_tokens
    models = replace(models, pads_right=pads_right(models, len(longest) + response_tokens))
    if not config.packed:
        return models
    announce(report, "trying whether the models read several episodes in one row")
    obstacle = obstacle_to_packing(models, longest, response_tokens, config.responses_per_prompt)
    if obstacle is not None:
        log.warning("every episode is read in a padded row of its own: %s", obstacle)
    return replace(models, packed=obstacle is None)


def _update_cost(
    models: Models, config: PPOConfig, prompts: Sequence[list[int]], accelerator: Accelerator
) -> UpdateCost | None:
    """What an update takes, where memory is to cut the micro-batches and it can be told."""
    if config.micro_batch_size != "auto":
        return None
    try:
        return update_cost(models, config, prompts, autocast(accelerator))
    except RuntimeError as error:
        log.warning("every micro-batch is a whole minibatch, fitting or not: %s", error)
        return None


def _write(course: Course, out: Path, load: Callable[..., Models]) -> None:
    """Save the policy that was chosen, the critic, and what made the run go back, if anything.

    Where weights are divided, the first rank loads the models again and gives them the weights.
    """
    learner, best = course.learner, course.best
    policy, critic = learner.policy, learner.critic
    with learner.result_weights(None if best is None else best.weights):
        trained = {"policy": policy.full(policy.shards()), "critic": critic.full(critic.shards())}
        if learner.accelerator.is_main_process:
            models = learner.models
            if policy.shards_weights:
                models = load(device=torch.device("cpu"))
                copy_weights(trained_parameters(models.policy), trained["policy"])
                copy_weights(trained_parameters(models.critic), trained["critic"])
            save_policy(models.policy, models.tokenizer, out / "model")
            models.critic.save(out / "critic")
            if best is not None and best.iteration == 0:
                log.warning(_START)
            if course.rollbacks:
                write_jsonl(out / "rollbacks.jsonl", course.rollbacks)
    learner.accelerator.wait_for_everyone()


def _tokens(models: Models, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [conversation_ids(models.tokenizer, prompt) for prompt in prompts]


def _examples(
    config: PPOConfig, tokenizer: PreTrainedTokenizerBase, texts: Path | None, seed: int
) -> PretrainingStream | None:
    if config.pretraining is None or texts is None:
        return None
    mix = config.pretraining
    return PretrainingStream(texts, tokenizer, mix.tokens_per_example, pack=mix.pack, seed=seed)


def _check_given(config: PPOConfig, given: set[str]) -> None:
    """What is set must be given, and the other way round."""
    settings = {
        "pretraining": config.pretraining,
        "validation": config.validation,
        "gold": config.gold,
    }
    for name, setting in settings.items():
        if setting is not None and name not in given:
            raise ValueError(f"{name} is set, but there is no {name} set to read")
        if setting is None and name in given:
            raise ValueError(
                f"a {name} set is given, but {name} is not set, so it would have no effect"
            )


def _check_divided(config: PPOConfig) -> None:
    """Refuse what reads weights outside the passes for which they are gathered."""
    merged = isinstance(config.rollouts, OwnRollouts) and config.rollouts.merged
    for setting, there in (
        ("rollouts.merged is true", merged),
        (f"models.kind is {config.models.kind}", config.models.kind != "separate"),
    ):
        if there:
            raise ValueError(
                f"{setting}, but weights are divided among ranks (zero3, fsdp2); expected ddp, "
                "zero1 or zero2"
            )


def _check_cut(config: PPOConfig, num_prompts: int, processes: int) -> None:
    if num_prompts == 0:
        raise ValueError("there is no prompt to train on")
    together = processes * config.responses_per_prompt
    if config.minibatch % together:
        raise ValueError(
            f"minibatch ({config.minibatch}) must be a multiple of the processes ({processes}) "
            f"times responses_per_prompt ({config.responses_per_prompt})"
        )
