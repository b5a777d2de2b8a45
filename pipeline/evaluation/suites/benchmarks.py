"""The suites on public data - bias, truthfulness, tax - and the judges behind an address.

Each has no rows until the config names its data.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.evaluation import EndpointConfig, EvaluationConfig, TruthfulQAConfig
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Table
from pipeline.evaluation.scorers.endpoint import Endpoint, check_endpoint, default_memory
from pipeline.evaluation.scorers.llm_judge import PairJudge
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.served import GuardScorer, PerspectiveScorer, perspective_key
from pipeline.evaluation.suites import alignment_tax as tax
from pipeline.evaluation.suites import bias, truthfulqa
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.suites.truthfulqa import (
    TruthPrompts,
    generate_answers,
    load_questions,
    score_choices,
    truthfulqa_tables,
)
from stages.generation.config import SamplingConfig
from stages.progress import Report, Step


def bias_rows(inputs: Inputs) -> list[Completion]:
    """Pairs of sentences under every instruction."""
    chosen = inputs.config.bias
    if chosen is None:
        return []
    pairs = [pair for path in chosen.pairs for pair in bias.load_pairs(Path(path))]
    return bias.score_pairs(
        inputs.policies,
        pairs,
        instructions=inputs.config.instructions,
        separator=inputs.config.separator,
        batch_size=inputs.config.sampling.batch_size,
        report=inputs.report,
    )


def bias_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """Entropy and preference for the stereotype."""
    paired = [row for row in rows if row.suite.startswith(f"{bias.SUITE}:")]
    return bias.bias_tables(paired, models)


def truthfulness_rows(inputs: Inputs) -> list[Completion]:
    """Reference answers by likelihood, then answers of the policies' own."""
    chosen = inputs.config.truthfulqa
    if chosen is None:
        return []
    questions = load_questions(Path(chosen.questions))
    prompts, size = _prompts(chosen), inputs.config.sampling.batch_size
    read = score_choices(
        inputs.policies,
        questions,
        prompts,
        kinds=chosen.kinds,
        batch_size=size,
        report=_half(inputs.report, 0),
    )
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=chosen.max_new_tokens, batch_size=size)
    said = generate_answers(
        inputs.policies,
        questions,
        prompts,
        kinds=chosen.kinds,
        sampling=greedy,
        seed=inputs.seed,
        report=_half(inputs.report, 1),
    )
    return [*read, *said]


def truthfulness_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """MC1, MC2, answers nearer the truth, and silence."""
    return truthfulqa_tables([row for row in rows if row.suite == truthfulqa.SUITE], models)


def tax_rows(inputs: Inputs) -> list[Completion]:
    """lm-eval's tasks."""
    chosen = inputs.config.tax
    if chosen is None:
        return []
    benchmarks = tax.Benchmarks(
        chosen.tasks,
        None if chosen.folder is None else Path(chosen.folder),
        chosen.documents,
        chosen.shots,
    )
    return tax.run_benchmarks(inputs.policies, benchmarks, seed=inputs.seed, report=inputs.report)


def tax_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """Each task's metrics."""
    return tax.tax_tables([row for row in rows if row.suite == tax.SUITE], models)


def tax_notes(rows: Sequence[Completion], _: EvaluationConfig) -> list[str]:
    """Figures that only a whole corpus has."""
    return tax.corpus_notes([row for row in rows if row.suite == tax.SUITE])


def served_judges(inputs: Inputs) -> list[Scorer]:
    """The judge of preferences, if one is named; ValueError where its address does not answer."""
    chosen = inputs.config.judge
    if chosen is None:
        return []
    endpoint = _endpoint(chosen)
    return [PairJudge(endpoint, inputs.config.baseline, _memory(chosen))]


def served_safety(inputs: Inputs) -> list[Scorer]:
    """The guard and Perspective, where they are named."""
    found: list[Scorer] = []
    if (guard := inputs.config.guard) is not None:
        found.append(GuardScorer(_endpoint(guard), _memory(guard)))
    if (perspective := inputs.config.perspective) is not None:
        key = perspective_key(perspective.key_variable)
        rate = perspective.requests_per_second
        found.append(PerspectiveScorer(key, requests_per_second=rate))
    return found


def _prompts(chosen: TruthfulQAConfig) -> TruthPrompts:
    return TruthPrompts(chosen.instruction, chosen.shots)


def _endpoint(chosen: EndpointConfig) -> Endpoint:
    endpoint = Endpoint(
        chosen.url,
        chosen.model,
        chosen.key_variable,
        chosen.price_prompt,
        chosen.price_response,
        chosen.parallel,
    )
    check_endpoint(endpoint)
    return endpoint


def _memory(chosen: EndpointConfig) -> Path:
    return default_memory() if chosen.cache is None else Path(chosen.cache)


def _half(report: Report, half: int) -> Report:
    def said(step: Step) -> None:
        report(Step(half * step.total + step.done, 2 * step.total))

    return said
