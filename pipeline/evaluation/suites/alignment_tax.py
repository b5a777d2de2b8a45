"""The alignment tax: every policy on public benchmarks, through EleutherAI's lm-eval.

Prompts, answers and metrics are lm-eval's. What is added here is the pairing: every policy answers
the same documents, so a policy's loss against the base has an interval of its own (Ouyang et al.
2022, section 4.2, "alignment tax"). A metric that lm-eval computes over the whole corpus, as BLEU,
has no value for one document, hence no interval: it is given as a note.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Better, Quantity, Table, tabulate
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Report, Step, silent

_AT_ONCE = 32  # batches between two reports


class PolicyLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """Answers lm-eval's requests in portions, so that a long task shows how far it is."""

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        report: Report,
    ) -> None:
        super().__init__(
            pretrained=policy, tokenizer=tokenizer, batch_size=batch_size, device=str(policy.device)
        )
        self._report = report

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        """log p of each continuation, and whether greedy decoding would give it."""
        return self._in_portions(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[Any]:
        """log p of each whole text."""
        return self._in_portions(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        """What the policy says, up to each request's stop words."""
        return self._in_portions(super().generate_until, requests, disable_tqdm)

    def _in_portions(
        self, answer: Callable[..., list[Any]], requests: Sequence[Any], disable_tqdm: bool
    ) -> list[Any]:
        size = _AT_ONCE * int(self.batch_size)
        found: list[Any] = []
        for start in range(0, len(requests), size):
            found += answer(list(requests[start : start + size]), disable_tqdm=disable_tqdm)
            self._report(Step(len(found), len(requests)))
        return found


SUITE, SCORER, CORPUS = "tax", "lm-eval", "lm-eval, whole corpus"


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """Which lm-eval tasks: by name, or as YAML files of one's own in `folder`."""

    tasks: Sequence[str]
    folder: Path | None = None  # task files; they come before lm-eval's own
    documents: int | None = None  # of each task; None: all
    shots: int | None = None  # answered examples in the prompt; None: as the task says
    batch_size: int = 16


def run_benchmarks(
    policies: Mapping[str, str | Path],
    chosen: Benchmarks,
    *,
    seed: int,
    report: Report = silent,
) -> list[Completion]:
    """Every policy on every task: a row a document, and one a task for what its corpus has.

    Raises ValueError for an unknown task, or where lm-eval is not installed. Tasks whose data is on
    the hub are downloaded by lm-eval.
    """
    manager = _manager(chosen)
    rows: list[Completion] = []
    for place, (model, source) in enumerate(policies.items()):

        def listen(step: Step, place: int = place) -> None:
            done = place + step.done / max(1, step.total)
            report(Step(round(100 * done), 100 * len(policies)))

        found = _evaluated(source, chosen, manager, seed, listen)
        for task, samples in found["samples"].items():
            metrics = _scalar_metrics(samples)
            higher = found["higher_is_better"].get(task, {})
            rows += [_row(model, task, sample, metrics, higher) for sample in samples]
            if corpus := _corpus_metrics(found["results"][task], metrics):
                rows.append(_corpus_row(model, task, corpus))
    return rows


def tax_tables(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """Mean of each metric over the documents of each task; the task is the filter."""
    scored = [row for row in rows if SCORER in row.scores]
    tables = []
    for task in dict.fromkeys(row.category for row in scored):
        kept = [row for row in scored if row.category == task]
        for metric in kept[0].scores[SCORER] or ():
            better = _better(kept[0].prompt_extra["higher_is_better"].get(metric))
            quantity = Quantity(SUITE, metric, str(task), SCORER, better, "document")
            tables.append(tabulate(kept, quantity, _score_of(metric), models))
    return tables


def corpus_notes(rows: Sequence[Completion]) -> list[str]:
    """One sentence for each metric that only the whole corpus has."""
    found: dict[tuple[str | None, str], list[str]] = {}
    for row in rows:
        for metric, value in (row.scores.get(CORPUS) or {}).items():
            found.setdefault((row.category, metric), []).append(f"{row.model} {value:.4g}")
    return [
        f"{task}, {metric} (whole corpus, no interval): {', '.join(values)}"
        for (task, metric), values in found.items()
    ]


def _better(higher: bool | None) -> Better:
    return None if higher is None else "higher" if higher else "lower"


def _manager(chosen: Benchmarks) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError(
            "the tax suite needs lm-eval: pip install 'instruct-rlhf[benchmarks]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if chosen.folder is not None:
        if not chosen.folder.is_dir():
            raise ValueError(f"{chosen.folder}: no such folder of lm-eval tasks")
        own = TaskManager(include_path=str(chosen.folder), include_defaults=False)
        if set(chosen.tasks) <= set(own.all_tasks):
            return own  # lm-eval's own thousands of files take seconds to list
    manager = TaskManager(include_path=chosen.folder and str(chosen.folder))
    unknown = sorted(set(chosen.tasks) - set(manager.all_tasks))
    if unknown:
        raise ValueError(f"lm-eval has no task '{unknown[0]}'; `lm-eval ls tasks` lists them")
    return manager


def _evaluated(
    source: str | Path, chosen: Benchmarks, manager: Any, seed: int, report: Report
) -> dict[str, Any]:
    import lm_eval

    policy = load_policy(source)
    policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
    model = PolicyLM(policy, load_tokenizer(source), chosen.batch_size, report)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=list(chosen.tasks),
        task_manager=manager,
        num_fewshot=chosen.shots,
        limit=chosen.documents,
        bootstrap_iters=0,  # intervals are computed here, paired
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return found


def _scalar_metrics(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics that have one number for each document."""
    names = samples[0]["metrics"] if samples else ()
    return [name for name in names if isinstance(samples[0][name], (bool, int, float))]


def _corpus_metrics(results: Mapping[str, Any], per_document: Sequence[str]) -> Mapping[str, float]:
    """lm-eval names a figure "metric,filter"."""
    found = {}
    for key, value in results.items():
        metric = key.partition(",")[0]
        known = metric in per_document or metric.endswith("_stderr")
        if "," in key and not known and isinstance(value, float):
            found[metric] = value
    return found


def _row(
    model: str,
    task: str,
    sample: Mapping[str, Any],
    metrics: Sequence[str],
    higher: Mapping[str, bool | None],
) -> Completion:
    return Completion(
        id=f"{task}-{sample['doc_id']}-{sample['filter']}",
        model=model,
        prompt=str(sample["arguments"][0][0]),
        completion=str(sample["filtered_resps"][0]),
        suite=SUITE,
        category=task if sample["filter"] == "none" else f"{task}, {sample['filter']}",
        prompt_extra={"target": str(sample["target"]), "higher_is_better": dict(higher)},
        scores={SCORER: {metric: float(sample[metric]) for metric in metrics}},
    )


def _corpus_row(model: str, task: str, metrics: Mapping[str, float]) -> Completion:
    """The figures of a whole corpus, which no document has."""
    return Completion(
        id=f"{task}-corpus", model=model, prompt="", completion="", suite=SUITE, category=task,
        scores={CORPUS: dict(metrics)},
    )  # fmt: skip


def _score_of(metric: str) -> Callable[[Completion], float | None]:
    return lambda row: row.score(SCORER, metric)
