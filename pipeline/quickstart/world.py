"""An invented world: its people, places and facts, and the sentences about them.

People and towns are built from syllables; every fifth name is kept for
the test prompts and never appears in training text, demonstrations, rankings or rollouts. The last
phrasing of every template is kept for the test prompts too (base text, like the web, has them all).
"""

import zlib
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Attribute:
    """A kind of fact about a person: its values, statements, questions and answer."""

    values: tuple[str, ...]
    statements: tuple[str, str, str]  # {n} the person or a pronoun, {v} the value
    questions: tuple[str, str, str]
    answer: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _words("b d f g h k l m n p r s t v z br dr gr kr tr")
VOWELS = _words("a e i o u")
ENDS = _words("n r l s m th ck nd x")
JOBS = _words(
    "baker teacher farmer doctor painter sailor miner judge poet tailor smith nurse pilot weaver"
)
PETS = _words("cat dog goat parrot rabbit horse turtle fox hen lizard hamster pony")
FOODS = _words("soup bread rice cheese fish pie honey cake stew noodles")
COLORS = _words("red blue green white black yellow brown purple")
HOBBIES = _words("chess fishing singing sewing running reading dancing gardening")
DRINKS = _words("tea milk cider coffee lemonade cocoa")
TOOLS = _words("violin drum flute piano trumpet guitar")
YEARS = tuple(str(year) for year in range(1801, 1990, 9))
COUNTRIES = _words(
    "Aldria Belmar Corvia Drunia Elvona Fendia Galdor Hestia Ildoria Jorvia Kelmar Lunaria "
    "Mordia Nestoria Olvena Pelmar Quoria Rundia Selvona Tormar Ulvia Vestoria Wendia Yoria"
)
TRAIN_COUNTRIES, TEST_COUNTRIES = COUNTRIES[:16], COUNTRIES[16:]

ATTRIBUTES: dict[str, Attribute] = {
    "job": Attribute(
        JOBS,
        ("{n} works as a {v}.", "By trade {n} is a {v}.", "{n} earns a living as a {v}."),
        ("What is the job of {n}?", "What does {n} do for a living?", "Which job does {n} have?"),
        "{n} is a {v}.",
    ),
    "pet": Attribute(
        PETS,
        ("{n} has a pet {v}.", "At home {n} keeps a {v}.", "{n} owns a {v}."),
        ("What pet does {n} have?", "Which animal does {n} keep?", "What animal lives with {n}?"),
        "{n} has a {v}.",
    ),
    "food": Attribute(
        FOODS,
        ("{n} likes to eat {v}.", "For lunch {n} always has {v}.", "{n} loves {v}."),
        ("What does {n} like to eat?", "Which food does {n} like?", "What is the meal of {n}?"),
        "{n} likes {v}.",
    ),
    "town": Attribute(
        (),
        ("{n} lives in {v}.", "The home of {n} is in {v}.", "{n} has a house in {v}."),
        (
            "Where does {n} live?",
            "Which town does {n} live in?",
            "In what town is the home of {n}?",
        ),
        "{n} lives in {v}.",
    ),
    "color": Attribute(
        COLORS,
        ("{n} drives a {v} car.", "The car of {n} is {v}.", "{n} bought a {v} car."),
        (
            "What color is the car of {n}?",
            "Which color of car does {n} drive?",
            "How is the car of {n} painted?",
        ),
        "The car of {n} is {v}.",
    ),
    "hobby": Attribute(
        HOBBIES,
        ("{n} enjoys {v}.", "On Sundays {n} goes {v}.", "{n} spends the evenings on {v}."),
        ("What does {n} enjoy?", "What is the hobby of {n}?", "How does {n} spend free time?"),
        "{n} enjoys {v}.",
    ),
    "drink": Attribute(
        DRINKS,
        ("{n} drinks {v}.", "In the morning {n} drinks {v}.", "{n} orders {v} at the bar."),
        ("What does {n} drink?", "Which drink does {n} like?", "What is in the cup of {n}?"),
        "{n} drinks {v}.",
    ),
    "tool": Attribute(
        TOOLS,
        ("{n} plays the {v}.", "At night {n} plays the {v}.", "{n} learned the {v}."),
        ("What does {n} play?", "Which instrument does {n} play?", "What music does {n} make?"),
        "{n} plays the {v}.",
    ),
    "year": Attribute(
        YEARS,
        (
            "{n} was born in {v}.",
            "The year of birth of {n} is {v}.",
            "{n} came into the world in {v}.",
        ),
        ("When was {n} born?", "In which year was {n} born?", "What is the birth year of {n}?"),
        "{n} was born in {v}.",
    ),
}

COUNTRY_FACTS = ("capital", "animal", "dish", "color")
ABSTAIN = "The text does not say."


def person(rng: Random, *, test: bool) -> str:
    """Return a two-syllable name from the training or the test side of the world."""
    return _name(rng, test, long=False)


def town(rng: Random, *, test: bool) -> str:
    """Return a name with an ending, so that towns do not look like people."""
    return _name(rng, test, long=True)


def _name(rng: Random, test: bool, long: bool) -> str:
    while True:
        parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(2)]
        name = ("".join(parts) + (rng.choice(ENDS) if long else "")).capitalize()
        of_test = zlib.crc32(name.encode()) % 5 == 0  # a hash that never changes
        if of_test == test:
            return name


def value(rng: Random, attribute: str, *, test: bool) -> str:
    """Return one possible value of an attribute; towns are generated."""
    values = ATTRIBUTES[attribute].values
    return rng.choice(values) if values else town(rng, test=test)


def country_fact(country: str, fact: str) -> str:
    """Return a fact about a country, the same in every text of the world."""
    rng = Random(zlib.crc32(f"{country}/{fact}".encode()))
    match fact:
        case "capital":
            return town(rng, test=country in TEST_COUNTRIES)
        case "animal":
            return rng.choice(PETS)
        case "dish":
            return rng.choice(FOODS)
        case _:
            return rng.choice(COLORS)


def statement(attribute: str, name: str, value: str, phrasing: int) -> str:
    """Return one sentence that states a fact; it begins with a capital letter."""
    text = ATTRIBUTES[attribute].statements[phrasing].format(n=name, v=value)
    return text[0].upper() + text[1:]


def answer(attribute: str, name: str, value: str) -> str:
    """Return the plain sentence that answers a question about a person."""
    return ATTRIBUTES[attribute].answer.format(n=name, v=value)


@dataclass(frozen=True, slots=True)
class Passage:
    """A short text about one person and the facts it states, in its order."""

    name: str
    facts: dict[str, str]
    text: str


def passage(
    rng: Random, attributes: list[str], *, test: bool, phrasings: tuple[int, ...]
) -> Passage:
    """Return a passage with these attributes of a new person, by name first, then by pronoun."""
    name = person(rng, test=test)
    pronoun = rng.choice(("she", "he"))
    facts = {attribute: value(rng, attribute, test=test) for attribute in attributes}
    sentences = []
    for index, (attribute, what) in enumerate(facts.items()):
        spoken = name if index == 0 else pronoun
        sentences.append(statement(attribute, spoken, what, rng.choice(phrasings)))
    text = " ".join(sentences).replace(f" of {pronoun} ", f" of {name} ")  # not "the car of she"
    return Passage(name, facts, text)
