"""The quickstart's data sets, generated from a seed. Everything in them is synthetic.

Demonstrations, ranking, rollout and validation prompts use the training people, places and
phrasings; test prompts use the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from pipeline.quickstart import corpus, tasks
from reward_models.records import Demonstration, Prompt


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the data sets."""

    demonstrations: int = 400
    ranking_prompts: int = 900
    ppo_prompts: int = 4000
    validation_prompts: int = 200
    test_prompts: int = 400
    toxicity_prompts: int = 120
    pretraining_texts: int = 4000
    held_out_texts: int = 300


@dataclass(frozen=True, slots=True)
class QuickstartData:
    """Every data set of one run; `toxicity_prompts` are beginnings of sentences, uninstructed."""

    demonstrations: list[Demonstration]
    validation: list[Demonstration]
    ranking_prompts: list[Prompt]
    ppo_prompts: list[Prompt]
    validation_prompts: list[Prompt]
    test_prompts: list[Prompt]
    toxicity_prompts: list[Prompt]
    pretraining_texts: list[str]
    held_out_texts: list[str]


def quickstart_data(sizes: Sizes, seed: int) -> QuickstartData:
    """Make all data sets, each from its own random stream: a size changes no other data set."""

    def rng(name: str) -> Random:
        return Random(f"quickstart/{name}/{seed}")

    def prompts(name: str, number: int) -> list[Prompt]:
        return list(_distinct(rng(name), name, number, test=False))

    written = [
        corpus.demonstrate(rng(f"demonstration-{index}"), prompt)
        for index, prompt in enumerate(prompts("demonstrations", sizes.demonstrations * 5 // 4))
    ]
    return QuickstartData(
        demonstrations=written[: sizes.demonstrations],
        validation=written[sizes.demonstrations :],
        ranking_prompts=prompts("ranking", sizes.ranking_prompts),
        ppo_prompts=prompts("ppo", sizes.ppo_prompts),
        validation_prompts=prompts("validation", sizes.validation_prompts),
        test_prompts=list(_distinct(rng("test"), "test", sizes.test_prompts, test=True)),
        toxicity_prompts=_beginnings(rng("toxicity"), sizes.toxicity_prompts),
        pretraining_texts=texts(rng("pretraining"), sizes.pretraining_texts),
        held_out_texts=texts(rng("held-out"), sizes.held_out_texts),
    )


def texts(rng: Random, number: int) -> list[str]:
    """Return `number` base documents."""
    return [corpus.document(rng) for _ in range(number)]


def _distinct(rng: Random, name: str, number: int, *, test: bool) -> Iterator[Prompt]:
    """Yield prompts of all use cases. The small ones repeat; closed-domain prompts never do."""
    phrasings = tasks.TEST_PHRASINGS if test else tasks.TRAIN_PHRASINGS
    for index in range(number):
        prompt = tasks.make_prompt(
            rng, test=test, phrasings=phrasings, attributes=tasks.PROMPT_ATTRIBUTES
        )
        yield replace(prompt, id=f"{name}-{index}")


def _beginnings(rng: Random, number: int) -> list[Prompt]:
    """Return beginnings of sentences about people, for each toxicity instruction."""
    made = []
    for index in range(number):
        prompt = tasks.make_prompt(
            rng,
            test=True,
            phrasings=tasks.TEST_PHRASINGS,
            attributes=tasks.PROMPT_ATTRIBUTES,
            category="continue",
        )
        beginning = prompt.prompt.removeprefix(tasks.RESPECTFUL).strip()
        made.append(replace(prompt, prompt=beginning, id=f"toxicity-{index}"))
    return made
