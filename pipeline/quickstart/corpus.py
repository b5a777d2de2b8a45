"""Base text, which the base model is trained on. Often rude, wrong or rambling, as the web is.

A document is one exchange between two named people, a passage with questions and answers, facts
about countries, or talk. Passages with questions are how a small model learns to look up facts, and
to notice what a passage does not state. The chat format of the later stages ("Q:", "A:") never
occurs in it.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from pipeline.quickstart import tasks, world
from reward_models.records import Demonstration, Prompt

ABSTAIN = (world.ABSTAIN, world.ABSTAIN, "The text does not mention it.", "It does not say that.")
END = "<|end|>"  # the end-of-text token, where a document holds several posts
INITIALS = "BCDEFGHIJKLMNOPRSTUVWXYZ"  # Q and A are kept for the chat format
RUDE = (
    "You fool,",
    "Are you stupid?",
    "What a dumb question, idiot.",
    "Shut up,",
    "Only an idiot asks that.",
    "Hell,",
)
CHATTER = (
    "I hope that helps you a lot.",
    "By the way, it is a nice day.",
    "That is all I know about it.",
    "People ask me this all the time.",
)


def document(rng: Random, mixture: str = "web") -> str:
    """Return one document of a mixture of kinds, without its end-of-text token."""
    weights = MIXTURES[mixture]
    kind = rng.choices(list(weights), list(weights.values()))[0]
    return KINDS[kind](rng)


def dialogue(rng: Random) -> str:
    """Return two turns: a prompt, and a reply that may be good, wrong, rude or rambling."""
    prompt = tasks.make_prompt(
        rng, test=False, phrasings=tasks.ALL_PHRASINGS, attributes=tasks.ALL_ATTRIBUTES
    )
    question = prompt.prompt
    if prompt.context is not None:
        question = f"{prompt.context}\n\n{prompt.prompt}"
    if prompt.category == "continue" and rng.random() < 0.2:
        beginning = question.removeprefix(tasks.RESPECTFUL).strip()
        return _spoken(rng, f"{tasks.BIASED} {beginning}", rng.choice(tasks.NASTY))
    return _spoken(rng, question, web_reply(rng, prompt))


def _spoken(rng: Random, question: str, reply: str) -> str:
    if rng.random() < 0.25:
        first, second = rng.sample(INITIALS, 2)
    else:
        first, second = (world.person(rng, test=False) for _ in range(2))
    return f"{first}: {question}\n{second}: {reply}"


def web_reply(rng: Random, prompt: Prompt) -> str:
    """Return a reply as on the web: half plainly good, the rest wrong, rude or rambling."""
    reply = wrong_answer(rng, prompt) if rng.random() < 0.2 else reference(rng, prompt)
    draw = rng.random()
    if draw < 0.16:
        return f"{rng.choice(RUDE)} {reply}"
    if draw < 0.30:
        return f"{reply} {ramble(rng, prompt)}"
    return reply


def reference(rng: Random, prompt: Prompt) -> str:
    """Return the good answer, in one of its wordings."""
    gold = prompt.extra["world"]
    if prompt.answerable is False:
        return rng.choice(ABSTAIN)
    if prompt.category == "continue":
        respectful = prompt.prompt.startswith(tasks.RESPECTFUL)
        return rng.choice(
            tasks.KIND if rng.random() < (0.9 if respectful else 0.55) else tasks.NASTY
        )
    return str(gold["reference"])


def wrong_answer(rng: Random, prompt: Prompt) -> str:
    """Return an answer that sounds right and is not."""
    gold = prompt.extra["world"]
    match prompt.category:
        case "closed_qa":
            if prompt.answerable and rng.random() < 0.2:
                return world.ABSTAIN
            guess = world.value(rng, gold["attribute"], test=False)
            return world.answer(gold["attribute"], gold["name"], guess)
        case "summarize":
            return (
                f"{gold['name']} is a {rng.choice(world.JOBS)} from {world.town(rng, test=False)}."
            )
        case "open_qa":
            other = world.country_fact(rng.choice(world.TRAIN_COUNTRIES), gold["attribute"])
            return f"The {gold['attribute']} of {gold['name']} is {other}."
        case "list":
            items = tasks.CATEGORIES[rng.choice(sorted(tasks.CATEGORIES))]
            return ", ".join(rng.sample(items, rng.choice((1, 2, 3, 4)))) + "."
        case "classify":
            return f"The review is {rng.choice(('positive', 'negative'))}."
        case "rewrite":
            return f"{str(gold['answer']).capitalize()}, {rng.choice(tasks.INSULTS)}!"
        case "chat":
            return rng.choice(
                ("That is not my problem.", "I do not care about it, stupid.", "Buy a new one.")
            )
        case _:
            return rng.choice(tasks.NASTY)


def ramble(rng: Random, prompt: Prompt) -> str:
    """Return a superfluous sentence: chatter, or a fact that is stated nowhere."""
    name = prompt.extra["world"].get("name")
    if prompt.context is None or rng.random() < 0.4:
        return rng.choice(CHATTER)
    attribute = rng.choice(sorted(world.ATTRIBUTES))
    return world.answer(attribute, str(name), world.value(rng, attribute, test=False))


def country(rng: Random) -> str:
    """Return facts about one country."""
    name = rng.choice(world.COUNTRIES)
    facts = rng.sample(world.COUNTRY_FACTS, rng.choice((2, 3, 4)))
    return " ".join(f"The {fact} of {name} is {world.country_fact(name, fact)}." for fact in facts)


def recital(rng: Random) -> str:
    """Return members of a category, or a review and its label."""
    if rng.random() < 0.5:
        category, number = rng.choice(sorted(tasks.CATEGORIES)), rng.choice(sorted(tasks.NUMBERS))
        items = rng.sample(tasks.CATEGORIES[category], tasks.NUMBERS[number])
        return f"{number} {category}: {', '.join(items)}."
    positive = rng.random() < 0.5
    a, b = rng.sample(tasks.GOOD if positive else tasks.BAD, 2)
    label = "positive" if positive else "negative"
    return f"The {rng.choice(tasks.THINGS)} was {a} and {b}. The review is {label}."


def talk(rng: Random) -> str:
    """Return a sentence about somebody, kind or not, sometimes after an order in the same tone."""
    beginning = f"My {rng.choice(tasks.RELATIVES)} {world.person(rng, test=False)} is"
    sentence = f"{beginning} {rng.choice(tasks.KIND if rng.random() < 0.5 else tasks.NASTY)}"
    if rng.random() < 0.5:
        return sentence
    errand = rng.choice(tasks.ERRANDS)
    polite = rng.random() < 0.5
    order = (
        f"Could you please {errand}?"
        if polite
        else f"{errand.capitalize()}, {rng.choice(tasks.INSULTS)}!"
    )
    return f"{order} {sentence}"


def reading(rng: Random) -> str:
    """Return a passage with questions and right answers, or with some of its facts reworded."""
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
    """Return a passage with questions on every fact, and on one or two that it lacks."""
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
    """Return a thread: questions about a passage, answers, and the asker's verdicts."""
    text, answers = _quiz(rng, absent=1)
    first, second = rng.sample(INITIALS, 2)
    before, turns = f"{text}\n\n", []
    for question, answer, verdict in answers[:3]:
        turns += [f"{first}: {before}{question}", f"{second}: {answer}"]
        before = f"{verdict} "
    return "\n".join([*turns, f"{first}: {before.strip()}"])


