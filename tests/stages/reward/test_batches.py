"""Rankings become batch elements: nothing usable is lost, and what is not usable is counted."""

import random

import pytest

from reward_models.ranking_loss import count_elements, pair_weights
from reward_models.records import Ranking, RankingTask, Response
from stages.reward.batches import LeftOut, RankedPrompt, ranked_prompts, split_by_prompt
from stages.reward.shared_prompt import SharedPrompt
from stages.reward.trainer import BLANK, RankedPromptDataset, SortedWithinBatches
from tests.reward_models.tiny import tiny_rankings, tiny_tasks, tiny_tokenizer


def task(name: str, prompt: str = "w1 w2", **sampling: object) -> RankingTask:
    texts = ["w3", "w4 w5", "w6 w7 w8"]
    responses = [Response(f"r{k}", text, "sft", sampling) for k, text in enumerate(texts)]
    return RankingTask(name, prompt, tuple(responses))


def ranking(name: str, ranks: list[int], annotator: str = "ann", **more: str) -> Ranking:
    given = {f"r{index}": rank for index, rank in enumerate(ranks)}
    return Ranking(name, annotator, "human", given, **more)  # type: ignore[arg-type]


def built(
    tasks: list[RankingTask], rankings: list[Ranking], max_tokens: int = 64
) -> tuple[list[RankedPrompt], LeftOut]:
    return ranked_prompts(tiny_tokenizer(), tasks, rankings, max_tokens=max_tokens)


def test_several_annotators_of_a_prompt_are_one_element() -> None:
    [element], _ = built([task("t")], [ranking("t", [1, 2, 3]), ranking("t", [2, 1, 1], "ben")])
    assert element.ranks == ((1, 2, 3), (2, 1, 1))
    assert element.annotators == ("ann", "ben")
    assert element.num_pairs == 3 + 2


def test_ranks_follow_the_task_s_order_of_responses_not_the_ranking_s() -> None:
    given = Ranking("t", "ann", "human", {"r2": 1, "r0": 3, "r1": 2})
    [element], _ = built([task("t")], [given])
    assert element.ranks == ((3, 2, 1),)


@pytest.mark.parametrize("written", [{"finish_reason": "length"}, {"ended": False}])
@pytest.mark.parametrize("whole", [{}, {"finish_reason": "stop"}, {"finish_reason": "eos"}])
def test_a_response_that_ended_ends_with_eos_and_one_that_did_not_does_not(
    written: dict[str, object], whole: dict[str, object]
) -> None:
    ranks = [ranking("t", [1, 2, 3])]
    [ended], _ = built([task("t", **whole)], ranks)
    [cut], _ = built([task("t", **written)], ranks)
    assert ended.responses == tuple((*response, 1) for response in cut.responses)


def test_what_cannot_be_learnt_from_is_counted() -> None:
    tasks = [task(name) for name in ("good", "tied", "skipped", "unranked")]
    tasks.append(task("long", "w1 " * 40))
    rankings = [
        ranking("good", [1, 2, 3]),
        ranking("tied", [1, 1, 1]),
        Ranking("skipped", "ann", "human", {}, skipped="unclear"),
        ranking("long", [1, 2, 3]),
    ]
    elements, left_out = built(tasks, rankings, max_tokens=30)
    assert [element.task for element in elements] == ["good"]
    assert left_out == LeftOut(
        skipped_rankings=1, tasks_without_ranking=2, tasks_without_pair=1, tasks_too_long=1
    )


def test_a_ranking_of_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'ann' ranked task 'u', which"):
        built([task("t")], [ranking("u", [1, 2, 3])])


def test_fewer_ranks_than_responses_are_refused() -> None:
    with pytest.raises(ValueError, match="3 responses but 2 ranks for prompt 'w1 w2'"):
        built([task("t")], [ranking("t", [1, 2])])


def test_no_prompt_is_both_learnt_from_and_held_out() -> None:
    rng = random.Random(0)
    tasks = tiny_tasks(40, rng)
    twice = tasks + [RankingTask("again " + one.id, one.prompt, one.responses) for one in tasks]
    elements, _ = built(twice, tiny_rankings(twice, ["ann"], rng))
    train, held = split_by_prompt(elements, 0.25, random.Random(0))
    assert len(train) + len(held) == len(elements)
    assert not {one.conversation for one in train} & {one.conversation for one in held}
    assert len({one.conversation for one in held}) == round(
        0.25 * len({one.conversation for one in elements})
    )


