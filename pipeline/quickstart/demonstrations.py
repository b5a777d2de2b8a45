"""Demonstrations as hurried people write them: most are good, some ramble, guess or stop short.

The paper's demonstrators were careful and few; a reward model still found what to improve. Here the
faults are drawn with known rates (`FAULTS`), so that a reader can see what the later stages mend.
"""

from random import Random
from typing import Any

from pipeline.quickstart import corpus, tasks, world
from reward_models.records import Demonstration, Prompt

FAULTS = {
    "guess_instead_of_abstaining": 0.35,
    "abstain_instead_of_reading": 0.1,
    "ramble": 0.3,
    "careless": 0.2,
}


def demonstrate(rng: Random, prompt: Prompt) -> Demonstration:
    """One person's response to the prompt, with that person's faults."""
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
        response = f"{response} {corpus.ramble(rng, prompt)}"
    return Demonstration(
        prompt=prompt.prompt,
        response=response,
        context=prompt.context,
        category=prompt.category,
        source="simulated",
        extra=prompt.extra,
    )


def _careless(rng: Random, prompt: Prompt) -> str:
    """What a hurried demonstrator leaves out, by task; facts of a passage are copied right."""
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
