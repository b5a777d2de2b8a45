"""Stage three: PPO against the reward model, with or without the pretraining mix (appendix C.4).

An own loop on accelerate rather than a subclass of `transformers.Trainer`: two trained networks,
two frozen ones, a rollout before every update, pretraining gradients in the same buffers and a
moving average are each a few lines here, and each an override against the grain there. accelerate
gives the device, the ranks and the precision.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from reward_models.records import Prompt
from stages.config import AdaptiveKL, PPOConfig
from stages.data.template import prompt_ids
from stages.models import save_policy, tokenizer_hash
from stages.ppo.checkpoint import Checkpoints
from stages.ppo.diagnostics import UnhealthyRunError, alarms, preflight
from stages.ppo.iteration import iterate
from stages.ppo.learner import Learner
from stages.ppo.models import load_models
from stages.ppo.objective import next_kl_coefficient
from stages.ppo.pretraining import PretrainingExamples
from stages.ppo.selection import Best, validate
from stages.ppo.sharing import obstacle_to_sharing
from stages.progress import Report, Step

log = logging.getLogger(__name__)


def train_ppo(
    config: PPOConfig,
    *,
    policy: str | Path,
    reward_model: Path,
    prompts: Sequence[Prompt],
    pretraining: Sequence[str] | None,
    out: Path,
    seed: int,
    report: Report,
    validation: Sequence[Prompt] = (),
) -> None:
    """Train the policy and write `out`/model, `out`/critic and `out`/checkpoints.

    `pretraining` are the texts of the ptx term, given if and only if `config.pretraining` is set;
    `validation` are the prompts of `config.validation`, likewise. A run that was cut off goes on
    from its last checkpoint and ends with the same numbers. Raises ValueError for input that does
    not fit together, UnhealthyRunError (a ValueError) where a guard stops the run.
    """
    accelerator = Accelerator()
    _check_given("pretraining", config.pretraining is not None, bool(pretraining))
    _check_given("validation", config.validation is not None, bool(validation))
    _check_cut(config, len(prompts), accelerator.num_processes)
    models = load_models(
        policy, reward_model, config.adaptation, seed=seed, device=accelerator.device
    )
    stage = _Stage(
        config=config,
        learner=Learner(models, config, accelerator, seed),
        prompts=_tokens(models.tokenizer, prompts),
        validation=_tokens(models.tokenizer, validation),
        examples=_examples(config, models.tokenizer, pretraining, seed),
        sharing=config.responses_per_prompt,
        kl_coefficient=config.kl.coefficient,
    )
    preflight(models, config, stage.prompts + stage.validation)
    stage.choose_layout()
    identity = {
        "config": config.model_dump(mode="json", exclude={"episodes", "checkpoint_every"}),
        "seed": seed,
        "tokenizer": tokenizer_hash(models.tokenizer),
        "processes": accelerator.num_processes,
    }
    stage.run(Checkpoints(out / "checkpoints", identity), report)
    if accelerator.is_main_process:
        stage.write(out)
    accelerator.wait_for_everyone()


@dataclass
class _Stage:
    """A run under way: the learner, what it learns from, and how far it has come."""

    config: PPOConfig
    learner: Learner
    prompts: list[list[int]]
    validation: list[list[int]]
    examples: PretrainingExamples | None
    sharing: int
    kl_coefficient: float
    done: int = 0
    over: bool = False  # the KL budget is spent
    best: Best | None = None

    def choose_layout(self) -> None:
        """Read prompts once for all their responses, unless this model says something else then."""
        if self.sharing == 1:
            return
        longest = max(self.prompts, key=len)
        response_tokens = self.config.sampling.max_new_tokens
        obstacle = obstacle_to_sharing(self.learner.models, longest, response_tokens, self.sharing)
        if obstacle is not None:
            log.warning("each response is read with its own copy of the prompt: %s", obstacle)
            self.sharing = 1

    def run(self, checkpoints: Checkpoints, report: Report) -> None:
        """All iterations that are left, with a checkpoint every so many and after the last."""
        main, total = self.learner.accelerator.is_main_process, self.config.iterations
        if main:
            checkpoints.remove_cut_off()
        state = checkpoints.latest()
        if state is not None:
            self._restore(state)
        while self.done < total and not self.over:
            found = iterate(
                self.learner,
                self.prompts,
                self.examples,
                self.done,
                self.kl_coefficient,
                sharing=self.sharing,
            )
            self.done += 1
            self._control_kl(found["ppo/kl_nats"])
            found |= self._validate()
            if main:
                report(Step(self.done, total, found))
            self._heed(alarms(found, self.config.guards))
            last = self.done == total or self.over
            if main and (last or self.done % self.config.checkpoint_every == 0):
                checkpoints.save(self.done, self._state())

    def write(self, out: Path) -> None:
        """Save the policy that was chosen, and the critic."""
        models = self.learner.models
        with self.learner.result_weights(None if self.best is None else self.best.weights):
            save_policy(models.policy, models.tokenizer, out / "model")
        models.critic.save(out / "critic")

    def _control_kl(self, kl_nats: float) -> None:
        kl = self.config.kl
        if isinstance(kl, AdaptiveKL):
            self.kl_coefficient = next_kl_coefficient(
                self.kl_coefficient,
                kl_nats,
                target_nats=kl.target_nats,
                episodes=self.config.episodes_per_rollout,
                horizon=kl.horizon_episodes,
            )

    def _validate(self) -> dict[str, float]:
        """Every so often: is this the best policy yet, and is it still within the KL budget?"""
        rule = self.config.validation
        if rule is None or (self.done % rule.every and self.done != self.config.iterations):
            return {}
        found = validate(self.learner, self.validation)
        score, kl = found["ppo/validation_score"], found["ppo/validation_kl_nats"]
        if rule.kl_budget_nats is not None and kl > rule.kl_budget_nats:
            self.over = True
        if self.best is None or (score > self.best.score and not self.over):
            self.best = Best(score, self.done, self.learner.copy_of_result())
        return found

    def _heed(self, found: list[str]) -> None:
        for alarm in found:
            if self.config.guards.action == "stop":
                raise UnhealthyRunError(f"iteration {self.done}: {alarm}")
            log.warning("iteration %d: %s", self.done, alarm)

    def _state(self) -> dict[str, Any]:
        best = self.best
        return {
            "learner": self.learner.state(),
            "kl_coefficient": self.kl_coefficient,
            "done": self.done,
            "over": self.over,
            "best": None if best is None else [best.score, best.iteration, dict(best.weights)],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])
        self.kl_coefficient = state["kl_coefficient"]
        self.done, self.over = state["done"], state["over"]
        self.best = None if state["best"] is None else Best(*state["best"])


def _tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [prompt_ids(tokenizer, prompt.prompt, prompt.context) for prompt in prompts]


def _examples(
    config: PPOConfig, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | None, seed: int
) -> PretrainingExamples | None:
    if config.pretraining is None or texts is None:
        return None
    mix = config.pretraining
    make = PretrainingExamples.pack if mix.pack else PretrainingExamples.separate
    return make(texts, tokenizer, mix.tokens_per_example, seed=seed)


def _check_given(name: str, asked: bool, given: bool) -> None:
    if asked and not given:
        raise ValueError(f"{name} is set, but there is no {name} set to read")
    if given and not asked:
        raise ValueError(
            f"a {name} set is given, but {name} is not set, so it would have no effect"
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