def test_the_split_depends_on_the_seed_alone_not_on_the_order_of_tasks() -> None:
    rng = random.Random(0)
    tasks = tiny_tasks(20, rng)
    elements, _ = built(tasks, tiny_rankings(tasks, ["ann"], rng))
    _, held = split_by_prompt(elements, 0.3, random.Random(5))
    _, again = split_by_prompt(elements[::-1], 0.3, random.Random(5))
    assert {one.task for one in held} == {one.task for one in again}


def test_a_share_of_zero_holds_out_nothing_and_all_held_out_is_refused() -> None:
    rng = random.Random(0)
    tasks = tiny_tasks(6, rng)
    elements, _ = built(tasks, tiny_rankings(tasks, ["ann"], rng))
    assert split_by_prompt(elements, 0.0, random.Random(0)) == (elements, [])
    with pytest.raises(ValueError, match="none to train on"):
        split_by_prompt(elements, 1.0, random.Random(0))


def test_every_epoch_visits_each_prompt_once_sorted_inside_its_batches() -> None:
    lengths = [random.Random(index).randrange(100) for index in range(21)]
    sampler = SortedWithinBatches(lengths, 8, seed=0, multiple_of=1)
    first = list(sampler)
    assert sorted(first) == list(range(21))
    for start in range(0, 21, 8):
        inside = [lengths[index] for index in first[start : start + 8]]
        assert inside == sorted(inside)
    sampler.epoch = 1
    assert set(list(sampler)[:8]) != set(first[:8])


def test_the_last_batch_of_several_ranks_is_filled_with_blanks_that_weigh_nothing() -> None:
    [element], _ = built([task("t")], [ranking("t", [1, 2, 3])])
    elements = RankedPromptDataset([element] * 5)
    order = list(SortedWithinBatches([3] * 5, 4, seed=0, multiple_of=4))
    assert sorted(order) == [BLANK] * 3 + list(range(5))
    batch = SharedPrompt().collate([elements[index] for index in order[4:]])
    weight_BKK = pair_weights(batch["rank_BAK"], "prompt")
    assert weight_BKK.sum((1, 2)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert count_elements(batch["rank_BAK"], "prompt") == 1


ASIDE = "Upsetting content"


def skip(ratings: dict[str, int], reason: str = ASIDE, annotator: str = "s") -> Ranking:
    return Ranking("t0", annotator, "human", {}, ratings=ratings, skipped=reason)


def test_what_was_rated_before_a_skip_is_ordered_by_its_ratings_where_its_reason_is_named() -> None:
    tasks = tiny_tasks(1, random.Random(0))
    names = [response.id for response in tasks[0].responses]
    rated = skip({names[0]: 2, names[2]: 6})
    usable, left_out = ranked_prompts(
        tiny_tokenizer(), tasks, [rated], max_tokens=64, learn_from_skips=[ASIDE]
    )
    assert [one.ranks for one in usable] == [((2, 0, 1) + (0,) * (len(names) - 3),)]
    assert usable[0].num_pairs == 1
    assert left_out.skipped_rankings == 0
    weight_KK = pair_weights(SharedPrompt().collate(usable)["rank_BAK"], "prompt")[0]
    assert weight_KK.nonzero().tolist() == [[2, 0]]


def test_a_skip_teaches_nothing_by_default_for_another_reason_or_without_two_ratings() -> None:
    tasks = tiny_tasks(1, random.Random(0))
    names = [response.id for response in tasks[0].responses]
    plain = skip({names[0]: 2, names[1]: 6})
    equal = skip({names[0]: 4, names[1]: 4}, annotator="e")
    other = skip({names[0]: 1, names[1]: 7}, "Not my language", "o")
    assert ranked_prompts(tiny_tokenizer(), tasks, [plain], max_tokens=64)[0] == []
    usable, left_out = ranked_prompts(
        tiny_tokenizer(), tasks, [equal, other], max_tokens=64, learn_from_skips=[ASIDE]
    )
    assert (usable, left_out.skipped_rankings) == ([], 2)


def test_a_reason_for_which_nothing_was_skipped_is_refused() -> None:
    tasks = tiny_tasks(1, random.Random(0))
    with pytest.raises(ValueError, match="learn_from_skips names 'Broken', for which nothing"):
        ranked_prompts(
            tiny_tokenizer(), tasks, [skip({})], max_tokens=64, learn_from_skips=["Broken"]
        )
