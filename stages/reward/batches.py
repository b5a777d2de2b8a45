"""Rankings as the reward model's batch elements: a prompt, its K responses, all annotators' ranks.

A skipped ranking has no ranks and teaches nothing, unless its reason is one of those that may: then
the outputs rated before the task was given up are ordered by their ratings, equal ratings tie, and
the others have no rank. A prompt without a usable pair (all ties, all skipped) and one that is too
long are left out and counted.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask
from stages.data.template import conversation_ids, response_ids, user_text, written_out
from stages.reward.config import RewardConfig


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """One batch element. `ranks` has a row of K ranks for each annotator, 1 = best, ties share.

    Rank 0 stands for none.
    """

    task: str
    conversation: str  # the whole conversation, as text: what a split must keep together
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    models: tuple[str, ...]
    annotators: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]

    @property
    def row_tokens(self) -> int:
        """Tokens where the prompt is computed once."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def path_tokens(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt) + max(map(len, self.responses))

    @property
    def num_pairs(self) -> int:
        """Untied pairs over all annotators."""
        return sum(0 < a < b for row in self.ranks for a in row for b in row)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What the rankings held that cannot be learnt from."""

    skipped_rankings: int
    tasks_without_ranking: int
    tasks_without_pair: int
    tasks_too_long: int


@dataclass(frozen=True, slots=True)
class SplitRankings:
    """What a reward model is to learn from, what it is asked about, and both in their order."""

    elements: list[RankedPrompt]
    train: list[RankedPrompt]
    held_out: list[RankedPrompt]
    left_out: LeftOut


def split_rankings(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[RankingTask],
    rankings: Iterable[Ranking],
    seed: int,
) -> SplitRankings:
    """The `ranked_prompts` that a config wants, split the same way wherever it is asked."""
    elements, left_out = ranked_prompts(
        tokenizer,
        tasks,
        rankings,
        max_tokens=config.max_tokens,
        learn_from_skips=config.learn_from_skips,
    )
    rng = random.Random(f"held out {seed}")
    return SplitRankings(elements, *split_by_prompt(elements, config.held_out, rng), left_out)


def ranked_prompts(
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[RankingTask],
    rankings: Iterable[Ranking],
    *,
    max_tokens: int,
    learn_from_skips: Collection[str] = (),
) -> tuple[list[RankedPrompt], LeftOut]:
    """One element for each task that can be learnt from, in the order of the tasks.

    `learn_from_skips` are reasons. Raises ValueError where two tasks have one id, where a ranking
    names an unknown task or does not rank its task's responses, and where nothing was skipped for
    one of the reasons.
    """
    by_task: dict[str, RankingTask] = {}
    for task in tasks:
        if by_task.setdefault(task.id, task) is not task:
            raise ValueError(f"two tasks have the id '{task.id}'; rankings could mean either")
    given: dict[str, list[Ranking]] = defaultdict(list)
    rankings, unused = list(rankings), set(learn_from_skips)
    skipped = 0
    for ranking in rankings:
        if ranking.task not in by_task:
            raise ValueError(
                f"'{ranking.annotator}' ranked task '{ranking.task}', which is not there"
            )
        ranking.check_against(by_task[ranking.task])
        unused.discard(ranking.skipped or "")
        if ranking.skipped in learn_from_skips:
            ranking = _by_ratings(ranking)
        skipped += ranking.skipped is not None
        if ranking.skipped is None:
            given[ranking.task].append(ranking)
    if unused:
        raise ValueError(
            f"learn_from_skips names '{min(unused)}', for which nothing was skipped; found "
            f"{sorted({one.skipped for one in rankings if one.skipped is not None})}"
        )
    built = [_ranked_prompt(tokenizer, by_task[name], rows) for name, rows in given.items()]
    with_pair = [element for element in built if element.num_pairs]
    kept = [element for element in with_pair if element.path_tokens <= max_tokens]
    order = {name: place for place, name in enumerate(by_task)}
    left_out = LeftOut(
        skipped_rankings=skipped,
        tasks_without_ranking=len(by_task) - len(built),
        tasks_without_pair=len(built) - len(with_pair),
        tasks_too_long=len(with_pair) - len(kept),
    )
    return sorted(kept, key=lambda element: order[element.task]), left_out


def _by_ratings(skipped: Ranking) -> Ranking:
    """The ranking that the ratings of a given-up task make; itself where they order nothing."""
    levels = sorted(set(skipped.ratings.values()), reverse=True)
    if len(levels) < 2:
        return skipped
    ranks = {name: levels.index(rating) + 1 for name, rating in skipped.ratings.items()}
    return replace(skipped, ranks=ranks, skipped=None)


def split_by_prompt(
    elements: Sequence[RankedPrompt], share: float, rng: random.Random
) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
    """(train, held out), no prompt in both; a share above 0 holds out one prompt at least."""
    prompts = sorted({element.conversation for element in elements})
    rng.shuffle(prompts)
    num_held = max(round(share * len(prompts)), 1) if share > 0 else 0
    if num_held >= len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts with a usable ranking, {num_held} of them held out: "
            "none to learn from"
        )
    held = set(prompts[:num_held])
    train = [element for element in elements if element.conversation not in held]
    return train, [element for element in elements if element.conversation in held]


def _ranked_prompt(
    tokenizer: PreTrainedTokenizerBase, task: RankingTask, rankings: Sequence[Ranking]
) -> RankedPrompt:
    return RankedPrompt(
        task=task.id,
        conversation=written_out(
            [*task.history, Turn("user", user_text(task.prompt, task.context))]
        ),
        prompt=tuple(conversation_ids(tokenizer, task)),
        responses=tuple(
            tuple(response_ids(tokenizer, response.text, ended=response.ended))
            for response in task.responses
        ),
        models=tuple(response.model for response in task.responses),
        annotators=tuple(ranking.annotator for ranking in rankings),
        ranks=tuple(
            tuple(ranking.ranks.get(response.id, 0) for response in task.responses)
            for ranking in rankings
        ),
    )
