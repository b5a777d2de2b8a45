"""A room on a store, without an experiment around it: any kind of task, and a policy to ask.

rlhf add-tasks writing.jsonl labels.sqlite --kind demonstration
rlhf room labels.sqlite --policy runs/mine
rlhf export labels.sqlite --out labels        demonstrations.jsonl, comparisons/, ...
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

from labeling_ui.forms import TaskKind
from labeling_ui.store.records import RoomTask, task_from
from labeling_ui.store.store import Store
from labeling_ui.tasks.live import Answer, Live
from pipeline.config.labeling import RoomSettings
from pipeline.config.loading import overridden, validated
from pipeline.evaluation.samples.records import Completion, completion_from
from pipeline.labeling.settings import add_known, check_room, serve_store
from reward_models.records import Prompt, RankingTask, Response, UniqueKeys
from reward_models.row_files import read_rows

Row = Mapping[str, Any]


def add_tasks(
    path: Path, where: str, kind: TaskKind, overlap: int, log: Callable[[str], None]
) -> None:
    """Add the tasks of a file to a store, which is made if it is new.

    For comparisons the file may hold samples (id, model, prompt, completion): then every two models
    are compared on every prompt that both answered.
    """
    rows = list(read_rows(path))
    if kind == "comparison" and rows and "completion" in rows[0][1]:
        tasks: list[RoomTask] = [*comparisons(rows)]
    else:
        unique, tasks = UniqueKeys(), []
        for line, row in rows:
            tasks.append(_task(kind, row, line))
            unique.add(line, f"task '{tasks[-1].id}'", tasks[-1].id)
    if not tasks:
        raise ValueError(f"{path}: no {kind} in it")
    with closing(Store(where)) as store:
        new = store.add_tasks(tasks, kind, overlap=overlap)
    log(f"{new} of {len(tasks)} tasks are new")


def comparisons(rows: Sequence[tuple[str, Row]]) -> list[RankingTask]:
    """Return a task for every two models' first samples on one prompt, from lines and rows."""
    by_prompt: dict[str, dict[str, Completion]] = {}
    for line, row in rows:
        for name in ("id", "model", "prompt", "completion"):
            if row.get("messages" if name == "prompt" else name, row.get(name)) is None:
                raise ValueError(f"{line}: no text '{name}'")
        try:
            sample = completion_from(row)
        except ValueError as error:
            raise ValueError(f"{line}: {error}") from None
        if not sample.prompt.strip():
            raise ValueError(f"{line}: 'prompt' is empty")
        prompt = f"{row.get('suite', '')}/{row.get('prompt_type', '')}/{sample.id}"
        by_prompt.setdefault(prompt, {}).setdefault(sample.model, sample)
    return [
        _comparison(prompt, one, other)
        for prompt, models in by_prompt.items()
        for one, other in combinations(models.values(), 2)
    ]


def settings_of(sets: Sequence[str], given: Mapping[str, object]) -> RoomSettings:
    """Return checked settings from `--set` and from those `given` by options of their own."""
    mapping: dict[str, Any] = {}
    for text in sets:
        mapping = overridden(mapping, text.removeprefix("labeling."))
    mapping |= {name: value for name, value in given.items() if value is not None}
    settings = validated(RoomSettings, values=mapping, where="room: ")
    check_room(settings)
    return settings


def serve_room(
    where: str,
    settings: RoomSettings,
    policy: Path | None,
    outputs: int,
    log: Callable[[str], None],
) -> None:
    """Serve the room on a store until it is interrupted; a policy may answer people's prompts."""
    live = None if policy is None else Live(policy_answers(policy), outputs)
    with closing(Store(where)) as store:
        add_known(settings, store)
        serve_store(settings, store, store.tasks(), live=live, log=log)


def _task(kind: TaskKind, row: Row, line: str) -> RoomTask:
    try:
        return task_from(kind, row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{line}: {error}") from None


def _comparison(prompt: str, one: Completion, other: Completion) -> RankingTask:
    outputs = tuple(
        Response(str(i), sample.completion, sample.model, sample.generation)
        for i, sample in enumerate((one, other))
    )
    return RankingTask(
        f"{prompt}/{one.model}/{other.model}",
        one.prompt,
        outputs,
        context=one.context,
        category=one.category,
        history=one.history,
    )


def policy_answers(path: Path) -> Answer:
    """Return a function that draws K new samples of a run's policy on a conversation."""
    import torch

    from pipeline.models.policies import policy_folder
    from stages.data.template import prompt_ids, response_text
    from stages.generation.config import SamplingConfig
    from stages.generation.generate import generate_responses
    from stages.models import load_policy, load_tokenizer
    from stages.precision import inference_weights

    folder = policy_folder(path)
    tokenizer, policy = load_tokenizer(folder), load_policy(folder, weights=inference_weights())
    sampling, generator = SamplingConfig(), torch.Generator()
    generator.seed()

    def answer(prompt: Prompt, outputs: int) -> list[Response]:
        prompts = [prompt_ids(tokenizer, prompt.prompt, history=prompt.history)] * outputs
        samples = generate_responses(policy, tokenizer, prompts, sampling, generator=generator)
        settings = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        texts = [response_text(tokenizer, sample.ids) for sample in samples]
        return [Response(str(i), text, str(path), settings) for i, text in enumerate(texts)]

    return answer
