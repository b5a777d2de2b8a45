"""Models that rank tasks beside people: into the same store, under names that no person can have.

A judge leans to what comes first, and to what is longer. So it gets every task twice, the outputs
in a random order and in the reverse of it, and its ranking is by the pairs that each output wins
over both: what swapping reverses is a tie. Both orders and both verdicts are stored, from which the
report counts how often a judge followed the position (Zheng et al. 2023, arXiv 2306.05685). A judge
sees a task and nothing that people did with it, and people see nothing of judges.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from labeling_ui.store.store import Store
from pipeline.config.evaluation import EndpointConfig
from pipeline.config.loading import validated
from pipeline.evaluation.scorers.endpoint import Endpoint, Message, Reply
from pipeline.labeling.exchange import store_at
from reward_models.records import JUDGE, Ranking, RankingTask, Response
from reward_models.row_files import read_text

LETTERS = "ABCDEFGHI"
TASKS_AT_ONCE = 32  # between two writes to the store
MAX_FAILED = 0.01  # a larger share makes the command fail, once everything else is stored
VERDICT_TOKENS = 512
INSTRUCTION = """\
You rank several responses to one prompt, as a careful annotator would. Judge which one a user would
rather have: does it do what the prompt asks, is what it says true and supported by the given
passage, is it harmless? Length by itself is no merit. Do not let the order of the responses matter.
Responses of the same quality are tied.
Think in at most three sentences. Then write a last line with all letters, best first, with > for
better and = for a tie, in double brackets, such as
[[B > A = C]]"""
_VERDICT = re.compile(r"\[\[([A-I\s>=]+)\]\]", re.IGNORECASE)

Verdict = Mapping[str, float]  # by response id; higher is better


class Judge(Protocol):
    """A model that ranks. `version` names the prompt, or whatever else decides its verdicts."""

    @property
    def model(self) -> str:
        """The name of the model."""

    @property
    def version(self) -> str:
        """The version of its prompt."""

    def verdicts(
        self, requests: Sequence[tuple[RankingTask, Sequence[Response]]]
    ) -> list[Verdict | None]:
        """Return a verdict on each task with its responses in this order; None: it failed."""

    def costs(self) -> dict[str, Any]:
        """Return the requests, failures and costs so far."""


@dataclass
class EndpointJudge:
    """A model behind an OpenAI-compatible address."""

    endpoint: Endpoint
    instruction: str = INSTRUCTION
    replies: list[Reply] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.endpoint.config.model

    @property
    def version(self) -> str:
        """The first letters of the instruction's hash."""
        return sha256(self.instruction.encode()).hexdigest()[:6]

    def verdicts(
        self, requests: Sequence[tuple[RankingTask, Sequence[Response]]]
    ) -> list[Verdict | None]:
        """Return a verdict on each task with its responses in this order; None: it failed."""
        conversations = [conversation(self.instruction, *one) for one in requests]
        replies = self.endpoint.replies(conversations, max_tokens=VERDICT_TOKENS)
        self.replies += replies
        return [
            verdict(reply.text or "", order)
            for reply, (_, order) in zip(replies, requests, strict=True)
        ]

    def costs(self) -> dict[str, Any]:
        """Return the requests, failures and costs so far."""
        return asdict(self.endpoint.bill(self.replies))


@dataclass(frozen=True)
class LocalJudge:
    """A model of this machine, which gives each response of an order a score."""

    folder: Path
    score: Callable[[RankingTask, Sequence[Response]], Sequence[float]]
    version: str = "scores"

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.folder)

    def verdicts(
        self, requests: Sequence[tuple[RankingTask, Sequence[Response]]]
    ) -> list[Verdict | None]:
        """Return a verdict on each task with its responses in this order; None: it failed."""
        return [
            dict(zip((r.id for r in order), self.score(task, order), strict=True))
            for task, order in requests
        ]

    def costs(self) -> dict[str, Any]:
        """Return the requests, failures and costs so far."""
        return {}


def conversation(instruction: str, task: RankingTask, order: Sequence[Response]) -> list[Message]:
    """Return the messages that ask for a verdict on the responses in this order."""
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": question(task, order)},
    ]


