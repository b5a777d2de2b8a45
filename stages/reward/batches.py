"""Rankings as the reward model's batch elements: a prompt, its K responses, all annotators' ranks.

A skipped ranking has no ranks and is not trained on, unless its reason is in `learn_from_skips`:
then the responses rated before the task was skipped are ordered by their ratings, equal ratings
tie, and the others have no rank. A prompt without a usable pair (all ties, all skipped) and one
that is too long are left out and counted.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from reward_models.conversations import Turn
from reward_models.records import JUDGE, Ranking, RankingTask, Use
from stages.data.template import conversation_ids, response_ids, user_text, written_out
from stages.reward.config import RewardConfig


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """One prompt with K ranks by each annotator: 1 = best, ties share a rank, 0 stands for none."""

    task: str
    conversation: str  # up to the response, as text: a split by prompt keeps equal ones together
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    models: tuple[str, ...]
    annotators: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    is_chosen: bool = False  # ranked early for what it tells: not held out, it is no fair sample

    @property
    def row_tokens(self) -> int:
        """Return the number of tokens where the prompt is computed once."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def path_tokens(self) -> int:
        """Return the number of tokens of the prompt with its longest response."""
        return len(self.prompt) + max(map(len, self.responses))

    @property
    def num_pairs(self) -> int:
        """Return the number of untied pairs over all annotators."""
        return sum(0 < a < b for row in self.ranks for a in row for b in row)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The rankings and tasks that cannot be trained on, counted."""

    skipped_rankings: int
    tasks_without_ranking: int
    tasks_without_pair: int
    tasks_too_long: int


@dataclass(frozen=True, slots=True)
class SplitRankings:
    """All elements in the order of their tasks, and the same split by prompt."""

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
    use: Use = "both",
) -> SplitRankings:
    """Return the `ranked_prompts` of a config, split alike in training and in PPO's check.

    What is held out is by people alone; `use` says whose rankings are trained on.
    """
    elements, left_out = ranked_prompts(
        tokenizer,
        tasks,
        rankings,
        max_tokens=config.max_tokens,
        learn_from_skips=config.learn_from_skips,
    )
    rng = random.Random(f"held out {seed}")
    train, held_out = split_by_prompt(elements, config.held_out, rng)
    train = ranked_for(train, use)
    if not train:
        raise ValueError(f"no ranking to train on is by {use}; labeling.use decides whose are")
    return SplitRankings(elements, train, ranked_for(held_out, "people"), left_out)


def ranked_for(elements: Sequence[RankedPrompt], use: Use) -> list[RankedPrompt]:
    """Return the elements with the ranks that count for this use, where they leave a pair."""
    if use == "both":
        return list(elements)
    return ranked_by(
        elements,
        {
            name
            for element in elements
            for name in element.annotators
            if name.startswith(JUDGE) == (use == "judges")
        },
    )


def ranked_by(elements: Sequence[RankedPrompt], annotators: set[str]) -> list[RankedPrompt]:
    """Return the elements with these annotators' ranks alone, where they leave a pair."""
    restricted = [
        replace(
            element,
            annotators=tuple(name for name in element.annotators if name in annotators),
            ranks=tuple(
                ranks
                for name, ranks in zip(element.annotators, element.ranks, strict=True)
                if name in annotators
            ),
        )
        for element in elements
    ]
    return [element for element in restricted if element.num_pairs]


def ranked_prompts(
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[RankingTask],
    rankings: Iterable[Ranking],
    *,
    max_tokens: int,
    learn_from_skips: Collection[str] = (),
) -> tuple[list[RankedPrompt], LeftOut]:
    """Return an element for each task that can be trained on, in the order of the tasks.

    Raises ValueError where two tasks have one id, where a ranking names an unknown task or does not
    rank its task's responses, and where nothing was skipped for a reason of `learn_from_skips`.
    """
    by_task: dict[str, RankingTask] = {}
    for task in tasks:
        if by_task.setdefault(task.id, task) is not task:
            raise ValueError(f"two tasks have the id '{task.id}'; rankings could mean either")
    ranked: dict[str, list[Ranking]] = defaultdict(list)
    rankings = list(rankings)
    for ranking in rankings:
        if ranking.task not in by_task:
            raise ValueError(
                f"'{ranking.annotator}' ranked task '{ranking.task}', which is not there"
            )
        ranking.check_against(by_task[ranking.task])
        if ranking.skipped in learn_from_skips:
            ranking = _ranked_by_ratings(ranking)
        if ranking.skipped is None:
            ranked[ranking.task].append(ranking)
    reasons = {ranking.skipped for ranking in rankings if ranking.skipped is not None}
    if unused := set(learn_from_skips) - reasons:
        raise ValueError(
            f"learn_from_skips names '{min(unused)}', for which nothing was skipped; found "
            f"{sorted(reasons)}"
        )
    with_ranks = [
        _ranked_prompt(tokenizer, task, ranked[name])
        for name, task in by_task.items()
        if name in ranked
    ]
    with_pair = [element for element in with_ranks if element.num_pairs]
    usable = [element for element in with_pair if element.path_tokens <= max_tokens]
    left_out = LeftOut(
        skipped_rankings=len(rankings) - sum(map(len, ranked.values())),
        tasks_without_ranking=len(by_task) - len(with_ranks),
        tasks_without_pair=len(with_ranks) - len(with_pair),
        tasks_too_long=len(with_pair) - len(usable),
    )
    return usable, left_out


def _ranked_by_ratings(skipped: Ranking) -> Ranking:
    """Return the ranking that a skipped task's ratings make; itself where they order nothing."""
    levels = sorted(set(skipped.ratings.values()), reverse=True)
    if len(levels) < 2:
        return skipped
    ranks = {name: levels.index(rating) + 1 for name, rating in skipped.ratings.items()}
    return replace(skipped, ranks=ranks, skipped=None)


def split_by_prompt(
    elements: Sequence[RankedPrompt], share: float, rng: random.Random
) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
    """Return (train, held out), no prompt in both; a share above 0 holds out at least one.

    Prompts that judges alone have ranked are not held out, nor those that were chosen.
    """
    by_people = ranked_for(elements, "people")
    chosen = {element.conversation for element in elements if element.is_chosen}
    num_ranked = len({element.conversation for element in by_people})
    prompts = sorted({element.conversation for element in by_people} - chosen)
    rng.shuffle(prompts)
    num_held = min(max(round(share * num_ranked), 1), len(prompts)) if share > 0 else 0
    num_prompts = len({element.conversation for element in elements})
    if num_held >= num_prompts:
        raise ValueError(
            f"{num_prompts} prompts with a usable ranking, {num_held} of them held out: "
            "none to train on"
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
        is_chosen=task.extra.get("drawn") == "chosen",
    )
