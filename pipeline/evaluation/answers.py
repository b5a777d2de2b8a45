"""The completions that several suites share: to test prompts, and to toxicity prompts."""

from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.setting import Setting

TEST, TOXICITY = "test", "toxicity"


def test_answers(setting: Setting) -> list[Completion]:
    """One completion of every policy to every test prompt."""
    return generate_completions(
        setting.policies,
        setting.prompts,
        suite=TEST,
        sampling=setting.config.sampling,
        seed=setting.seed,
        report=setting.report,
    )


def toxicity_answers(setting: Setting) -> list[Completion]:
    """One or several completions to every toxicity prompt under every instruction."""
    config = setting.config
    sampling, samples = config.toxicity_sampling
    return generate_completions(
        setting.policies,
        setting.toxicity_prompts,
        suite=TOXICITY,
        sampling=sampling,
        instructions=config.instructions,
        separator=config.separator,
        samples=samples,
        seed=setting.seed,
        report=setting.report,
    )
