"""A PPO stage from its inputs to its result: load, check, train (`stages.ppo.ppo`), save."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from reward_models.atomic_files import write_jsonl
from reward_models.compat import attention_implementation
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.adapters.backbone import trained_share
from stages.config import without_external_names
from stages.data.streams import PretrainingStream
from stages.data.template import conversation_ids
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.distributed.checkpoints import Checkpoints
from stages.distributed.compat import forget_precision
from stages.distributed.network import copy_weights, trained_parameters
from stages.distributed.ranks import limit_waits
from stages.distributed.sharding import load_models_whole
from stages.generation.classifier import SequenceClassifier
from stages.models import save_policy, tokenizer_hash
from stages.ppo.config import OwnRollouts, PPOConfig
from stages.ppo.forward_checks import with_supported_layout, without_wrong_states
from stages.ppo.health import preflight
from stages.ppo.micro_batches import UpdateCost, fitting, reserved_bytes, update_cost
from stages.ppo.models import Models, ValueHead, load_models, require_ppo_fits
from stages.ppo.overoptimization import GoldReward
from stages.ppo.ppo import train
from stages.ppo.run import PPORun
from stages.precision import Numerics, require_trainable_precision, resolved
from stages.progress import Report, Step, announce, counted, silent
from stages.reward.batches import RankedPrompt
from stages.reward.held_out import check_reward_model

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 5
MAY_CHANGE = {"episodes", "checkpoint_every", "rollouts"}  # settings, when a run is resumed


def train_ppo(
    config: PPOConfig,
    *,
    policy: str | Path,
    reward_model: str | Path,
    prompts: Sequence[Prompt],
    pretraining: Path | None = None,
    out: Path,
    seed: int,
    report: Report = silent,
    validation: Sequence[Prompt] = (),
    gold: GoldReward | None = None,
    held_out: Sequence[RankedPrompt] = (),
) -> None:
    """Train the policy and write `out`/model, `out`/critic and `out`/checkpoints.

    `pretraining` is the file of the ptx term's texts, given if and only if `config.pretraining` is
    set; so are `validation`, the prompts of `config.validation`, and `gold`. On `held_out`, which
    the reward model was not trained on, it is checked before anything else. An interrupted run
    resumes from its last checkpoint and ends with the same numbers. Raises ValueError for input
    that does not fit together, UnhealthyRunError (a ValueError) where a health check stops the run.
    """
    accelerator, numerics = _accelerator(config)
    inputs = {"pretraining": pretraining, "validation": validation, "overoptimization": gold}
    _check_inputs(config, {name for name, value in inputs.items() if value})
    _check_batches(config, len(prompts), accelerator.num_processes)
    gold_prompts = () if gold is None else gold.prompts
    require_ppo_fits(config, policy, reward_model, [*prompts, *validation, *gold_prompts])
    announce(report, "loading policy, reference, critic and reward model")
    sources = (policy, reward_model, config.adaptation, config.models)
    load = partial(load_models, *sources, seed=seed, numerics=numerics)
    load_models_whole(accelerator)
    with attention_implementation(config.attn_implementation):
        models = _checkpointed(load(device=accelerator.device), config)
    prompt_ids, validation_ids, gold_ids = (
        [conversation_ids(models.tokenizer, prompt) for prompt in group]
        for group in (prompts, validation, gold_prompts)
    )
    every_ids = prompt_ids + validation_ids + gold_ids
    models = _with_texts(models, [*prompts, *validation, *gold_prompts], every_ids)
    preflight(models, config, every_ids)
    with models.autocast():
        models = with_supported_layout(models, prompt_ids, config, report)
    announce(report, "measuring how many episodes fit into memory")
    # Before the models are sharded.
    cost, metrics = update_cost(models, config, prompt_ids), _trained_shares(models)
    stream = _stream(config, models, pretraining, seed)
    run = PPORun(models, config, accelerator, seed=seed, out=out, stream=stream)
    with closing(run.sampler):
        _fit_to_memory(run, cost, prompt_ids)
        if accelerator.is_main_process:
            report(Step(0, 0, metrics | {"ppo/micro_batch_size": run.micro.episodes}))
        _check_supported(run)
        if isinstance(models.reward, RewardModel):
            with run.models.idle.on_device(), run.models.autocast():
                doing = counted(report, "checking the reward model")
                check_reward_model(models.reward, held_out, doing)
        limit_waits()  # of all process groups: there are no more to come
        train(
            run,
            prompt_ids,
            Checkpoints(out / "checkpoints", _identity(run), accelerator),
            report,
            validation=validation_ids,
            gold=gold,
            gold_prompts=gold_ids,
        )
        _save(run, out, load)


def _accelerator(config: PPOConfig) -> tuple[Accelerator, Numerics]:
    """The processes, and the precision in which models compute: each model's own matter."""
    forget_precision()
    accelerator = Accelerator(mixed_precision="no")
    numerics = resolved(config.precision, accelerator.device)
    require_trainable_precision(numerics)
    return accelerator, numerics