def question(task: RankingTask, order: Sequence[Response]) -> str:
    """Return a task with lettered responses as one text."""
    turns = "\n\n".join(map(str, task.history))
    before = f"[Earlier turns]\n{turns}\n\n" if turns else ""
    passage = f"[Passage]\n{task.context}\n\n" if task.context else ""
    responses = "\n\n".join(
        f"[Response {letter}]\n{response.text}"
        for letter, response in zip(LETTERS, order, strict=False)
    )
    return f"{before}{passage}[Prompt]\n{task.prompt}\n\n{responses}"


def verdict(text: str, order: Sequence[Response]) -> Verdict | None:
    """Return the last bracketed order of a reply; None unless it has every letter once."""
    matches = _VERDICT.findall(text)
    if not matches:
        return None
    tiers = [tier.upper().replace(" ", "").split("=") for tier in matches[-1].split(">")]
    letters = [letter.strip() for tier in tiers for letter in tier]
    if sorted(letters) != list(LETTERS[: len(order)]):
        return None
    return {
        order[LETTERS.index(letter.strip())].id: -float(rank)
        for rank, tier in enumerate(tiers)
        for letter in tier
    }


def combined_ranks(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return ranks by the pairs that each response wins, less those it loses, over all verdicts.

    What one verdict reverses of another cancels out.
    """
    names = sorted(verdicts[0])
    wins = {
        name: sum(
            (one[name] > one[other]) - (one[name] < one[other])
            for one in verdicts
            for other in names
        )
        for name in names
    }
    levels = sorted(set(wins.values()), reverse=True)
    return {name: levels.index(wins[name]) + 1 for name in names}


def presentations(task: RankingTask) -> list[list[Response]]:
    """Return the responses in an order drawn by the task's id, and in the reverse of it."""
    order = list(task.responses)
    random.Random(f"judge/{task.id}").shuffle(order)
    return [order, order[::-1]]


def judged(judge: Judge, tasks: Sequence[RankingTask]) -> list[Ranking | None]:
    """Return a judge's ranking of each task; None where a verdict failed or cannot be read."""
    requests = [(task, order) for task in tasks for order in presentations(task)]
    verdicts = iter(judge.verdicts(requests))
    rankings: list[Ranking | None] = []
    for task in tasks:
        both = [next(verdicts) for _ in range(2)]
        valid = [one for one in both if one is not None]
        rankings.append(_ranking(judge, task, valid) if len(valid) == len(both) else None)
    return rankings


def _ranking(judge: Judge, task: RankingTask, verdicts: Sequence[Verdict]) -> Ranking:
    orders = [[response.id for response in order] for order in presentations(task)]
    presented = [
        {"shown_order": order, "ranks": combined_ranks([one])}
        for order, one in zip(orders, verdicts, strict=True)
    ]
    return Ranking(
        task=task.id,
        annotator=judge_name(judge),
        kind="judge",
        ranks=combined_ranks(verdicts),
        shown_order=orders[0],
        extra={"model": judge.model, "prompt_version": judge.version, "presentations": presented},
    )


def judge_name(judge: Judge) -> str:
    """Return the name under which a judge's rankings are stored."""
    return f"{JUDGE}{judge.model}/{judge.version}"


def judge_tasks(
    where: str,
    judge: Judge,
    *,
    most: int | None = None,
    log: Callable[[str], None],
) -> None:
    """Let a judge rank the tasks of a store that it has not ranked; each batch is stored at once.

    `most` bounds the number of tasks. Raises ValueError at the end where more than one in a hundred
    failed; the others are stored, and the same command tries the failed ones again.
    """
    name = judge_name(judge)
    with closing(store_at(where)) as store:
        done = {one.task for one in store.rankings(use="judges") if one.annotator == name}
        tasks = [task for task in store.tasks() if task.id not in done][:most]
        failed = 0
        for start in range(0, len(tasks), TASKS_AT_ONCE):
            batch = tasks[start : start + TASKS_AT_ONCE]
            rankings = [ranking for ranking in judged(judge, batch) if ranking is not None]
            store.submit_all(rankings)
            failed += len(batch) - len(rankings)
            log(f"{min(start + TASKS_AT_ONCE, len(tasks))} of {len(tasks)} tasks, {failed} failed")
        if tasks:
            _record(store, name, {"tasks": len(tasks), "failed_tasks": failed, **judge.costs()})
    log(f"{name}: {len(tasks) - failed} tasks ranked, {failed} failed; {_costs(judge.costs())}")
    if failed > MAX_FAILED * len(tasks):
        raise ValueError(
            f"{failed} of {len(tasks)} tasks got no verdict in both orders, expected at most "
            f"{MAX_FAILED:.0%}; the others are stored, the same command tries these again"
        )


def _record(store: Store, name: str, costs: Mapping[str, Any]) -> None:
    with store.database.write() as connection:
        store.log(connection, name, "judged", None, costs)


def _costs(costs: Mapping[str, Any]) -> str:
    if not costs:
        return "no request was sent"
    price = "price unknown" if costs["cost"] is None else f"cost {costs['cost']:.4f}"
    tokens = f"{costs['prompt_tokens']} + {costs['response_tokens']} tokens"
    return f"{costs['requests']} requests, {costs['failed']} failed, {tokens}, {price}"


def chosen_judge(
    url: str | None,
    model: str | None,
    reward_model: Path | None,
    policy: Path | None,
    *,
    instruction: Path | None,
    sets: Sequence[str],
) -> Judge:
    """Return the one judge that a command names; ValueError where it names none, or several."""
    names = {"--url": url, "--reward-model": reward_model, "--policy": policy}
    given = [name for name, value in names.items() if value is not None]
    if len(given) != 1 or (url is None) != (model is None):
        raise ValueError(
            f"judge is {' and '.join(given) or 'missing'}; expected --url with --model, "
            "--reward-model or --policy"
        )
    if url is None and (instruction is not None or sets):
        raise ValueError("--instruction and --set are for an endpoint, expected --url with them")
    if reward_model is not None:
        return reward_judge(reward_model)
    if policy is not None:
        return policy_judge(policy)
    values = {"url": url, "model": model}
    endpoint = Endpoint(validated(EndpointConfig, sets, values))
    endpoint.check()
    text = INSTRUCTION if instruction is None else read_text(instruction)
    return EndpointJudge(endpoint, text)


def reward_judge(folder: Path) -> Judge:
    """Return a reward model as judge."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a reward model")

    from reward_models.model import RewardModel
    from reward_models.records import Prompt
    from stages.generation.score import score_responses
    from stages.models import load_tokenizer
    from stages.precision import inference_weights

    model, tokenizer = RewardModel.load(folder, weights=inference_weights()), load_tokenizer(folder)

    def score(task: RankingTask, order: Sequence[Response]) -> list[float]:
        prompt = Prompt(task.prompt, context=task.context, history=task.history)
        texts, ended = [one.text for one in order], [one.ended for one in order]
        return score_responses(model, tokenizer, [prompt] * len(order), texts, ended=ended)

    return LocalJudge(folder, score)


def policy_judge(folder: Path) -> Judge:
    """Return a local language model as judge, by the log-probability of each response's letter."""
    import torch

    from pipeline.models.policies import policy_folder
    from stages.data.template import prompt_ids
    from stages.models import device, load_policy, load_tokenizer, to_device
    from stages.precision import inference_weights

    model, tokenizer = (
        load_policy(policy_folder(folder), weights=inference_weights()),
        load_tokenizer(policy_folder(folder)),
    )
    to_device(model, device())
    letters = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in LETTERS]
    closing_question = "Which response is best? Answer with its letter."

    def score(task: RankingTask, order: Sequence[Response]) -> list[float]:
        ids_BL = torch.tensor(
            [prompt_ids(tokenizer, f"{question(task, order)}\n\n{closing_question}")]
        )
        with torch.no_grad():
            logits_V = model(ids_BL.to(device())).logits[0, -1].float()
        return torch.log_softmax(logits_V, 0)[letters[: len(order)]].tolist()

    return LocalJudge(folder, score, version="letters 1")
