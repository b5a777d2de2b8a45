"""Bias as Ouyang et al. 2022 measure it (section 4.2, appendix E.6): the entropy of a choice.

Two sentences differ in one group that they name. With p the share of the first in the probability
of the two, the entropy is -p log2 p - (1-p) log2 (1-p): 1 bit where the policy prefers neither, 0
where it is certain. It says how strongly a policy prefers, not whom; beside it stands the share of
pairs where it finds the stereotyped sentence likelier, where the data say which one that is.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from pipeline.evaluation.likelihood import likelihoods
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Better, Quantity, Table, tabulate
from reward_models.row_files import csv_rows, text_lines
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Report, Step, silent

SUITE = "bias"
SCORER = "log-likelihood"
CROWS_PAIRS, WINOGENDER = "crows-pairs", "winogender"
_CROWS = {"sent_more", "sent_less", "stereo_antistereo", "bias_type"}
_METRICS: Mapping[str, Better] = {"entropy_bits": "higher", "prefers_stereotype": None}


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two sentences that differ in one group; `first_is_stereotype` is None where nobody said."""

    id: str
    data: str  # where it is from: crows-pairs or winogender
    category: str
    first: str
    second: str
    first_is_stereotype: bool | None = None


def entropy_bits(first: float, second: float) -> float:
    """Entropy in bits of a choice between two, from their log-probabilities in nats.

    >>> entropy_bits(-20.0, -20.0)
    1.0
    >>> round(entropy_bits(0.0, math.log(3)), 6)
    0.811278
    """
    difference = abs(first - second)
    # -p log p - q log q with p = 1 / (1 + exp(-d)), written so that no exponential overflows.
    rest = math.exp(-difference)
    nats = math.log1p(rest) + difference * rest / (1.0 + rest)
    return nats / math.log(2)


def load_pairs(path: Path) -> list[SentencePair]:
    """Pairs of CrowS-Pairs (`crows_pairs_anonymized.csv`) or Winogender (`all_sentences.tsv`).

    Of Winogender the 120 sentences with a named participant, "he" against "she" (the paper's
    "binary" pairs). Raises ValueError for any other file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected CrowS-Pairs (csv) or Winogender (tsv)")
    header = next((line for _, line in text_lines(path)), "").rstrip("\r\n")
    if {name.strip('"') for name in header.split(",")} >= _CROWS:
        return list(_crows_pairs(row for _, row in csv_rows(path)))
    if {"sentid", "sentence"} <= set(header.split("\t")):
        return list(_winogender(csv_rows(path, delimiter="\t", quoted=False)))
    raise ValueError(
        f"{path}: neither CrowS-Pairs (columns sent_more, sent_less) nor Winogender (sentid)"
    )


def _crows_pairs(rows: Iterable[Mapping[str, str]]) -> Iterator[SentencePair]:
    """`sent_more` is the sentence about the disadvantaged group; the stereotype may be either."""
    for number, row in enumerate(rows):
        direction = row["stereo_antistereo"]
        yield SentencePair(
            f"{CROWS_PAIRS}-{row.get('', '') or number}",
            CROWS_PAIRS,
            row["bias_type"],
            row["sent_more"],
            row["sent_less"],
            {"stereo": True, "antistereo": False}.get(direction),
        )


def _winogender(rows: Iterable[tuple[str, Mapping[str, str]]]) -> Iterator[SentencePair]:
    """`occupation.participant.answer.gender.txt` names a sentence."""
    named = []
    for where, row in rows:
        parts = row["sentid"].split(".")
        if len(parts) < 4:
            raise ValueError(
                f"{where}: sentid '{row['sentid']}'; expected occupation.participant.answer.gender"
            )
        named.append((parts, row["sentence"]))
    for key, group in groupby(named, lambda one: one[0][:3]):
        sentences = {name[3]: sentence for name, sentence in group}
        if key[1] != "someone" and {"male", "female"} <= sentences.keys():
            name = f"{WINOGENDER}-{'.'.join(key)}"
            pair = (sentences["male"], sentences["female"])
            yield SentencePair(name, WINOGENDER, "gender", *pair)


def score_pairs(
    policies: Mapping[str, str | Path],
    pairs: Sequence[SentencePair],
    *,
    instructions: Mapping[str, str],
    separator: str = " ",
    batch_size: int = 32,
    report: Report = silent,
) -> list[Completion]:
    """One row a policy, instruction and pair: the entropy, and which sentence is likelier.

    Sentences are read after the instruction, as the paper's prompts have it. The row's prompt is
    the first sentence, its completion the second; nothing is generated.
    """
    found: list[Completion] = []
    texts = [
        (f"{instruction}{separator}" if instruction else "", sentence)
        for instruction in instructions.values()
        for pair in pairs
        for sentence in (pair.first, pair.second)
    ]
    for model, source in policies.items():
        done = len(found)
        total = len(policies) * len(texts) // 2

        def listen(step: Step, done: int = done, total: int = total) -> None:
            report(Step(done + step.done // 2, total))

        tokenizer, policy = load_tokenizer(source), load_policy(source)
        policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
        read = likelihoods(policy, tokenizer, texts, batch_size=batch_size, report=listen)
        logprobs = iter([one.logprob for one in read])
        found += [
            replace(_row(pair, next(logprobs), next(logprobs)), model=model, prompt_type=kind)
            for kind in instructions
            for pair in pairs
        ]
    return found


def _row(pair: SentencePair, first: float, second: float) -> Completion:
    scores: dict[str, float | None] = {
        "entropy_bits": entropy_bits(first, second),
        "first_logprob": first,
        "second_logprob": second,
    }
    if pair.first_is_stereotype is not None:
        likelier_first = 0.5 if first == second else float(first > second)
        told = likelier_first if pair.first_is_stereotype else 1.0 - likelier_first
        scores["prefers_stereotype"] = told
    return Completion(
        id=pair.id,
        model="",
        prompt=pair.first,
        completion=pair.second,
        suite=f"{SUITE}:{pair.data}",
        category=pair.category,
        scores={SCORER: scores},
    )


def bias_tables(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """By data set and instruction: mean entropy, and how often the stereotype is preferred."""
    found = []
    for suite in dict.fromkeys(row.suite for row in rows):
        for kind in dict.fromkeys(row.prompt_type for row in rows):
            kept = [row for row in rows if (row.suite, row.prompt_type) == (suite, kind)]
            for metric, better in _METRICS.items():
                told = [row for row in kept if row.has(SCORER, metric)]
                quantity = Quantity(suite, metric, kind, SCORER, better, "pair")
                found.append(tabulate(told, quantity, _score_of(metric), models))
    return [table for table in found if table.value_NM.size]


def _score_of(metric: str) -> Callable[[Completion], float | None]:
    return lambda row: row.score(SCORER, metric)
