"""The alignment tax: every policy on public benchmarks, through EleutherAI's lm-eval.

Prompts, answers and metrics are lm-eval's. What is added here is the pairing: every policy answers
the same documents, so a policy's loss against the base has an interval of its own (Ouyang et al.
2022, section 4.2, "alignment tax"). A metric that lm-eval computes over the whole corpus, as BLEU,
has no value for one document, hence no interval: it is given as a note.
"""

import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pipeline.config.evaluation import EvaluationConfig, TaxConfig
from pipeline.config.messages import require
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import Better, Quantity, Table, score_table
from pipeline.evaluation.suites.suite import Inputs, Samples, Suite, part_of
from stages.models import device, load_policy, load_tokenizer, to_device
from stages.precision import inference_weights
from stages.progress import Report, Step

SUITE: Final = "tax"
SCORER, CORPUS = "lm-eval", "lm-eval, whole corpus"
_BATCH = 16
_PORTION = 32 * _BATCH  # requests between two reports


def tax_samples(inputs: Inputs) -> list[Completion]:
    """Run every policy on every task: a row a document, and one a task for corpus metrics.

    Raises ValueError for an unknown task, or where lm-eval is not installed. Tasks whose data is on
    the hub are downloaded by lm-eval.
    """
    config = inputs.config.tax
    if config is None:
        return []
    manager = _manager(config)
    rows: list[Completion] = []
    for number, (model, source) in enumerate(inputs.policies.items()):
        report = part_of(inputs.report, number, len(inputs.policies))
        output = _evaluated(source, config, manager, inputs.seed, report)
        about = {
            "version": importlib.metadata.version("lm-eval"),
            "sha256": "",
            "threshold": None,
            "higher_is_better": output["higher_is_better"],
        }
        for task, samples in output["samples"].items():
            names = samples[0]["metrics"] if samples else ()
            metrics = [name for name in names if isinstance(samples[0][name], int | float)]
            rows += [_row(model, task, sample, metrics, about) for sample in samples]
            if corpus := _corpus_metrics(output["results"][task], metrics):
                row = Completion(f"{task}-corpus", model, prompt="", completion="", suite=SUITE)
                rows.append(replace(row, category=task, scores={CORPUS: corpus}))
    return rows


def _manager(config: TaxConfig) -> Any:
    require("benchmarks", "lm_eval")
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if config.folder is not None:
        if not Path(config.folder).is_dir():
            raise ValueError(f"{config.folder}: no such folder of lm-eval tasks")
        own = TaskManager(include_path=config.folder, include_defaults=False)
        if set(config.tasks) <= set(own.all_tasks):
            return own  # lm-eval's own thousands of files take seconds to list
    manager = TaskManager(include_path=config.folder)
    unknown = sorted(set(config.tasks) - set(manager.all_tasks))
    if unknown:
        raise ValueError(f"lm-eval has no task '{unknown[0]}'; `lm-eval ls tasks` lists them")
    return manager


def _evaluated(
    source: str | Path, config: TaxConfig, manager: Any, seed: int, report: Report
) -> dict[str, Any]:
    import lm_eval

    policy = load_policy(source, weights=inference_weights())
    to_device(policy, device())
    output: dict[str, Any] = lm_eval.simple_evaluate(
        model=_language_model(
            report,
            pretrained=policy,
            tokenizer=load_tokenizer(source),
            batch_size=_BATCH,
            device=str(policy.device),
        ),
        tasks=list(config.tasks),
        task_manager=manager,
        num_fewshot=config.shots,
        limit=config.documents,
        bootstrap_iters=0,  # intervals are computed here, paired
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return output


def _language_model(report: Report, **arguments: Any) -> Any:
    """A policy as lm-eval's model, evaluated in portions so that a long task shows its progress."""
    from lm_eval.models.huggingface import HFLM

    class PolicyLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
            return in_portions(super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(
            self, requests: Sequence[Any], disable_tqdm: bool = True
        ) -> list[Any]:
            return in_portions(super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
            return in_portions(super().generate_until, requests, disable_tqdm)

    def in_portions(
        evaluate: Callable[..., list[Any]], requests: Sequence[Any], disable_tqdm: bool
    ) -> list[Any]:
        results: list[Any] = []
        for start in range(0, len(requests), _PORTION):
            portion = list(requests[start : start + _PORTION])
            results += evaluate(portion, disable_tqdm=disable_tqdm)
            report(Step(len(results), len(requests)))
        return results

    return PolicyLM(**arguments)


def _corpus_metrics(results: Mapping[str, Any], per_document: Sequence[str]) -> Mapping[str, float]:
    """The numbers that no document has; lm-eval names a number "metric,filter"."""
    metrics = {}
    for key, value in results.items():
        metric = key.partition(",")[0]
        is_known = metric in per_document or metric.endswith("_stderr")
        if "," in key and not is_known and isinstance(value, float):
            metrics[metric] = value
    return metrics


def _row(
    model: str,
    task: str,
    sample: Mapping[str, Any],
    metrics: Sequence[str],
    about: Mapping[str, Any],
) -> Completion:
    return Completion(
        id=f"{task}-{sample['doc_id']}-{sample['filter']}",
        model=model,
        prompt=str(sample["arguments"][0][0]),
        completion=str(sample["filtered_resps"][0]),
        suite=SUITE,
        category=task if sample["filter"] == "none" else f"{task}, {sample['filter']}",
        prompt_extra={"target": str(sample["target"])},
        scores={SCORER: {metric: float(sample[metric]) for metric in metrics}},
        score_meta={SCORER: about},
    )


def tax_tables(rows: ScoredRows, models: Sequence[str], _: EvaluationConfig) -> list[Table]:
    """Return the mean of each metric over the documents of each task; the task is the filter."""
    directions = rows.meta.get(SCORER, {}).get("higher_is_better", {})
    tables = []
    for task, part in rows.of_suite(SUITE).by("category"):
        for metric in part.metrics(SCORER):
            higher = directions.get(task.partition(",")[0], {}).get(metric)
            better: Better = None if higher is None else "higher" if higher else "lower"
            quantity = Quantity(SUITE, metric, task, SCORER, better, "document")
            tables.append(score_table(part, quantity, models))
    return tables


def tax_notes(rows: ScoredRows, _: EvaluationConfig) -> list[str]:
    """Return a sentence for each metric that only the whole corpus has."""
    notes = []
    for task, part in rows.of_suite(SUITE).by("category"):
        for metric in part.metrics(CORPUS):
            corpus = part.judged(CORPUS, metric)
            values = zip(corpus.fields["model"], corpus.score(CORPUS, metric), strict=True)
            numbers = ", ".join(f"{model} {value:.4g}" for model, value in values)
            notes.append(f"{task}, {metric} (whole corpus, no interval): {numbers}")
    return notes


TAX = Suite(
    SUITE,
    Samples(SUITE, "evaluation.tax", tax_samples, likelihoods=True),
    tax_tables,
    notes=tax_notes,
)
