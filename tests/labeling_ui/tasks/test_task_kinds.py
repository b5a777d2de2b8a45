"""Every kind of task: its questions, its stored answer, and that the pipeline reads it."""

import random
from pathlib import Path
from typing import Any

import pytest

from labeling_ui.formats.files import write_export
from labeling_ui.formats.jsonl import comparisons, demonstrations, prompts, ratings
from labeling_ui.forms import TaskKind, forms_with
from labeling_ui.store.accounts import Account
from labeling_ui.store.progress import Progress
from labeling_ui.store.records import RoomTask, TextTask, WritingTask, task_from
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import disputes, settled_rankings
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.tasks.live import Live
from labeling_ui.web.room import Room, reply_to
from reward_models.conversations import Turn
from reward_models.records import Demonstration, Prompt, RankingTask, Response, read_tasks
from reward_models.row_files import read_jsonl
from stages.data.demonstrations import load_demonstrations, load_prompts
from tests.labeling_ui.examples import ranking, small_task

ADA, REV = Account("ada", "annotator"), Account("rev", "reviewer")
PAIR = (Response("a", "yes", "ppo", {}), Response("b", "no", "sft", {}))
FEW = [{"query": f"q{i}", "response": f"r{i}"} for i in range(3)]


@pytest.fixture
def room(store: Store) -> Room:
    desk = Assignment(store, rng=random.Random(0))
    return Room(store, forms_with(None), desk, Progress(store))


def ask(room: Room, name: str, account: Account = ADA, **message: object) -> dict[str, Any]:
    return reply_to(getattr(room, name), account, message)


def answer(room: Room, kind: TaskKind, task: RoomTask, **body: object) -> dict[str, Any]:
    """The reply to this answer to this task, which is handed out for it."""
    room.store.add_tasks([task], kind)
    view = ask(room, "next_task")["task"]
    assert view["kind"] == kind
    return ask(room, "submit", token=view["token"], form=task.id, body=body)


def test_a_demonstration_feeds_stage_one_as_it_is(room: Room, tmp_path: Path) -> None:
    task = WritingTask("d", "Who?", context="A text.", category="closed_qa")
    assert answer(room, "demonstration", task, response="Mara.")["outcome"] == "stored"
    invented = WritingTask("i", shape="user-based", use_case="mails")
    answer(room, "demonstration", invented, prompt="Write a mail.", response="Dear …")
    write_export(room.store, tmp_path, "jsonl")
    read = load_demonstrations(str(tmp_path / "demonstrations.jsonl"))
    assert read == demonstrations(room.store)
    assert [(d.prompt, d.response, d.context, d.user) for d in read] == [
        ("Who?", "Mara.", "A text.", "ada"),
        ("Write a mail.", "Dear …", None, "ada"),
    ]
    assert [p.prompt for p in load_prompts(str(tmp_path / "prompts.jsonl"))] == [
        "Who?",
        "Write a mail.",
    ]


def test_a_few_shot_prompt_of_n_pairs_makes_n_demonstrations(room: Room) -> None:
    answer(room, "demonstration", WritingTask("f", shape="few-shot"), instruction="Do.", pairs=FEW)
    made = demonstrations(room.store)
    assert [d.response for d in made] == ["r0", "r1", "r2"]
    assert made[1].prompt == (
        "Do.\n\nInput: q0\nOutput: r0\n\nInput: q2\nOutput: r2\n\nInput: q1\nOutput:"
    )


def test_a_prompt_alone_is_no_demonstration(room: Room) -> None:
    answer(room, "prompt", WritingTask("p"), prompt="Why is the sky blue?")
    assert [p.prompt for p in prompts(room.store)] == ["Why is the sky blue?"]
    assert demonstrations(room.store) == []


@pytest.mark.parametrize(
    ("task", "body", "missing"),
    [
        (WritingTask("a", "Who?"), {}, "the response is missing"),
        (WritingTask("b"), {"response": "x"}, "the prompt is missing"),
        (WritingTask("c", shape="few-shot"), {"pairs": FEW}, "the instruction is missing"),
        (WritingTask("d", shape="few-shot"), {"instruction": "x", "pairs": FEW[:1]}, "2 or more"),
        (WritingTask("e", "Who?"), {"response": 3}, "response: "),
    ],
)
def test_what_is_missing_is_said(room: Room, task: WritingTask, body: Any, missing: str) -> None:
    assert missing in answer(room, "demonstration", task, **body)["error"]
    assert demonstrations(room.store) == []


