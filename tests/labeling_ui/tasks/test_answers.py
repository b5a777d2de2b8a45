"""The page's answer becomes the ranking it means, or one clear line."""

from pathlib import Path

import pytest

from labeling_ui.forms import Form, default_form, load_form
from labeling_ui.tasks.answers import Answers, parse, ranking_from
from labeling_ui.web.room import answer_view
from reward_models.records import Ranking
from tests.labeling_ui.examples import small_task

CONFIGS = Path(__file__).parents[3] / "configs" / "labeling"
ORDER = ("c", "a", "d", "b")
FULL = {"tiers": [[1], [], [0, 2], [3]], "ratings": {"0": 5, "1": 7, "2": 5, "3": 1}}


def read(body: dict[str, object], form: Form | None = None) -> Ranking:
    answers = parse(Answers, body)
    return ranking_from(form or default_form(), answers, small_task("t"), ORDER, "ada")


def test_numbers_in_the_order_shown_become_ranks_of_responses() -> None:
    ranking = read(FULL)
    assert ranking.ranks == {"a": 1, "c": 2, "d": 2, "b": 3}
    assert ranking.ratings == {"c": 5, "a": 7, "d": 5, "b": 1}
    assert ranking.shown_order == list(ORDER)
    assert ranking.kind == "human"
    assert ranking.extra["form"] == "instructgpt 1"


def test_unanswered_is_neither_yes_nor_no() -> None:
    flags = {"0": {"hallucination": True, "sexual": False, "violent": None}}
    ranking = read({**FULL, "flags": flags, "prompt_flags": {"closed_domain": True, "x": None}})
    assert ranking.flags == {"c": ["hallucination"]}
    assert ranking.extra["flags_no"] == {"c": ["sexual"]}
    assert ranking.extra["prompt_flags"] == {"closed_domain": True}


def test_an_answer_opened_again_says_what_it_said() -> None:
    body = {**FULL, "flags": {"2": {"hallucination": True, "sexual": False}}, "note": "n"}
    first = read({**body, "notes": {"1": "so so"}})
    assert read(answer_view("ranking", first.to_json(), ORDER)) == Ranking.from_json(
        {**first.to_json(), "seconds": 0.0}
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tiers": [[0, 1, 2]]}, "3 of 4 outputs are ranked"),
        ({"tiers": [[0, 1, 2, 2]]}, "3 of 4 outputs are ranked"),
        ({"tiers": [[0, 1, 2, 7]]}, "4 of 4 outputs are ranked|outputs"),
        ({"ratings": {"0": 5}}, "every output needs a quality"),
        ({"ratings": {"0": 9, "1": 1, "2": 1, "3": 1}}, "expected 1 to 7"),
        ({"flags": {"0": {"nonsense": True}}}, "nonsense"),
        ({"notes": {"0": "x" * 1_000_000}}, "notes.0"),
        ({"models": "which?"}, "models"),
        ({"seconds": -1}, "seconds"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        read({**FULL, **change})
    assert "\n" not in str(caught.value)


def test_a_skip_needs_a_reason_and_nothing_else() -> None:
    ranking = read({"skipped": "upsetting"})
    assert (ranking.skipped, ranking.ranks) == ("upsetting", {})
    with pytest.raises(ValueError, match="skipped"):
        read({"skipped": ""})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_forms_that_ship_are_in_order(path: Path) -> None:
    assert load_form(path).name == path.stem


def test_the_papers_form_asks_eleven_questions_of_each_kind() -> None:
    assert (len(default_form().flags), len(default_form().prompt_flags)) == (11, 11)


def test_the_toxicity_form_wants_each_of_its_scales() -> None:
    form = load_form(CONFIGS / "toxicity.yaml")
    whole = {"toxicity": 0, "relative_toxicity": -1, "continuity": 7}
    body = {
        "tiers": [[0, 1, 2, 3]],
        "scales": {str(i): whole for i in range(4)},
        "prompt_scales": {"prompt_toxicity": 2},
    }
    assert read(body, form).extra["scales"]["a"] == whole
    with pytest.raises(ValueError, match="Toxicity of the input"):
        read({**body, "prompt_scales": {}}, form)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "not YAML"),
        ("name: x\nflag: []", "flag: Extra inputs"),
        ("name: x\nflags: [{id: a, text: A, key: n}]", "key 'n' is used twice"),
        ("name: x\nflags: [{id: a, text: A}, {id: a, text: B}]", "'a' is asked twice"),
        ("name: x\nscales: [{id: a, text: A, lowest: 3, highest: 3}]", "from 3 to 3"),
    ],
)
def test_a_form_with_a_mistake_names_file_and_key(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "form.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_form(path)
    assert str(caught.value).startswith(f"{path}: ")
