"""A PPO run under way: iterations, what is watched meanwhile, checkpoints, and the way back.

A checkpoint is only ever written after its iteration passed every guard. `guards.action: rollback`
returns to the last one with smaller steps and a stronger pull to the reference; both are part of
the checkpoint that is written at once, so a run that is killed later goes on with them. Nothing
else of the iterations that were taken back remains. An iteration's metrics are those of the policy
it began with, so where they raise an alarm, that policy's checkpoint is passed over too.

With `validation` the result is the policy with the highest validation score, but none beyond the KL
budget and none of an iteration whose metrics raised an alarm. Without any other, the result is the
starting policy.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate.utils import broadcast_object_list

from stages.data.streams import PretrainingStream
from stages.ppo.checkpoint import Checkpoints
from stages.ppo.config import AdaptiveKL, PPOConfig
from stages.ppo.diagnostics import RecoverableRunError, UnhealthyRunError, alarms, negative_kl
from stages.ppo.gold import Gold, measure
from stages.ppo.iteration import iterate
from stages.ppo.learner import Learner
from stages.ppo.objective import next_kl_coefficient
from stages.ppo.selection import Best, validate
from stages.progress import Report, Step, announce

log = logging.getLogger(__name__)


@dataclass
class Course:
    """The learner, what it learns from, and how far it has come. Prompts are token ids."""

    config: PPOConfig
    learner: Learner
    prompts: Sequence[list[int]]
    validation: Sequence[list[int]]
    examples: PretrainingStream | None
    gold: Gold | None
    gold_prompts: Sequence[list[int]]
    kl_coefficient: float = field(init=False)
    done: int = 0
    over: bool = False  # the KL budget is spent
    best: Best | None = None
    first_tokens: float | None = None  # mean response length of the first rollout
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kl_coefficient = self.config.kl.coefficient

    def run(self, checkpoints: Checkpoints, report: Report) -> None:
        """All iterations that are left, with a checkpoint every so many and after the last."""
        state = self._latest(checkpoints)
        if state is not None:
            self._restore(state)
        else:
            self._begin(checkpoints, report)
        while self.done < self.config.iterations and not self.over:
            self.done += 1
            try:
                self._advance(checkpoints, report)
            except UnhealthyRunError as sickness:
                why = f"iteration {self.done}: {sickness}"
                curable = isinstance(sickness, RecoverableRunError)
                if self.config.guards.action != "rollback" or not curable:
                    raise UnhealthyRunError(why) from sickness
                self._go_back(checkpoints, why)

    def _begin(self, checkpoints: Checkpoints, report: Report) -> None:
        if self.config.validation is not None:
            self.best = Best(-math.inf, 0, self.learner.copy_of_result())
        if self.gold is not None:
            announce(report, "gold scores of the start")
            self._tell(report, measure(self.learner, self.gold, self.gold_prompts))
        if self.config.guards.action == "rollback":
            self._save(checkpoints)

    def _advance(self, checkpoints: Checkpoints, report: Report) -> None:
        given = (self.prompts, self.examples, self.done - 1, self.kl_coefficient)
        found = iterate(self.learner, *given, doing := partial(announce, report))
        self.first_tokens = self.first_tokens or found["ppo/response_tokens"]
        found["ppo/length_growth"] = found["ppo/response_tokens"] / self.first_tokens
        if self.config.guards.action == "rollback":
            found["ppo/rollbacks"] = float(len(self.rollbacks))
        self._control_kl(found["ppo/kl_nats"])
        found |= self._watched(doing)
        raised = alarms(found, self.config.guards)
        found = self._choose(found, raised)
        self._tell(report, found)
        if raised and self.config.guards.action == "rollback" and self._is_main:
            checkpoints.pass_over(self.done - 1)
        self._heed(found, raised)
        if self.over or self._is_time(self.config.checkpoint_every):
            self._save(checkpoints)

    @property
    def gold_every(self) -> int:
        """Iterations between two second opinions."""
        return self.config.gold.every if self.config.gold is not None else self.config.iterations

    @property
    def _is_main(self) -> bool:
        return bool(self.learner.accelerator.is_main_process)

    def _is_time(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.config.iterations

    def _tell(self, report: Report, found: dict[str, float]) -> None:
        if self._is_main:
            report(Step(self.done, self.config.iterations, found))

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

    def _watched(self, doing: Callable[[str], None]) -> dict[str, float]:
        """The metrics on validation and gold prompts, in the iterations that measure them."""
        found: dict[str, float] = {}
        rule = self.config.validation
        if rule is not None and self._is_time(rule.every):
            doing("validating")
            found |= validate(self.learner, self.validation)
        if self.gold is not None and self._is_time(self.gold_every):
            doing("gold scores")
            found |= measure(self.learner, self.gold, self.gold_prompts)
        return found

    def _choose(self, metrics: dict[str, float], raised: Sequence[str]) -> dict[str, float]:
        """The metrics, with the iteration of the best policy so far where it was validated.

        `raised` are the iteration's alarms. A policy beyond the KL budget ends the run.
        """
        rule = self.config.validation
        if rule is None or "ppo/validation_score" not in metrics:
            return metrics
        score, kl = metrics["ppo/validation_score"], metrics["ppo/validation_kl_nats"]
        self.over = rule.kl_budget_nats is not None and kl > rule.kl_budget_nats
        assert self.best is not None, "a run with validation begins with its start as the best"
        if score > self.best.score and not raised and not self.over:
            self.best = Best(score, self.done, self.learner.copy_of_result())
        if self.over:
            log.warning(
                "iteration %d: ppo/validation_kl_nats is %.3g, above validation.kl_budget_nats "
                "(%g): training ends here, with the policy of iteration %d as its result",
                *(self.done, kl, rule.kl_budget_nats, self.best.iteration),
            )
        return metrics | {"ppo/best_iteration": float(self.best.iteration)}

    def _heed(self, metrics: dict[str, float], raised: Sequence[str]) -> None:
        action = self.config.guards.action
        for alarm in raised:
            if action == "warn":
                log.warning("iteration %d: %s", self.done, alarm)
            elif negative_kl(metrics) is None:
                raise RecoverableRunError(alarm)
            else:
                raise UnhealthyRunError(alarm)

    def _go_back(self, checkpoints: Checkpoints, why: str) -> None:
        rule, behind, known = self.config.guards.rollback, self.done, self.rollbacks
        if len(known) == rule.times:
            raise UnhealthyRunError(
                f"{why} (after {rule.times} rollbacks, guards.rollback.times; begin anew with "
                f"learning_rate {self.config.learning_rate * self.learner.rate_scale:.3g} or less "
                f"and kl.coefficient {self.kl_coefficient:.3g} or more)"
            )
        state = self._latest(checkpoints)
        assert state is not None, "a run with rollbacks begins with a checkpoint"
        self._restore(state)
        self.learner.rate_scale *= rule.learning_rate_factor
        self.kl_coefficient *= rule.kl_factor
        self.rollbacks = [
            *known,
            {
                "from_iteration": behind,
                "to_iteration": self.done,
                "why": why,
                "learning_rate_scale": self.learner.rate_scale,
                "kl_coefficient": self.kl_coefficient,
            },
        ]
        log.warning(
            "%s; back to iteration %d with %g of the learning rate and KL coefficient %.3g "
            "(rollback %d of %d)",
            *(why, self.done, self.learner.rate_scale, self.kl_coefficient),
            *(len(self.rollbacks), rule.times),
        )
        self._save(checkpoints)

    def _save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint, which all ranks gather and the first one writes; all wait for it."""
        state = self._state()
        if self._is_main:
            checkpoints.save(self.done, state)
        self.learner.accelerator.wait_for_everyone()

    def _latest(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """The last checkpoint, of which only the first rank has the tensors."""
        found: list[Any] = [None]
        if self._is_main:
            checkpoints.remove_cut_off()
            found = [checkpoints.latest()]
        told = [_without_tensors(found[0])]
        broadcast_object_list(told)
        return found[0] if self._is_main else told[0]

    def _state(self) -> dict[str, Any]:
        best = self.best
        return {
            "learner": self.learner.state(),
            "examples": None if self.examples is None else self.examples.state(),
            "kl_coefficient": self.kl_coefficient,
            "done": self.done,
            "over": self.over,
            "best": None
            if best is None
            else [best.score, best.iteration, self.learner.policy.full(best.weights)],
            "first_tokens": self.first_tokens,
            "rollbacks": self.rollbacks,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.best = None
        if state["best"] is not None:
            score, iteration, weights = state["best"]
            self.best = Best(score, iteration, self.learner.held_of(weights))
        self.learner.restore(state["learner"])
        if self.examples is not None:
            self.examples.restore(state["examples"])
        self.kl_coefficient = state["kl_coefficient"]
        self.done, self.over = state["done"], state["over"]
        self.first_tokens, self.rollbacks = state["first_tokens"], state["rollbacks"]


def _without_tensors(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """What ranks that have no checkpoint are told; they get their weights from the first rank."""
    if state is None:
        return None
    bare: dict[str, Any] = {"weights": {}, "moments": {}}
    learner = {**state["learner"], "policy": bare, "critic": bare}
    learner["average"] = None if learner["average"] is None else {}
    best = None if state["best"] is None else [*state["best"][:2], {}]
    return {**state, "learner": learner, "best": best}