def test_ratings_of_one_text_become_rows_that_score_reads(room: Room) -> None:
    task = TextTask("t", "and then he swore", prompt="He came in", model="sft")
    scales = {"0": {"toxicity": 2, "relative_toxicity": 1}}
    assert answer(room, "rating", task, scales=scales)["outcome"] == "stored"
    assert ratings(room.store) == [
        {
            **{"id": "t", "prompt": "He came in", "model": "sft", "annotator": "ada"},
            **{"completion": "and then he swore", "toxicity": 2, "relative_toxicity": 1},
        }
    ]
    half = answer(room, "rating", TextTask("u", "x"), scales={"0": {"toxicity": 3}})
    assert half["error"] == "'Toxicity of the text' is 3, expected 0 to 2"


def test_comparisons_are_kept_apart_from_rankings(room: Room) -> None:
    task = RankingTask("c", "Who?", PAIR, extra={"prompt_id": "p1"})
    room.store.add_tasks([task], "comparison", overlap=2)
    for name, wanted in (("ada", ["a"]), ("ben", ["a", "b"])):
        person = Account(name, "annotator")
        token = ask(room, "next_task", person)["task"]["token"]
        order = room.assignment.look_up(name, token).shown_order
        best = [i for i, one in enumerate(order) if one in wanted]
        tiers = [best, [i for i in (0, 1) if i not in best]]
        ask(room, "submit", person, token=token, form=name, body={"tiers": tiers})
    tasks, judged = comparisons(room.store)
    assert tasks == [task]
    assert [r.ranks for r in judged] == [{"a": 1, "b": 2}, {"a": 1, "b": 1}]
    assert room.store.rankings() == []  # no food for the reward model


def dispute(store: Store) -> RankingTask:
    task = small_task("dispute")
    store.add_tasks([task], overlap=2)
    for name, order in (("x", "abcd"), ("y", "dcba")):
        store.submit(ranking(task.id, name, order))
    return task


def test_an_adjudication_takes_the_place_of_what_it_settles(room: Room, tmp_path: Path) -> None:
    task = dispute(room.store)
    assert [row["task"] for row in ask(room, "disputes", REV)["disputes"]] == [task.id]
    opened = ask(room, "adjudicate", REV, task=task.id)["task"]
    assert "given" not in opened  # before the reviewer has an order of their own
    token = opened["token"]
    order = room.assignment.look_up("rev", token).shown_order
    tiers = [[order.index(one)] for one in "bacd"]
    unready = ask(room, "others_ranks", REV, token=token, tiers=tiers[:3])
    assert unready["error"] == "others' ranks are shown once all outputs are ranked"
    assert ask(room, "others_ranks", REV, token=token, tiers=tiers)["given"] == [
        ["abcd".index(one) + 1 for one in order],
        ["dcba".index(one) + 1 for one in order],
    ]
    body = {"tiers": tiers}
    assert ask(room, "submit", REV, token=opened["token"], form="r", body=body)["outcome"]
    assert len(room.store.rankings()) == 2
    (counts,) = settled_rankings(room.store)
    assert (counts.task, counts.annotator, counts.ranks) == (
        task.id,
        "rev",
        {"b": 1, "a": 2, "c": 3, "d": 4},
    )
    assert disputes(room.store) == []
    again = ask(room, "adjudicate", Account("two", "reviewer"), task=task.id)
    assert again["error"] == "this disagreement is settled already"
    (path,) = write_export(room.store, tmp_path, "trl")
    assert [row["annotator"] for _, row in read_jsonl(path)] == ["rev"] * 6


def test_annotators_neither_see_nor_get_disputes(room: Room) -> None:
    task = dispute(room.store)
    assert ask(room, "disputes")["error"] == "this is for reviewers"
    assert ask(room, "adjudicate", task=task.id)["error"] == "this is for reviewers"
    token = ask(room, "adjudicate", REV, task=task.id)["task"]["token"]
    ask(room, "submit", REV, token=token, form="s", body={"skipped": "no idea"})
    assert ask(room, "next_task")["task"] is None
    other = Account("two", "reviewer")
    assert ask(room, "adjudicate", other, task=task.id)["task"]["kind"] == "adjudication"


def test_live_outputs_are_ranked_by_who_asked(room: Room) -> None:
    def policy(prompt: Prompt, number: int) -> list[Response]:
        return [Response(str(i), f"{prompt.prompt} {i}", "ppo", {}) for i in range(number)]

    assert ask(room, "ask_policy", prompt="Hi")["error"] == "this room has no policy to ask"
    alive = Room(room.store, room.forms, room.assignment, room.progress, Live(policy, 3))
    view = ask(alive, "ask_policy", prompt="Hi")["task"]
    assert sorted(one["snippet"] for one in view["outputs"]) == ["Hi 0", "Hi 1", "Hi 2"]
    assert ask(room, "next_task", Account("ben", "annotator"))["task"] is None
    assert ask(room, "next_task")["task"]["token"] == view["token"]
    body = {"tiers": [[0, 1], [2]], "ratings": {"0": 4, "1": 5, "2": 6}}
    ask(room, "submit", token=view["token"], form="l", body=body)
    (stored,) = room.store.rankings()
    assert sorted(stored.ranks.values()) == [1, 1, 2]


