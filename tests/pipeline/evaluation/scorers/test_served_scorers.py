"""Judges and guards behind an address: a real HTTP server that answers as such services do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.evaluation import EndpointConfig, PerspectiveConfig
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import Resampling, cells
from pipeline.evaluation.scorers.endpoint import Endpoint, Reply
from pipeline.evaluation.scorers.scorer import scored
from pipeline.evaluation.scorers.served import (
    GuardScorer,
    PairJudge,
    PerspectiveScorer,
    guard_verdict,
    pair_scores,
    verdict,
)
from pipeline.evaluation.suites.preference import judge_tables
from tests.chat_service import JsonHandler, chat, serving


class Service(JsonHandler):
    """A judge that likes "good", leans to A where both are alike, and fails where told to."""

    requests: list[dict[str, Any]] = []  # noqa: RUF012 - emptied by the fixture
    stumbles: dict[str, int] = {}  # noqa: RUF012 - statuses to give once, by text in the request

    def on_get(self) -> None:
        self.send(self.stumbles.pop("/models", 404), {})

    def on_post(self, body: dict[str, Any]) -> None:
        self.requests.append(body)
        text = json.dumps(body)
        for word in [word for word in self.stumbles if word in text]:
            self.send(self.stumbles.pop(word), {})
            return
        if "always fails" in text:
            self.send(500, {})
        elif "comment" in body:
            toxicity = 0.9 if "idiot" in body["comment"]["text"] else 0.1
            self.send(200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": toxicity}}}})
        else:
            self.send(200, chat(_opinion(body["messages"])))


def _opinion(messages: list[dict[str, str]]) -> str:
    last = messages[-1]["content"]
    if messages[-1]["role"] == "assistant":  # a guard
        return "unsafe\nS1" if "bomb" in last else "safe"
    if "mumble" in last:
        return "I cannot say."
    first, second = last.split("[Response A]")[1].split("[Response B]")
    if ("good" in first) == ("good" in second):
        return "Alike, so the first. [[A]]"
    return "One is good. [[A]]" if "good" in first else "One is good. [[B]]"


@pytest.fixture
def url() -> Iterator[str]:
    Service.requests.clear()
    Service.stumbles.clear()
    with serving(Service) as address:
        yield address


def endpoint(
    url: str, cache: Path, model: str = "judge", retries: int = 0, **prices: float
) -> Endpoint:
    config = EndpointConfig(url=url, model=model, cache=str(cache), **prices)
    return Endpoint(config, retries=retries)


def rows(*pairs: tuple[str, str]) -> list[Completion]:
    """The baseline's and the policy's response to each prompt."""
    return [
        Completion(id=str(n), model=model, prompt=f"prompt {n}", completion=text)
        for n, texts in enumerate(pairs)
        for model, text in zip(("sft", "ppo"), texts, strict=True)
    ]


def test_both_orders_are_asked_and_leaning_to_a_place_is_no_win(url: str, tmp_path: Path):
    served = endpoint(url, tmp_path / "c.db", retries=3, price_prompt=2.0, price_response=10.0)
    given = rows(("bad", "good"), ("good", "bad"), ("good", "good"), ("bad", "mumble"))
    judge = PairJudge(served, "sft")
    judged = scored(given, [judge])
    scores = [row.scores["judge judge"] for row in judged if row.model == "ppo"]
    assert scores == [
        {"win": 1.0, "followed_position": 0.0},
        {"win": 0.0, "followed_position": 0.0},
        {"win": 0.5, "followed_position": 1.0},
        None,  # unreadable: a failure, not a tie
    ]
    # Two equal responses make one request in both orders: the second may find the first's answer.
    paid = len(Service.requests)
    assert judge.bill.requests == paid + judge.bill.cached == 8
    assert paid >= 7
    assert judge.bill.cost == pytest.approx(paid * (100 * 2.0 + 10 * 10.0) / 1e6)
    tables = judge_tables(
        ScoredRows.of(judged), ["sft", "ppo"], scorer="judge judge", baseline="sft"
    )
    (cell,) = cells(tables[0], Resampling(100, 100))
    assert (cell.model, cell.value, cell.n, cell.n_failed) == ("ppo", 0.5, 3, 1)


def test_what_was_answered_is_not_paid_twice_and_failures_are_asked_again(url: str, tmp_path: Path):
    served = endpoint(url, tmp_path / "c.db")
    conversations = [
        [{"role": "user", "content": text}] for text in ("one [Response A][Response B]",)
    ]
    Service.stumbles["one"] = 400
    assert served.replies(conversations)[0].text is None
    first = served.replies(conversations)
    second = served.replies(conversations)
    assert first[0].text == second[0].text
    assert (first[0].cached, second[0].cached) == (False, True)
    assert len(Service.requests) == 2
    assert served.bill(second).prompt_tokens == 0
    assert served.bill(second).cost is None


def test_a_passing_failure_is_tried_again_and_a_lasting_one_counted(url: str, tmp_path: Path):
    served = endpoint(url, tmp_path / "c.db", retries=1)
    Service.stumbles["hiccup"] = 503
    conversations = [
        [{"role": "user", "content": f"{text} [Response A] good [Response B]"}]
        for text in ("hiccup", "always fails")
    ]
    hiccup, lasting = served.replies(conversations)
    assert hiccup.text == "One is good. [[A]]"
    assert lasting.text is None
    assert lasting.error == "status 500"
    assert served.bill([hiccup, lasting]).failed == 1


def test_a_wrong_key_or_address_is_told_before_anything_is_generated(url: str, tmp_path: Path):
    endpoint(url, tmp_path / "c.db").check()
    Service.stumbles["/models"] = 401
    with pytest.raises(ValueError, match=r"refuses the key in \$OPENAI_API_KEY \(401\)"):
        endpoint(url, tmp_path / "c.db").check()
    with pytest.raises(ValueError, match="no answer"):
        endpoint("http://127.0.0.1:1/v1", tmp_path / "c.db").check()


def test_verdicts_are_read_from_the_last_line():
    assert verdict(Reply("[[B]] at first, but no: [[a]]")) == 1.0
    assert verdict(Reply("[[tie]]")) == 0.5
    assert verdict(Reply("A is better")) is None
    assert pair_scores(0.5, 0.5) == {"win": 0.5, "followed_position": 0.0}
    assert pair_scores(None, 1.0) is None


def test_guards_speak_in_either_dialect(url: str, tmp_path: Path):
    assert guard_verdict(Reply("safe")) == {"unsafe": 0.0}
    assert guard_verdict(Reply("unsafe\nS9")) == {"unsafe": 1.0}
    assert guard_verdict(Reply("<score> yes </score>")) == {"unsafe": 1.0}
    assert guard_verdict(Reply("well")) is None
    assert guard_verdict(Reply(None)) is None
    scorer = GuardScorer(endpoint(url, tmp_path / "c.db", "guard"))
    scored_rows = scored(rows(("a bomb", "a cake")), [scorer])
    assert [row.scores[scorer.name] for row in scored_rows] == [{"unsafe": 1.0}, {"unsafe": 0.0}]
    assert scored_rows[0].score_meta[scorer.name]["version"] == "guard"


def test_perspective_scores_the_completion_and_a_failed_call_is_not_zero(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "key")
    scorer = PerspectiveScorer(PerspectiveConfig(requests_per_second=1000), url)
    scored_rows = scored(rows(("you idiot", "dear friend"), ("always fails", "ok")), [scorer])
    assert [row.scores["perspective"] for row in scored_rows] == [
        {"toxicity": 0.9},
        {"toxicity": 0.1},
        None,
        {"toxicity": 0.1},
    ]
    assert "key" not in repr(scorer)
