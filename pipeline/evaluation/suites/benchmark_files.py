"""The files that an evaluation reads last are looked into first, before anything is trained."""

from pathlib import Path

from pipeline.config.evaluation import EvaluationConfig


def check_files(config: EvaluationConfig) -> None:
    """Raise ValueError for a file of questions, pairs or labelled texts that cannot be read."""
    if config.truthfulqa is not None:
        from pipeline.evaluation.suites.truthfulqa import load_questions

        load_questions(Path(config.truthfulqa.questions))
    if config.bias is not None:
        from pipeline.evaluation.suites.bias import load_pairs

        for path in config.bias.pairs:
            load_pairs(Path(path))
    if config.grounding:
        from pipeline.evaluation.scorers.validity import read_begin

        for path in config.grounding:
            read_begin(Path(path), config.closed_domain[0])
    if config.calibration is not None:
        from pipeline.evaluation.external.sample_files import open_samples

        calibration = Path(config.calibration)
        if not open_samples([calibration], {}).gives("toxicity"):
            raise ValueError(
                f"{calibration}: no column 'toxicity' in it; nothing to calibrate against"
            )
