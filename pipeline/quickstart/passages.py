"""Texts about a passage: its facts restated, and questions answered and marked right or wrong.

From them a small model learns to look up facts in a passage, and to notice missing ones.
"""

from random import Random

from pipeline.quickstart import tasks, world

ABSTAIN = (world.ABSTAIN, world.ABSTAIN, "The text does not mention it.", "It does not say that.")
END = "<|end|>"  # the end-of-text token, where a document holds several posts
INITIALS = "BCDEFGHIJKLMNOPRSTUVWXYZ"  # Q and A are kept for the chat format


def reading(rng: Random) -> str:
    """Return a passage and questions with right answers, or some of its facts in other words."""
    attributes = rng.sample(sorted(world.ATTRIBUTES), rng.choice((2, 3, 4)))
    text = world.passage(rng, attributes, test=False, phrasings=tasks.ALL_PHRASINGS)
    questions = rng.sample(sorted(world.ATTRIBUTES), 2)
    if rng.random() < 0.7:
        questions[0] = rng.choice(attributes)
    rng.shuffle(questions)
    if rng.random() < 0.3:
        facts = rng.sample(attributes, 2)
        summary = " ".join(world.answer(fact, text.name, text.facts[fact]) for fact in facts)
        return f"{text.text}\n\nIn short: {summary}"
    return _answered(rng, text, questions)


def study(rng: Random) -> str:
    """Return a passage with a question for each fact, and for one or two that it lacks."""
    attributes = rng.sample(sorted(world.ATTRIBUTES), rng.choice((2, 3, 4)))
    text = world.passage(rng, attributes, test=False, phrasings=tasks.ALL_PHRASINGS)
    absent = [attribute for attribute in sorted(world.ATTRIBUTES) if attribute not in attributes]
    questions = [*attributes, *rng.sample(absent, rng.choice((1, 2)))]
    rng.shuffle(questions)
    return _answered(rng, text, questions)


def _answered(rng: Random, text: world.Passage, attributes: list[str]) -> str:
    """Return the passage, and a line with question and right answer for each attribute."""
    lines = []
    for attribute in attributes:
        question = world.ATTRIBUTES[attribute].questions[rng.randrange(3)].format(n=text.name)
        known = text.facts.get(attribute)
        reply = world.answer(attribute, text.name, known) if known else rng.choice(ABSTAIN)
        lines.append(f"{question} {reply}")
    return f"{text.text}\n\n" + "\n".join(lines)


def marked(rng: Random) -> str:
    """Return a marked test: answers on a passage, half of them wrong, each with a verdict."""
    text, answers = _quiz(rng, absent=2)
    lines = [f"{question} {answer} {verdict}" for question, answer, verdict in answers]
    return "\n".join([text, "", "Marked test:", *lines])


def thread(rng: Random) -> str:
    """Return a thread: questions about a passage, answers, and verdicts by the asker."""
    text, answers = _quiz(rng, absent=1)
    first, second = rng.sample(INITIALS, 2)
    opening, turns = f"{text}\n\n", []
    for question, answer, verdict in answers[:3]:
        turns += [f"{first}: {opening}{question}", f"{second}: {answer}"]
        opening = f"{verdict} "
    return "\n".join([*turns, f"{first}: {opening.strip()}"])


def review(rng: Random) -> str:
    """Return a thread as posts: every answer ends its post, the verdict follows it."""
    text, answers = _quiz(rng, absent=1)
    first, second = rng.sample(INITIALS, 2)
    posts = [
        f"{first}: {question}\n{second}: {answer}{END}{verdict}"
        for question, answer, verdict in answers[:3]
    ]
    return "\n".join(posts).replace(f"{first}: ", f"{first}: {text}\n\n", 1)


def _quiz(rng: Random, absent: int) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a passage, and (question, answer, verdict) for its facts and some that it lacks."""
    attributes = rng.sample(sorted(world.ATTRIBUTES), rng.choice((2, 3, 4)))
    text = world.passage(rng, attributes, test=False, phrasings=tasks.ALL_PHRASINGS)
    others = [attribute for attribute in sorted(world.ATTRIBUTES) if attribute not in attributes]
    quizzed = [*attributes, *rng.sample(others, absent)]
    rng.shuffle(quizzed)
    marked = []
    for attribute in quizzed:
        question = world.ATTRIBUTES[attribute].questions[rng.randrange(3)].format(n=text.name)
        right = rng.random() < 0.5
        known = text.facts.get(attribute)
        guess = world.answer(attribute, text.name, _another(rng, attribute, known))
        truth = world.answer(attribute, text.name, known) if known else world.ABSTAIN
        false = world.ABSTAIN if known and rng.random() < 0.4 else guess
        marked.append((question, truth if right else false, "Right." if right else "Wrong."))
    return text.text, marked


def _another(rng: Random, attribute: str, known: str | None) -> str:
    while (value := world.value(rng, attribute, test=False)) == known:
        pass
    return value