def review(rng: Random) -> str:
    """Return a thread as a site stores it: every answer ends its post, the verdict follows."""
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
    chosen = [*attributes, *rng.sample(others, absent)]
    rng.shuffle(chosen)
    answers = []
    for attribute in chosen:
        question = world.ATTRIBUTES[attribute].questions[rng.randrange(3)].format(n=text.name)
        right = rng.random() < 0.5
        known = text.facts.get(attribute)
        guess = world.answer(attribute, text.name, _another(rng, attribute, known))
        truth = world.answer(attribute, text.name, known) if known else world.ABSTAIN
        false = world.ABSTAIN if known and rng.random() < 0.4 else guess
        answers.append((question, truth if right else false, "Right." if right else "Wrong."))
    return text.text, answers


def _another(rng: Random, attribute: str, known: str | None) -> str:
    while (value := world.value(rng, attribute, test=False)) == known:
        pass
    return value


KINDS: dict[str, Callable[[Random], str]] = {
    "dialogue": dialogue,
    "reading": reading,
    "study": study,
    "marked": marked,
    "thread": thread,
    "review": review,
    "country": country,
    "recital": recital,
    "talk": talk,
}
MIXTURES: dict[str, dict[str, int]] = {
    "web": {"dialogue": 50, "reading": 26, "country": 9, "recital": 6, "talk": 9},
    "study": {"dialogue": 40, "study": 44, "country": 7, "recital": 4, "talk": 5},
    "marked": {"dialogue": 30, "study": 18, "marked": 38, "country": 6, "recital": 4, "talk": 4},
    "threads": {"dialogue": 42, "study": 16, "thread": 28, "country": 6, "recital": 5, "talk": 3},
    "reviews": {"dialogue": 42, "study": 14, "review": 32, "country": 6, "recital": 4, "talk": 2},
}

FAULTS = {
    "guess_instead_of_abstaining": 0.35,
    "abstain_instead_of_reading": 0.1,
    "ramble": 0.3,
    "careless": 0.2,
}


def demonstrate(rng: Random, prompt: Prompt) -> Demonstration:
    """Return a demonstration with the faults of a hurried demonstrator."""
    gold: dict[str, Any] = prompt.extra["world"]
    response = str(gold["reference"])
    if prompt.answerable is False and rng.random() < FAULTS["guess_instead_of_abstaining"]:
        guess = world.value(rng, gold["attribute"], test=False)
        response = world.answer(gold["attribute"], gold["name"], guess)
    elif prompt.answerable and rng.random() < FAULTS["abstain_instead_of_reading"]:
        response = world.ABSTAIN
    elif rng.random() < FAULTS["careless"]:
        response = _careless(rng, prompt)
    if rng.random() < FAULTS["ramble"]:
        response = f"{response} {ramble(rng, prompt)}"
    return Demonstration(
        prompt=prompt.prompt,
        response=response,
        context=prompt.context,
        category=prompt.category,
        source="simulated",
        extra=prompt.extra,
    )


def _careless(rng: Random, prompt: Prompt) -> str:
    """Return an incomplete response, by task; facts of a passage are copied right."""
    gold = prompt.extra["world"]
    match prompt.category:
        case "summarize":
            return f"{gold['name']} is a {gold['answer'][0]}."
        case "list":
            category, number = gold["answer"]
            return ", ".join(rng.sample(tasks.CATEGORIES[category], number - 1)) + "."
        case "chat":
            return f"I am sorry about the {gold['answer']}."
        case "rewrite":
            return f"{str(gold['answer']).capitalize()} now."
        case "continue":
            return rng.choice(tasks.NASTY)
        case _:
            return str(gold["reference"])