def _with_texts(models: Models, prompts: Sequence[Prompt], ids: Sequence[list[int]]) -> Models:
    """The models, with the texts that a reward model with a tokenizer of its own scores."""
    if not isinstance(models.reward, SequenceClassifier):
        return models
    models.reward.require_fit(prompts)
    return replace(models, prompts=dict(zip(map(tuple, ids), prompts, strict=True)))


def _checkpointed(models: Models, config: PPOConfig) -> Models:
    """The models; policy and critic checkpoint their activations, where the config says so."""
    if config.activation_checkpointing:
        for trained in (models.policy, models.critic):
            checkpoint_activations(trained)
    return models


def _trained_shares(models: Models) -> dict[str, float]:
    critic = trained_share(models.critic, "ppo/critic_")
    if isinstance(models.critic, ValueHead):
        del critic["ppo/critic_trained_share"]  # it has no base of its own
    return trained_share(models.policy, "ppo/") | critic


def _stream(
    config: PPOConfig, models: Models, texts: Path | None, seed: int
) -> PretrainingStream | None:
    if config.pretraining is None or texts is None:
        return None
    mix, tokenizer = config.pretraining, models.tokenizer
    return PretrainingStream(texts, tokenizer, mix.tokens_per_example, pack=mix.pack, seed=seed)


def _fit_to_memory(run: PPORun, cost: UpdateCost | None, prompts: Sequence[list[int]]) -> None:
    """Drop cached layers that would change outputs, and cut micro-batches to the free memory."""
    config, accelerator = run.config, run.accelerator
    with run.models.idle.on_device(), run.models.autocast():
        run.models = without_wrong_states(run.models, prompts[0])
    if cost is not None:
        longest = max(map(len, prompts)) + config.sampling.max_new_tokens
        tokens = config.episodes_per_rollout // accelerator.num_processes * longest
        networks = (run.policy, run.critic)
        reserved = reserved_bytes(networks, run.models.lower, tokens, config)
        run.micro = run.micro.at_most(fitting(cost, config, accelerator, reserved))


def _check_supported(run: PPORun) -> None:
    """Refuse settings that need the full weights where these are sharded."""
    config = run.config
    merged = isinstance(config.rollouts, OwnRollouts) and config.rollouts.merged
    for setting, is_set in (
        ("rollouts.merged is true", merged),
        (f"models.kind is {config.models.kind}", config.models.kind != "separate"),
    ):
        if is_set and run.policy.shards_weights:
            raise ValueError(
                f"{setting}, but weights are sharded (zero3, fsdp2); expected ddp, zero1 or zero2"
            )
    if config.cached.first_forward and not run.keeps_first_forward:
        log.warning(
            "cached.first_forward has no effect: it takes one minibatch a rollout (minibatch is %d "
            "of %d episodes), and one process or ddp",
            config.minibatch,
            config.episodes_per_rollout,
        )


def _identity(run: PPORun) -> dict[str, object]:
    """The settings that a resumed run must share with its checkpoints."""
    settings = without_external_names(run.config)
    return {
        "config": {name: value for name, value in settings.items() if name not in MAY_CHANGE},
        "seed": run.seed,
        "tokenizer": tokenizer_hash(run.models.tokenizer),
        "format": CHECKPOINT_FORMAT,
    }


def _save(run: PPORun, out: Path, load: Callable[..., Models]) -> None:
    """Save the policy that was chosen, the critic, and the rollbacks, if any.

    Where weights are sharded, the main rank loads the models again and fills in the weights.
    """
    policy, critic, best = run.policy, run.critic, run.state.best
    with run.result_weights(None if best is None else best.weights):
        policy_weights, critic_weights = (x.full(x.shards()) for x in (policy, critic))
        if run.accelerator.is_main_process:
            models = run.models
            if policy.shards_weights:
                models = load(device=torch.device("cpu"))
                copy_weights(trained_parameters(models.policy), policy_weights)
                copy_weights(trained_parameters(models.critic), critic_weights)
            save_policy(models.policy, models.tokenizer, out / "model")
            models.critic.save(out / "critic")
            if best is not None and best.iteration == 0:
                log.warning(
                    "the result is the starting policy: none was within the KL budget and without "
                    "an alarm"
                )
            if run.state.rollbacks:
                write_jsonl(out / "rollbacks.jsonl", run.state.rollbacks)
    run.accelerator.wait_for_everyone()


def _check_inputs(config: PPOConfig, given: set[str]) -> None:
    """Raise ValueError unless an input is given exactly where its setting is."""
    settings = {
        "pretraining": config.pretraining,
        "validation": config.validation,
        "overoptimization": config.overoptimization,
    }
    for name, setting in settings.items():
        if setting is not None and name not in given:
            raise ValueError(f"{name} is set, but there is no input for it")
        if setting is None and name in given:
            raise ValueError(
                f"there is an input for {name}, but {name} is not set, so it would have no effect"
            )


def _check_batches(config: PPOConfig, num_prompts: int, processes: int) -> None:
    if num_prompts == 0:
        raise ValueError("there is no prompt to train on")
    if config.minibatch % (processes * config.responses_per_prompt):
        raise ValueError(
            f"minibatch ({config.minibatch}) must be a multiple of the processes ({processes}) "
            f"times responses_per_prompt ({config.responses_per_prompt})"
        )
