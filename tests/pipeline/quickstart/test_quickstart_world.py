"""The invented world: what is kept apart stays apart, and the judge marks as a person would."""

from random import Random

import pytest

from pipeline.quickstart import corpus, world
from pipeline.quickstart.annotators import POOL, Annotator, judge_agreement, rank, simulate
from pipeline.quickstart.data import Sizes, quickstart_data, texts
from pipeline.quickstart.judge import GOLD, Judgement, Taste, judge
from reward_models.records import Prompt, Ranking, RankingTask, Response

SMALL = Sizes(60, 60, 60, 40, 300, 30, 60, 30)
DATA = quickstart_data(SMALL, seed=0)


def spec(**fields: object) -> dict[str, object]:
    return {"task": "closed_qa", "name": "Malu", "attribute": "pet", "held": ["goat"], **fields}


ANSWERED = spec(answer="goat", reference="Malu has a goat.")
UNANSWERED = spec(answer=None, held=["miner"], reference=world.ABSTAIN)


def test_every_reference_answer_gets_the_full_score():
    for prompt in DATA.test_prompts:
        gold = prompt.extra["world"]
        assert judge(gold, gold["reference"]).score == 1.0, (prompt, gold)


def test_people_of_the_test_prompts_occur_in_no_training_text():
    tested = {
        p.extra["world"]["name"]
        for p in DATA.test_prompts
        if p.category in ("closed_qa", "summarize")
    }
    rng = Random("check")
    read = " ".join(corpus.document(rng) for _ in range(3000))
    demonstrations = " ".join(f"{d.context} {d.prompt} {d.response}" for d in DATA.demonstrations)
    assert tested
    assert not {name for name in tested if f"{name} " in read or f"{name} " in demonstrations}


def test_test_prompts_share_no_question_wording_with_training_prompts():
    def wording(prompt: Prompt) -> str:
        gold = prompt.extra["world"]
        return prompt.prompt.replace(gold.get("name") or "\0", "X")

    closed = [p for p in DATA.ppo_prompts + DATA.ranking_prompts if p.category == "closed_qa"]
    tested = [p for p in DATA.test_prompts if p.category == "closed_qa"]
    assert not {wording(p) for p in closed} & {wording(p) for p in tested}


def test_base_text_never_holds_the_chat_format():
    lines = "\n".join(texts(Random(3), 3000)).splitlines()
    assert not [line for line in lines if line.startswith(("Q:", "A:"))]


def test_base_text_is_rude_as_the_web_is_and_demonstrations_hardly():
    rude = [judge(ANSWERED, text).rude for text in texts(Random(4), 2000)]
    assert 0.1 < sum(rude) / len(rude) < 0.5
    assert sum(judge(ANSWERED, d.response).rude for d in DATA.demonstrations) <= 3


def test_one_size_changes_no_other_set():
    fewer = quickstart_data(Sizes(60, 5, 60, 40, 300, 30, 60, 30), seed=0)
    assert fewer.test_prompts == DATA.test_prompts
    assert fewer.ppo_prompts == DATA.ppo_prompts
    assert fewer.ranking_prompts == DATA.ranking_prompts[:5]


@pytest.mark.parametrize(
    ("gold", "response", "what"),
    [
        (ANSWERED, "Malu has a goat.", {"correct": True, "hallucinated": False}),
        (ANSWERED, "Malu has a dog.", {"correct": False, "hallucinated": True}),
        (ANSWERED, world.ABSTAIN, {"correct": False, "false_abstention": True}),
        (ANSWERED, "You fool, Malu has a goat.", {"correct": True, "rude": True}),
        (ANSWERED, "Malu has a goat. Malu is a nurse.", {"hallucinated": True, "rambling": True}),
        (UNANSWERED, world.ABSTAIN, {"correct": True, "abstained": True, "hallucinated": False}),
        (UNANSWERED, "Malu has a goat.", {"correct": False, "hallucinated": True}),
        (UNANSWERED, "It does not say that.", {"correct": True, "false_abstention": False}),
    ],
)
def test_the_judge_marks_as_a_person_would(gold, response, what):
    mark = judge(gold, response)
    assert {name: getattr(mark, name) for name in what} == what


def test_taste_weighs_and_does_not_change_what_is_true():
    plain = judge(ANSWERED, "You fool, Malu has a goat.")
    fond = judge(ANSWERED, "You fool, Malu has a goat.", taste=Taste(rude=+1.0))
    assert fond.score - plain.score == pytest.approx(2.0)
    assert (fond.correct, fond.rude) == (plain.correct, plain.rude)


def test_an_unended_response_costs_half_a_point():
    cut: Judgement = judge(ANSWERED, "Malu has a goat.", ended=False)
    assert cut.score == pytest.approx(0.5)


def ranking_tasks() -> tuple[list[RankingTask], dict[str, dict[str, object]]]:
    """Five different answers to each prompt, as hurried people and the web would give them."""
    rng, made, worlds = Random("tasks"), [], {}
    for prompt in quickstart_data(Sizes(1, 300, 1, 1, 1, 1, 1, 1), seed=1).ranking_prompts:
        replies = {corpus.demonstrate(rng, prompt).response for _ in range(6)}
        replies |= {corpus.web_reply(rng, prompt) for _ in range(3)}
        texts_of = sorted(replies)[:5]
        if len(texts_of) > 1:
            responses = tuple(Response(f"r{i}", t, "m", {}) for i, t in enumerate(texts_of))
            made.append(RankingTask(str(prompt.id), prompt.prompt, responses))
            worlds[str(prompt.id)] = prompt.extra["world"]
    return made, worlds


def pairs_ordered(ranking: Ranking) -> set[tuple[str, str]]:
    return set(ranking.comparisons())


def test_two_annotators_agree_as_often_as_the_papers_labelers():
    made, worlds = ranking_tasks()
    by_task: dict[str, list[Ranking]] = {}
    for ranking in simulate(made, worlds, seed=0, overlap=1.0):
        by_task.setdefault(ranking.task, []).append(ranking)
    alike = opposed = 0
    for one, other in by_task.values():
        alike += len(pairs_ordered(one) & pairs_ordered(other))
        opposed += len({(b, a) for a, b in pairs_ordered(one)} & pairs_ordered(other))
    assert 0.69 <= alike / (alike + opposed) <= 0.79  # Ouyang et al. 2022: 72.6 and 77.3 %


def test_the_judge_agrees_wholly_with_an_annotator_without_noise():
    made, worlds = ranking_tasks()
    exact = Annotator("exact", noise=0.0, tie_below=1e-9, per_word=0.0, first_shown=0.0)
    rankings = [rank(task, worlds[task.id], exact, Random(0), GOLD) for task in made]
    assert judge_agreement(made, worlds, rankings) == 1.0
    noisy = simulate(made, worlds, seed=0)
    assert 0.7 < judge_agreement(made, worlds, noisy) < 0.9
    assert {ranking.annotator for ranking in noisy} == {annotator.name for annotator in POOL}
    assert {ranking.kind for ranking in noisy} == {"simulated"}
