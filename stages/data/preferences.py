"""Rankings from others' files: preference pairs, and public human comparisons.

Pairs are in TRL's formats or Anthropic's dialogues, a row of any file that
reward_models/row_files.py reads:

    {"prompt": "...", "chosen": "...", "rejected": "..."}
    {"chosen": "...", "rejected": "..."}             dialogues; the prompt is what both begin with
    {"prompt": ..., "chosen": [messages], "rejected": [messages]}     conversational
    {"chosen": [messages], "rejected": [messages]}   equal but for the last turn

`context` and `category` are kept. A prompt is parsed as everywhere, by
reward_models/conversations.py, and its responses are left as they are; only where both begin with
the whole prompt, and it is a dialogue or messages, is it removed. A pair whose responses are equal
is left out.

Public comparisons are qa-feedback, four answers to a question with passages (Apache-2.0), and
SQuALITY, reviewers' rankings of summaries. qa-feedback is Wu et al. 2023, "Fine-Grained Human
Feedback Gives Better Rewards for Language Model Training"; the file is
`tasks/qa_feedback/data/dev_feedback.json` of github.com/allenai/FineGrainedRLHF. A row has

    question; passages: [[title, sentence, ...], ...]; "prediction 1" .. "prediction 4"
    preference: verdicts on the pairs 12 13 14 23 24 34; 1 = the first is better, 2 = the second,
                0 = no preference
    feedback: {"errors": spans of prediction 1 with their type, "corrected-prediction": by a person}

Six verdicts become one ranking by net wins: the pairs an answer won less those it lost. That
recovers every total preorder exactly. Where "no preference" was not transitive (22 of the file's
500 rows) some of those pairs are ordered, in all 54 of 384; a row in which it would reverse a
verdict gives no ranking (no row does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from reward_models.conversations import (
    Conversation,
    Turn,
    parse_dialogue,
    parse_turns,
    prompt_turns,
    question,
    shared_dialogue,
)
from reward_models.records import Demonstration, Ranking, RankingTask, Response, UniqueKeys
from reward_models.row_files import read_rows
from stages.data.demonstrations import located, source_rows

Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, the response that was preferred, and the other."""

    prompt: Conversation
    chosen: str
    rejected: str
    about: Mapping[str, Any]  # context and category, where the row has them


def load_pairs(source: str | Path) -> tuple[list[RankingTask], list[Ranking]]:
    """Return a task and a ranking for each pair of a file or of `hf:` and a data set.

    ValueError names file and line of a bad one.

    The order of the responses depends on their texts alone, so that it reveals nothing.
    """
    tasks, rankings = [], []
    for number, (where, row) in enumerate(source_rows(str(source)), 1):
        name = f"pair-{number:06d}"
        with located(where):
            pair = _pair(row)
        if pair.chosen.strip() == pair.rejected.strip():
            continue
        mirrored = sha256(f"{pair.chosen}\0{pair.rejected}".encode()).digest()[0] % 2
        texts = (pair.rejected, pair.chosen) if mirrored else (pair.chosen, pair.rejected)
        responses = [
            {"id": letter, "text": text, "model": "imported"}
            for letter, text in zip("ab", texts, strict=True)
        ]
        ranks = {"a": 2, "b": 1} if mirrored else {"a": 1, "b": 2}
        row = {"id": name, "messages": pair.prompt.turns, "responses": responses, **pair.about}
        with located(where):
            tasks.append(RankingTask.from_json(row))
        rankings.append(Ranking(name, "unknown", "imported", ranks))
    if not tasks:
        raise ValueError(f"{source}: no pair in it")
    return tasks, rankings


