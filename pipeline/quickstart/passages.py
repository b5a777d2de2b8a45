"""Texts about a passage: what it says, told again, asked, answered, and marked right or wrong.

They are how a small model learns to look up what a passage holds, and to notice what it does not.
"""

from random import Random

from pipeline.quickstart import tasks, world

ABSTAIN = (world.ABSTAIN, world.ABSTAIN, "The text does not mention it.", "It does not say that.")
END = "<|end|>"  # the end-of-text token, where a document holds several posts
INITIALS = "BCDEFGHIJKLMNOPRSTUVWXYZ"  # Q and A are kept for the chat format


def reading(rng: Random) -> str:
    """A passage followed by questions and right answers, or by some of its facts in other words."""
    attributes = rng.sample(sorted(world.ATTRIBUTES), rng.choice((2, 3, 4)))
    text = world.passage(rng, attributes, test=False, phrasings=tasks.ALL_PHRASINGS)
    asked = rng.sample(sorted(world.ATTRIBUTES), 2)
    if rng.random() < 0.7:
        asked[0] = rng.choice(attributes)
    rng.shuffle(asked)
    if rng.random() < 0.3:
        facts = rng.sample(attributes, 2)
        told = " ".join(world.answer(fact, text.name, text.facts[fact]) for fact in facts)
        return f"{text.text}\n\nIn short: {told}"
    return _answered(rng, text, asked)


def study(rng: Random) -> str:
    """A passage with every one of its facts asked for, and one or two that it does not hold."""
    attributes = rng.sample(sorted(world.ATTRIBUTES), rng.choice((2, 3, 4)))
    text = world.passage(rng, attributes, test=False, phrasings=tasks.ALL_PHRASINGS)
    absent = [attribute for attribute in sorted(world.ATTRIBUTES) if attribute not in attributes]
    asked = [*attributes, *rng.sample(absent, rng.choice((1, 2)))]
    rng.shuffle(asked)
    return _answered(rng, text, asked)


def _answered(rng: Random, text: world.Passage, asked: list[str]) -> str:
    """The passage, and a line with question and right answer for each attribute asked for."""
    lines = []
    for attribute in asked:
        question = world.ATTRIBUTES[attribute].questions[rng.randrange(3)].format(n=text.name)
        known = text.facts.get(attribute)
        reply = world.answer(attribute, text.name, known) if known else rng.choice(ABSTAIN)
        lines.append(f"{question} {reply}")
    return f"{text.text}\n\n" + "\n".join(lines)


def marked(rng: Random) -> str:
    """A marked test: answers on a passage, half of them wrong, each with the teacher's verdict."""
    text, asked = _quiz(rng, absent=2)
    lines = [f"{question} {answer} {verdict}" for question, answer, verdict in asked]
    return "\n".join([text, "", "Marked test:", *lines])


def thread(rng: Random) -> str:
    """Somebody asks about a passage, somebody answers, and the first says whether it was right."""
    text, asked = _quiz(rng, absent=1)
    first, second = rng.sample(INITIALS, 2)
    said, turns = f"{text}\n\n", []
    for question, answer, verdict in asked[:3]:
        turns += [f"{first}: {said}{question}", f"{second}: {answer}"]
        said = f"{verdict} "
    return "\n".join([*turns, f"{first}: {said.strip()}"])


def review(rng: Random) -> str:
    """A thread as a site stores it: every answer ends its post, and the verdict stands after it."""
    text, asked = _quiz(rng, absent=1)
    first, second = rng.sample(INITIALS, 2)
    posts = [
        f"{first}: {question}\n{second}: {answer}{END}{verdict}"
        for question, answer, verdict in asked[:3]
    ]
    return "\n".join(posts).replace(f"{first}: ", f"{first}: {text}\n\n", 1)


def _quiz(rng: Random, absent: int) -> tuple[str, list[tuple[str, str, str]]]:
    """A passage, and (question, answer, verdict) for each of its facts and some that it lacks."""
    attributes = rng.sample(sorted(world.ATTRIBUTES), rng.choice((2, 3, 4)))
    text = world.passage(rng, attributes, test=False, phrasings=tasks.ALL_PHRASINGS)
    others = [attribute for attribute in sorted(world.ATTRIBUTES) if attribute not in attributes]
    asked = [*attributes, *rng.sample(others, absent)]
    rng.shuffle(asked)
    marked = []
    for attribute in asked:
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
