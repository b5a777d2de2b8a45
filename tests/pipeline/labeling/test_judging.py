"""Models that rank beside people: their leanings are reported, and nobody takes them for people."""

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from labeling_ui.reports.judges import kappa
from labeling_ui.reports.quality import report
from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from pipeline.cli.app import app
from pipeline.labeling.judging import LETTERS, combined_ranks, verdict
from reward_models.records import Ranking, RankingTask, Response, read_records
from tests.chat_service import JsonHandler, chat, serving


class Service(JsonHandler):
    """A served model that prefers the first or the longer response, by the name it is called by."""

    requests: list[dict[str, Any]] = []  # noqa: RUF012 - emptied by the fixture

    def on_post(self, body: dict[str, Any]) -> None:
        self.requests.append(body)
        parts = body["messages"][-1]["content"].split("[Response ")[1:]
        texts = {part[0]: part[3:].strip() for part in parts}
        if any("mumble" in text for text in texts.values()):
            return self.send(200, chat("I cannot say."))
        order = list(texts)
        if body["model"] == "longer":
            order.sort(key=lambda letter: -len(texts[letter].split()))
        if body["model"] == "good":
            order.sort(key=lambda letter: -int(texts[letter].split()[0]))
        return self.send(200, chat(f"Because. [[{' > '.join(order)}]]"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(Service) as url:
        yield url


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Forty tasks of four outputs, of which a person likes those that begin with a high number."""
    rng, tasks, rankings = random.Random(5), [], []
    for number in range(40):
        values = rng.sample(range(1, 10), 4)
        texts = [" ".join([str(value)] + ["word"] * rng.randrange(1, 30)) for value in values]
        outputs = [Response(i, text, "m", {}) for i, text in zip("wxyz", texts, strict=True)]
        tasks.append(RankingTask(f"t{number}", f"prompt {number}", tuple(outputs)))
        ranks = {
            i: 1 + sum(other > value for other in values)
            for i, value in zip("wxyz", values, strict=True)
        }
        rankings.append(Ranking(f"t{number}", "ada", "human", ranks, notes="ada wrote this"))
    path = tmp_path / "labels.sqlite"
    with closing(Store(path)) as store:
        store.add_tasks(tasks, overlap=2)
        store.submit_all(rankings)
    return path


def rlhf(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def judge(labels: Path, url: str, model: str, *more: str) -> tuple[int, str]:
    Service.requests.clear()
    cache = f"cache={labels.parent / 'cache.db'}"
    return rlhf("judge-tasks", labels, "--url", url, "--model", model, "--set", cache, *more)


def reported(labels: Path) -> dict[str, Any]:
    with closing(Store(labels)) as store:
        judgements, rng = store.rankings(use="judges"), np.random.default_rng(0)
        return report(store.tasks(), store.rankings(), gold={}, rng=rng, judgements=judgements)


def test_a_judge_that_follows_the_position_or_the_length_is_exposed(
    labels: Path, server: str
) -> None:
    for model in ("first", "longer", "good"):
        assert judge(labels, server, model)[0] == 0
    rows = {row["model"]: row for row in reported(labels)["judges"]}
    first, longer, good = rows["first"], rows["longer"], rows["good"]
    assert first["followed_position"]["value"] == first["first_wins"]["value"] == 1.0
    assert first["agreement"]["value"] is None  # both orders cancel out: it ties everything
    assert longer["longer_wins"]["value"] == 1.0
    assert longer["longer_wins_for_people"]["low"] < 0.6
    assert good["agreement"]["value"] == good["kappa"] == good["tau_b"] == 1.0
    assert [row["name"] for row in good["people"]] == ["ada"]
    assert ["position" in " ".join(first["warnings"]), good["warnings"]] == [True, []]
    assert "longer" in " ".join(longer["warnings"])
    _, lines = rlhf("agreement", labels)
    assert "follows the position" in lines
    assert "prefers the longer response" in lines


def test_a_judge_is_in_no_number_about_people_and_takes_no_place(labels: Path, server: str) -> None:
    before = reported(labels)
    judge(labels, server, "good")
    with closing(Store(labels)) as store:
        assert {one.annotator for one in store.rankings()} == {"ada"}
        assert len(store.rankings(use="judges")) == 40
        assert len(store.rankings(use="both")) == 80
        lease = Assignment(store, rng=random.Random(0)).next_task("ben")
        assert lease is not None
        assert lease.draft is None
    assert {**reported(labels), "judges": []} == before


def test_a_judge_gets_each_task_in_two_orders_and_nothing_that_people_did(
    labels: Path, server: str
) -> None:
    judge(labels, server, "good", "--most", "1")
    texts = [body["messages"][-1]["content"] for body in Service.requests]
    one, other = ([part[3:].strip() for part in text.split("[Response ")[1:]] for text in texts)
    assert one == other[::-1]
    assert not [text for text in texts if "ada" in text]


def test_failures_and_costs_are_counted_and_only_failures_are_tried_again(
    labels: Path, server: str
) -> None:
    with closing(Store(labels)) as store:
        texts = [Response(i, f"mumble {i}", "m", {}) for i in "ab"]  # two orders, two prompts
        store.add_tasks([RankingTask("odd", "p", tuple(texts))])
    prices = ("--set", "price_prompt=10", "--set", "price_response=0")
    code, output = judge(labels, server, "good", *prices)
    assert code == 2
    assert "1 of 41 tasks got no verdict" in output
    with closing(Store(labels)) as store:
        (event,) = [one for one in store.events() if one.kind == "judged"]
        assert (event.data["tasks"], event.data["failed_tasks"]) == (41, 1)
        assert event.data["cost"] == pytest.approx(82 * 100 * 10 / 1e6)
        assert "odd" not in {one.task for one in store.rankings(use="both")}
    judge(labels, server, "good", *prices)
    assert len(Service.requests) == 0  # what a model said is cached, readable or not


def test_judges_travel_in_a_file_of_their_own(labels: Path, server: str, tmp_path: Path) -> None:
    judge(labels, server, "good", "--most", "3")
    out, copy = tmp_path / "out", tmp_path / "copy.sqlite"
    rlhf("export", labels, "--out", out)
    assert {r.kind for r in read_records(out / "rankings.jsonl", Ranking)} == {"human"}
    assert rlhf("import", out, "--store", copy)[0] == 0
    with closing(Store(labels)) as one, closing(Store(copy)) as other:
        assert one.rankings(use="judges") == other.rankings(use="judges")
    rlhf("export", labels, "--out", tmp_path / "trl", "--format", "trl")
    assert '"judge"' not in (tmp_path / "trl/preferences.jsonl").read_text()


@pytest.mark.parametrize(
    ("kind", "name"), [("human", "judge:m/1"), ("judge", "m"), ("imported", "judge:x")]
)
def test_no_person_has_a_judges_name_and_no_judge_a_persons(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match="expected judges' names, and no others"):
        Ranking("t", name, kind, {"a": 1})  # type: ignore[arg-type]


def test_no_account_has_a_judges_name(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "s.sqlite")) as store, pytest.raises(ValueError, match="model"):
        Accounts(store).sign_in_by_name("judge:m/1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first [[A > B > C]] no: [[c > A = B]]", [1, 1, 0]),
        ("[[A > B]]", None),  # one is missing
        ("[[A > B > B]]", None),
        ("A > B > C", None),
    ],
)
def test_the_last_whole_verdict_of_a_reply_counts(text: str, expected: list[int] | None) -> None:
    order = [Response(letter.lower(), "", "m", {}) for letter in LETTERS[:3]]
    parsed = verdict(text, order)
    assert (None if parsed is None else [-parsed[name] for name in "abc"]) == expected


def test_what_swapping_reverses_is_a_tie() -> None:
    one, other = {"a": 2.0, "b": 1.0, "c": 0.0}, {"a": 1.0, "b": 2.0, "c": 0.0}
    assert combined_ranks([one, other]) == {"a": 1, "b": 1, "c": 2}


def test_kappa_is_that_of_a_table_worked_by_hand() -> None:
    # Pairs ab, ac, bc: won, won, tied against won, lost, lost. Alike 1/3; t = 1/3, u = 0:
    # expected 0 + 2/3 / 2 = 1/3, so kappa is 0.
    one = Ranking("t", "x", "human", {"a": 1, "b": 2, "c": 2})
    other = Ranking("t", "y", "human", {"a": 2, "b": 3, "c": 1})
    assert kappa([(one, other)]) == pytest.approx(0.0)
    assert kappa([(one, one)]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "judge is missing"),
        (("--url", "http://x"), "--url with --model"),
        (("--policy", "x", "--reward-model", "y"), "--reward-model and --policy"),
        (("--reward-model", "nowhere"), "expected a reward model"),
    ],
)
def test_a_command_names_one_judge(labels: Path, options: tuple[str, ...], message: str) -> None:
    code, output = rlhf("judge-tasks", labels, *options)
    assert (code, message in output) == (2, True)