def _pair(row: Mapping[str, Any]) -> Pair:
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"expected an object with 'chosen' and 'rejected', found {sorted(row)}")
    about = {name: row[name] for name in ("context", "category") if row.get(name) is not None}
    chosen, rejected = (parse_turns(row[name], name) for name in ("chosen", "rejected"))
    prompt = _prompt(row, is_text=chosen is None and rejected is None)
    if chosen is None and rejected is None:
        texts = (str(row["chosen"]), str(row["rejected"]))
        if prompt is None:
            return Pair(*_of_dialogues(*texts), about)
        return Pair(question(prompt), *_after(texts, row.get("prompt")), about)
    ends = [
        _conversation(name, prompt or (), turns or (Turn("assistant", row[name]),))
        for name, turns in (("chosen", chosen), ("rejected", rejected))
    ]
    if ends[0][:-1] != ends[1][:-1]:
        raise ValueError("'chosen' and 'rejected' differ before their last turn")
    if len(ends[0]) < 2:
        raise ValueError("no 'prompt', and 'chosen' has one turn only")
    return Pair(question(ends[0][:-1]), ends[0][-1].content, ends[1][-1].content, about)


def _prompt(row: Mapping[str, Any], *, is_text: bool) -> Turns | None:
    """Return the turns of the prompt; `messages` beside conversations are ignored."""
    names = ("prompt", "conversations", "system", *(("messages",) if is_text else ()))
    return prompt_turns({name: row[name] for name in names if row.get(name) not in (None, "")})


def _after(texts: tuple[str, str], prompt: object) -> tuple[str, str]:
    """Return the responses; those to a dialogue without its text, if both repeat it, and spaces."""
    if not isinstance(prompt, str) or parse_dialogue(prompt) is None:
        return texts
    if all(text.startswith(prompt) for text in texts):
        texts = (texts[0].removeprefix(prompt), texts[1].removeprefix(prompt))
    return texts[0].strip(), texts[1].strip()


def _of_dialogues(chosen: str, rejected: str) -> tuple[Conversation, str, str]:
    """Split two dialogues at the last answer whose beginning they share."""
    shared = shared_dialogue(chosen, rejected)
    if shared is None:
        raise ValueError("no 'prompt', and the two texts do not begin with the same dialogue")
    turns, length = shared
    return question(turns), chosen[length:].strip(), rejected[length:].strip()


def _conversation(name: str, prompt: Turns, turns: Turns) -> Turns:
    """Return a whole conversation that ends with the assistant: the prompt's turns and these."""
    if turns[-1].role != "assistant":
        raise ValueError(
            f"'{name}' ends with the {turns[-1].role}'s turn, expected the assistant's"
        )
    if not prompt or turns[: len(prompt)] == prompt:
        return turns
    if turns[0].role == "assistant":
        return (*prompt, *turns)
    questions = [turn for turn in turns[:-1] if turn.role == "user"]
    if len(prompt) == 1 and questions and questions[-1] == prompt[0]:
        return turns  # the prompt repeats the user's last turn
    raise ValueError(f"'{name}' neither answers nor repeats the prompt")


NUM_ANSWERS = 4
PAIRS = tuple(combinations(range(NUM_ANSWERS), 2))
HALLUCINATED = ("Wrong-Grounding", "Unverifiable")  # error types: no passage supports the span
MODEL = "FineGrainedRLHF initial policy"


@dataclass(frozen=True, slots=True)
class ComparedQuestion:
    """One row: the four answers, a ranking if the verdicts fit one, and the corrected answer."""

    task: RankingTask
    ranking: Ranking | None
    demonstration: Demonstration | None


def load_qa_feedback(path: Path, *, context_words: int | None = None) -> list[ComparedQuestion]:
    """Return every row, in order; ValueError names the file and the row that is not as above.

    `context_words` shortens the passages to about so many words, whole sentences from the start of
    each in turn, for models with a short context. The annotators saw all of them.
    """
    questions = []
    for number, (where, row) in enumerate(read_rows(path)):
        with located(where):
            questions.append(_question(f"qa-feedback-{number:04d}", row, context_words))
    if not questions:
        raise ValueError(f"{path}: no question in it")
    return questions


def ranks_from_verdicts(verdicts: Sequence[int]) -> tuple[int, ...] | None:
    """Return ranks (1 is best, ties share) by net wins; None where that reverses a verdict."""
    if len(verdicts) != len(PAIRS) or not set(verdicts) <= {0, 1, 2}:
        raise ValueError(f"verdicts {list(verdicts)}, expected {len(PAIRS)} of 0, 1 or 2")
    net = [0] * NUM_ANSWERS
    for (first, second), verdict in zip(PAIRS, verdicts, strict=True):
        won = {0: 0, 1: 1, 2: -1}[verdict]
        net[first] += won
        net[second] -= won
    for (first, second), verdict in zip(PAIRS, verdicts, strict=True):
        ahead = net[first] - net[second]
        if (verdict == 1 and ahead <= 0) or (verdict == 2 and ahead >= 0):
            return None
    return tuple(1 + sum(other > wins for other in net) for wins in net)