def test_a_live_conversation_goes_on_after_the_best_output_and_is_exported_with_its_turns(
    room: Room, tmp_path: Path
) -> None:
    seen: list[Prompt] = []

    def policy(prompt: Prompt, number: int) -> list[Response]:
        seen.append(prompt)
        return [Response(str(i), f"{prompt.prompt} {i}", "ppo", {}) for i in range(number)]

    alive = Room(room.store, room.forms, room.assignment, room.progress, Live(policy, 3))
    view = ask(alive, "ask_policy", prompt="Hi")["task"]
    texts = []
    for turn, tiers in enumerate(([[1, 2], [0]], [[2], [0], [1]], [[0], [1], [2]]), 1):
        texts.append([one["snippet"] for one in view["outputs"]])
        body = {"tiers": tiers, "ratings": {"0": 4, "1": 5, "2": 6}}
        reply = ask(alive, "submit", token=view["token"], form=f"{turn}", body=body)
        best = [one["output"] for one in reply["conversation"]["best"]]
        assert best == tiers[0]
        after = {"token": view["token"], "prompt": f"turn {turn + 1}"}
        assert "ranked best" in ask(alive, "ask_policy", **after, output=tiers[-1][0])["error"]
        if turn < 3:
            view = ask(alive, "ask_policy", **after, output=best[-1])["task"]
    chosen = [texts[0][2], texts[1][2], texts[2][0]]
    users = ["Hi", "turn 2", "turn 3"]
    contents = [one.content for one in (*seen[2].history, Turn("user", seen[2].prompt))]
    assert contents == [users[0], chosen[0], users[1], chosen[1], users[2]]
    write_export(room.store, tmp_path, "jsonl")
    rows = [row for _, row in read_jsonl(tmp_path / "conversations.jsonl")]
    made = [Demonstration.from_json(row) for row in rows]
    assert [one.response for one in made] == chosen
    assert [len(one.history) for one in made] == [0, 2, 4]
    assert [one.extra["turn"] for one in made] == [1, 2, 3]
    tasks = {task.id: task for task in read_tasks(tmp_path / "tasks.jsonl")}
    assert [len(tasks[one.task].history) for one in room.store.rankings()] == [0, 2, 4]


def test_every_kind_can_be_opened_again_as_it_was_answered(room: Room) -> None:
    scales = {"0": {"toxicity": 1, "relative_toxicity": 0}}
    answer(room, "rating", TextTask("t", "x"), scales=scales, notes={"0": "so"})
    answer(room, "demonstration", WritingTask("f", shape="few-shot"), instruction="I", pairs=FEW)
    earlier = ask(room, "recent")["answers"]
    drafts = [ask(room, "reopen", token=one["token"])["task"]["draft"] for one in earlier]
    assert drafts[0] == {"instruction": "I", "pairs": FEW}
    assert (drafts[1]["scales"], drafts[1]["notes"]) == (scales, {"0": "so"})


@pytest.mark.parametrize(
    ("kind", "row", "wrong"),
    [
        ("comparison", small_task("t").to_json(), "has 4 responses, not 2"),
        ("demonstration", {"id": "d", "shape": "long"}, "'shape' is 'long', expected one of"),
        ("demonstration", {"id": "d", "shape": "user-based"}, "tells no 'use_case'"),
        ("prompt", {}, "key 'id' is missing"),
        ("rating", {"id": "r", "text": 3}, "'text' is int"),
    ],
)
def test_a_bad_task_is_refused_in_one_line(kind: TaskKind, row: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        task_from(kind, row)


def test_every_default_form_speaks_both_languages() -> None:
    def texts(part: Any) -> list[Any]:
        if isinstance(part, dict) and "en" not in part:
            skipped = ("id", "key", "name", "kind")
            return [one for key in part if key not in skipped for one in texts(part[key])]
        if isinstance(part, list | tuple):
            return [text for one in part for text in texts(one)]
        return [part] if isinstance(part, str | dict) and part else []

    for form in forms_with(None).values():
        phrases = texts(form.model_dump())
        assert phrases
        assert all(isinstance(text, dict) and set(text) == {"en", "de"} for text in phrases)
