"""K distinct outputs to a prompt: how many, from whom, and what becomes of near-duplicates."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import ClassVar

import pytest
import torch

from pipeline.steps.sample import LIKENESS, is_near_duplicate, sample_tasks
from reward_models.records import Prompt, RankingTask
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled
from stages.progress import Report, Step, silent

PROMPTS = [Prompt(f"Say {number}.", user=f"u{number}") for number in range(60)]
WARM = SamplingConfig(temperature=1.0)
HOT = SamplingConfig(temperature=1.5)


class Words:
    """A tokenizer and policy in one: ids are characters; outputs come from a list of phrases."""

    chat_template = None
    eos_token_id = 0
    name_or_path = "words"
    special_tokens_map: ClassVar[dict[str, str]] = {}
    added_tokens_decoder: ClassVar[dict[int, str]] = {}
    init_kwargs: ClassVar[dict[str, str]] = {}
    all_special_tokens: ClassVar[list[str]] = []

    def __init__(self, phrases: Sequence[str]) -> None:
        self.phrases = phrases

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:  # noqa: ARG002
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(map(chr, ids))

    def __len__(self) -> int:
        return 0x110000

    def num_special_tokens_to_add(self) -> int:
        return 0


def draw(
    model: Words,
    _: Words,
    prompts: Sequence[list[int]],
    setting: SamplingConfig,
    *,
    generator: torch.Generator,
    report: Report,
) -> list[Sampled]:
    """Stands in for decoding: a phrase at random; a hot setting adds an exclamation in words."""
    rng = Random(int(torch.randint(2**31, (), generator=generator)))
    report(Step(len(prompts), len(prompts)))
    texts = [rng.choice(model.phrases) + " indeed" * (setting.temperature > 1) for _ in prompts]
    return [Sampled([ord(letter) for letter in text] + [0], True) for text in texts]


@pytest.fixture(autouse=True)
def policies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Words]:
    """Policies by name, for the loaders to find."""
    policies_by_name = {
        "many": Words([f"answer number {number}" for number in range(500)]),
        "three": Words(["yes", "no", "perhaps"]),
        "one": Words(["only this"]),
    }
    monkeypatch.setattr("stages.models.load_policy", lambda name, **_: policies_by_name[name])
    monkeypatch.setattr("stages.models.load_tokenizer", lambda name: policies_by_name[name])
    monkeypatch.setattr("stages.models.to_device", lambda *_: None)
    monkeypatch.setattr("stages.generation.generate.generate_responses", draw)
    return policies_by_name


def tasks(*names: str, **changes: object) -> list[RankingTask]:
    chosen = {"responses": (4, 9), "settings": [WARM], "seed": 0, "report": silent, **changes}
    return sample_tasks(PROMPTS, {name: name for name in names}, **chosen)


def test_k_takes_every_value_of_its_range_equally_often():
    sizes = Counter(len(task.responses) for task in tasks("many"))
    assert sizes == dict.fromkeys(range(4, 10), 10)


def test_no_task_holds_two_outputs_that_are_alike():
    for task in tasks("three", settings=[WARM, HOT]):
        texts = [response.text for response in task.responses]
        for number, text in enumerate(texts):
            assert not is_near_duplicate(text, texts[:number], LIKENESS)


def test_a_policy_with_three_answers_fills_three_places_and_says_what_it_dropped():
    steps: list[Step] = []
    made = tasks("three", report=steps.append)
    assert {len(task.responses) for task in made} <= {2, 3}
    assert steps[-1].metrics["sample/tasks_below_k"] == len(made)
    assert steps[-1].metrics["sample/near_duplicates"] > 0
    assert steps[-1].done == steps[-1].total == sum(range(4, 10)) * 10


@pytest.mark.parametrize("names", [("three",), ("three", "one", "many"), ("one", "three")])
def test_progress_never_runs_backwards_while_outputs_are_drawn_again(names: tuple[str, ...]):
    steps: list[Step] = []
    tasks(*names, report=steps.append, settings=[WARM, HOT])
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert {step.total for step in steps} == {sum(range(4, 10)) * 10}
    assert steps[-1].done == steps[-1].total
    assert any("near-duplicates again" in step.doing for step in steps)


def test_near_duplicates_are_replaced_by_the_next_setting():
    sizes = [len(task.responses) for task in tasks("three", settings=[WARM, HOT])]
    assert max(sizes) > 3  # three phrases, and three more with the hot setting


def test_a_place_that_one_policy_cannot_fill_goes_to_the_next():
    made = tasks("one", "many", responses=(4, 4))
    assert all(len(task.responses) == 4 for task in made)
    assert all([r.model for r in task.responses].count("one") == 1 for task in made)


def test_every_policy_and_setting_gets_the_same_share_of_places():
    made = tasks("many", "three", responses=(2, 2), settings=[WARM, HOT])
    models = Counter(response.model for task in made for response in task.responses)
    heats = Counter(
        response.sampling["temperature"] for task in made for response in task.responses
    )
    assert abs(models["many"] - models["three"]) <= 2
    assert abs(heats[1.0] - heats[1.5]) <= 4


def test_a_prompt_with_one_answer_is_dropped_and_a_set_without_any_is_an_error():
    with pytest.raises(ValueError, match="none of 60 prompts got two distinct outputs"):
        tasks("one")


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others():
    first, second, other = tasks("many"), tasks("many"), tasks("many", seed=1)
    assert first == second
    assert [t.id for t in first] == [t.id for t in other]
    assert [r.text for r in first[0].responses] != [r.text for r in other[0].responses]


def test_ids_are_unique_even_where_a_prompt_comes_twice():
    twice = sample_tasks(
        [PROMPTS[0], PROMPTS[0]],
        {"many": "many"},
        responses=(4, 4),
        settings=[WARM],
        seed=0,
        report=silent,
    )
    assert len({task.id for task in twice}) == 2
    assert len({response.id for task in twice for response in task.responses}) == 8


def test_each_output_records_how_it_was_drawn():
    response = tasks("many", settings=[HOT])[0].responses[0]
    assert response.model == "many"
    assert response.sampling["temperature"] == 1.5
    assert response.sampling["finish_reason"] == "stop"
    assert response.ended
    assert response.sampling["stream"] == "0/0/0/0"


def test_nothing_to_sample_from_is_said():
    with pytest.raises(ValueError, match="at least one prompt, one policy and one setting"):
        tasks("many", settings=[])


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("the cat sat.", True),
        ("The  CAT sat!", True),
        ("The cat sits.", False),
        ("the cat", False),
        ("", False),
    ],
)
def test_likeness_is_about_words(text, alike):
    assert is_near_duplicate(text, ["The cat sat."], 0.95) is alike


def test_texts_without_words_are_compared_as_they_are():
    assert not is_near_duplicate(":-)", [":-("], 0.95)
    assert is_near_duplicate("", [" "], 0.95)


def test_one_word_of_a_long_answer_makes_no_other_answer_but_one_of_a_short_does():
    long = " ".join(f"w{number}" for number in range(40))
    assert is_near_duplicate(long + " more", [long + " less"], 0.95)
    assert not is_near_duplicate("born in 1907", ["born in 1908"], 0.95)