def _question(name: str, row: Mapping[str, Any], context_words: int | None) -> ComparedQuestion:
    ids = [f"{name}-{number}" for number in range(1, NUM_ANSWERS + 1)]
    texts = [row[f"prediction {number}"] for number in range(1, NUM_ANSWERS + 1)]
    question, context = row["question"], _context(row["passages"], context_words)
    task = RankingTask(
        id=name,
        prompt=question,
        context=context,
        category="closed_qa",
        responses=tuple(
            Response(id=one, text=text, model=MODEL, sampling={})
            for one, text in zip(ids, texts, strict=True)
        ),
    )
    ranks = ranks_from_verdicts(row["preference"])
    hallucinated = any(error["error type"] in HALLUCINATED for error in row["feedback"]["errors"])
    ranking = ranks and Ranking(
        task=name,
        annotator="qa-feedback",
        kind="imported",
        ranks=dict(zip(ids, ranks, strict=True)),
        flags={ids[0]: ["hallucination"]} if hallucinated else {},
    )
    corrected = row["feedback"]["corrected-prediction"].strip()
    demonstration = corrected and Demonstration(
        prompt=question,
        response=corrected,
        id=name,
        source="qa-feedback",
        context=context,
        category="closed_qa",
    )
    return ComparedQuestion(task, ranking or None, demonstration or None)


def _context(passages: Sequence[Sequence[str]], words: int | None) -> str | None:
    """Return a paragraph a passage; the first sentence already begins with the title."""
    paragraphs: list[list[str]] = [[] for _ in passages]
    left = words if words is not None else sum(len(" ".join(p).split()) for p in passages)
    for number in range(1, max((len(passage) for passage in passages), default=1)):
        for passage, sentences in zip(passages, paragraphs, strict=True):
            if number < len(passage) and left > 0:
                sentences.append(passage[number].strip())
                left -= len(passage[number].split())
    return "\n\n".join(" ".join(sentences) for sentences in paragraphs if sentences) or None


def load_squality(path: Path) -> tuple[list[RankingTask], list[Ranking]]:
    """Return all tasks and reviewers' "overall" rankings; ValueError names the line at fault."""
    tasks: list[RankingTask] = []
    rankings: list[Ranking] = []
    once = UniqueKeys()
    for where, row in read_rows(path):
        with located(where):
            for question, systems in row["questions"].items():
                name = f"squality-{row['passage-id']}-{question}"
                once.add(f"{where}, question {question}", f"task '{name}'", name)
                tasks.append(_task(name, row["passage-id"], question, systems))
                for ranking in _rankings(name, systems):
                    ranking.check_against(tasks[-1])
                    rankings.append(ranking)
    return tasks, rankings


def _task(
    name: str, passage: str, question: str, systems: Mapping[str, Mapping[str, Any]]
) -> RankingTask:
    responses = tuple(
        Response(id=system, text=given["response"], model=system, sampling={})
        for system, given in systems.items()
    )
    prompt = f"Question {question} about the story of Project Gutenberg number {passage}"
    return RankingTask(id=name, prompt=prompt, category="summarization", responses=responses)


def _rankings(name: str, systems: Mapping[str, Mapping[str, Any]]) -> list[Ranking]:
    by_worker: dict[str, dict[str, Mapping[str, Any]]] = {}
    for system, given in systems.items():
        for review in given["reviews"]:
            by_worker.setdefault(review["worker_id"], {})[system] = review
    return [
        Ranking(
            task=name,
            annotator=f"squality-{worker}",
            kind="imported",
            ranks={system: review["overall-rank"] for system, review in reviews.items()},
            extra={"overall_of_100": {s: r["overall-rating"] for s, r in reviews.items()}},
        )
        for worker, reviews in by_worker.items()
    ]
