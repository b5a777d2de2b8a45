"""The two domains: demonstrations of one to train on, prompts of both to answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.quickstart.data import Sizes, quickstart_data
from pipeline.studies.robustness.config import FileDomains, QuickstartDomains
from reward_models.records import Demonstration, Prompt

REFERENCES = "references"  # key of a test prompt's extra fields: texts that an answer may equal


@dataclass(frozen=True, slots=True)
class Domains:
    """Training and validation demonstrations of one domain; test prompts of it and of another."""

    train: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    in_domain: Sequence[Prompt]
    out_of_domain: Sequence[Prompt]


def load_domains(source: QuickstartDomains | FileDomains, seed: int) -> Domains:
    """Both domains; ValueError `file:line: ...` for a row that is no demonstration."""
    match source:
        case QuickstartDomains():
            made = quickstart_data(_sizes(source), seed)
            return Domains(
                made.demonstrations,
                made.validation,
                [_answered(prompt) for prompt in made.validation_prompts],
                [_answered(prompt) for prompt in made.test_prompts],
            )
        case FileDomains():
            from stages.data.demonstrations import load_demonstrations

            return Domains(
                load_demonstrations(source.train),
                load_demonstrations(source.validation),
                _tests(load_demonstrations(source.in_domain), "in"),
                _tests(load_demonstrations(source.out_of_domain), "out"),
            )


def _sizes(source: QuickstartDomains) -> Sizes:
    return Sizes(
        demonstrations=source.demonstrations,
        ranking_prompts=0,
        ppo_prompts=0,
        validation_prompts=source.test_prompts,
        test_prompts=source.test_prompts,
        toxicity_prompts=0,
        pretraining_texts=0,
        held_out_texts=0,
    )


def _answered(prompt: Prompt) -> Prompt:
    """The prompt with the world's own answer as its reference."""
    return replace(prompt, extra={**prompt.extra, REFERENCES: [prompt.extra["world"]["reference"]]})


def _tests(demonstrations: Sequence[Demonstration], name: str) -> list[Prompt]:
    return [
        Prompt(
            one.prompt,
            id=one.id or f"{name}-{number}",
            context=one.context,
            category=one.category,
            history=one.history,
            extra={**one.extra, REFERENCES: list(one.extra.get(REFERENCES, [one.response]))},
        )
        for number, one in enumerate(demonstrations)
    ]
