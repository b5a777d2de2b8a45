"""One iteration of PPO: responses, scores, rewards, update, and what there is to see of it."""

import time
from collections.abc import Callable, Mapping, Sequence

from stages.data.streams import PretrainingStream
from stages.ppo import metrics
from stages.ppo.diagnostics import check_finite, check_starting_kl
from stages.ppo.learner import Learner
from stages.ppo.rollout import experience
from stages.ppo.shares import answered
from stages.ppo.tally import Tally
from stages.seeding import EVERY_RANK, endless_order, generator_for


def iterate(
    learner: Learner,
    prompts: Sequence[list[int]],
    examples: PretrainingStream | None,
    iteration: int,
    kl_coefficient: float,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Roll out, score, shape rewards and update; returns the metrics of all ranks together.

    `prompts` are all there are; the iteration takes its own in the seeded order. `announce` is
    called with what comes next. Raises UnhealthyRunError where a check that holds by construction
    fails.
    """
    config, tally, watch = learner.config, Tally(), _Stopwatch(announce)
    watch.begin("sampling responses")
    rollout = answered(
        learner,
        _asked(learner, prompts, iteration),
        generator_for(learner.seed, "rollout", iteration, EVERY_RANK),
        minibatches=[learner.own(rows) for rows in learner.minibatches(iteration, epoch=0)],
        sharing=config.responses_per_prompt,
        sampled=lambda: watch.lap("time/rollout_s", "scoring the responses"),
        keep=learner.keeps_first_pass,
    )
    check_finite(rollout)
    if iteration == 0:
        check_starting_kl(rollout.old_BT - rollout.reference_BT)
    data, reward_BT = experience(rollout, config, kl_coefficient)
    watch.lap("time/scoring_s", "updating policy and critic")
    learner.update(data, examples, iteration, tally)
    learner.models.lower.forget()
    watch.lap("time/update_s")
    metrics.count_rollout(tally, rollout)
    metrics.count_rewards(tally, reward_BT)
    if learner.server is not None:
        metrics.count_sampler(tally, rollout)
    means = tally.means(learner.total)
    found = metrics.with_standard_error(means, config.episodes_per_rollout)
    return {
        **found,
        "ppo/explained_variance": metrics.explained_variance(data),
        "ppo/kl_coefficient": kl_coefficient,
        "ppo/learning_rate": learner.learning_rate(iteration),
        **watch.seconds,
    }


def _asked(learner: Learner, prompts: Sequence[list[int]], iteration: int) -> list[list[int]]:
    """The iteration's prompts, each as often as it is answered.

    Every pass over the prompts has its own order.
    """
    times = learner.config.responses_per_prompt
    count = learner.config.episodes_per_rollout // times
    places = endless_order(len(prompts), iteration * count, count, learner.seed, "prompts")
    return [prompts[place] for place in places for _ in range(times)]


class _Stopwatch:
    """Seconds between laps, by name; what comes next is announced."""

    def __init__(self, begin: Callable[[str], None]) -> None:
        self._last = time.perf_counter()
        self.begin = begin
        self.seconds: Mapping[str, float] = {}

    def lap(self, name: str, next_work: str = "") -> None:
        now = time.perf_counter()
        self.seconds = {**self.seconds, name: now - self._last}
        self._last = now
        if next_work:
            self.begin(next_work)
