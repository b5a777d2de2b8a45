"""The sections about training: reward against KL, learning curves, the reward model's quality."""

import math
from typing import Any

from pipeline.evaluation.samples.tables import Cell, Quantity
from pipeline.report.figures import Curve, LinePanel, Scale, interval_panel, line_panel
from pipeline.report.inputs import ReportInputs
from pipeline.report.layout import Paragraph, Section, grid, section
from pipeline.report.words import MINUS
from pipeline.steps.order import is_ppo

PPO_CURVES = (
    ("ppo/score", "reward model score"),
    ("ppo/validation_score", "score on validation prompts"),
    ("ppo/gold", "second opinion"),
    ("ppo/win_rate", "win rate against the start, by the second opinion"),
    ("ppo/toxicity", "toxicity of validation answers"),
    ("ppo/kl_nats", "KL from SFT, nats"),
    ("ppo/entropy_nats_per_token", "entropy, nats per token"),
    ("ppo/response_tokens", "response length, tokens"),
    ("ppo/eos_rate", "share that end by themselves"),
    ("ppo/clip_fraction", "share of clipped ratios"),
    ("ppo/explained_variance", "explained variance of the critic"),
    ("ppo/pretraining_loss_nats_per_token", "pretraining loss, nats per token"),
    ("ppo/pretraining_gradient_ratio", "norm of the pretraining gradient, in PPO's"),
)
OTHER_CURVES = (
    ("sft", "sft/loss_nats_per_token", "SFT: training loss, nats per token"),
    ("sft", "sft/validation_loss_nats_per_token", "SFT: validation loss, nats per token"),
    ("select", "sft/mean_score", "SFT: reward model score by epoch"),
    ("reward", "reward/loss_nats_per_pair", "reward model: loss, nats per pair"),
    ("reward", "reward/pair_accuracy", "reward model: pair accuracy in training"),
)


def reward_against_kl(inputs: ReportInputs) -> Section | None:
    """Return each policy's score against its KL, with the gold score where it was measured."""
    stages = _policies_trained(inputs)
    panels = []
    for x, y, title in (
        ("ppo/kl_nats", "ppo/score", "reward model score in rollouts"),
        ("ppo/validation_kl_nats", "ppo/validation_score", "reward model score on validation"),
    ):
        curves = [_curve(inputs, stage, x, y, dots=True) for stage in stages]
        panels.append(
            line_panel(curves, title=title, x_title="KL from SFT, nats a response", tall=True)
        )
    panels += [_proxy_and_gold(inputs, stage) for stage in stages]
    about = (
        "Each dot is one iteration: the mean reward model score against how far the policy has "
        "moved from SFT. Where a second opinion was asked (the judge, or a reward model that PPO "
        "does not see), both have marked the same answers: a score that rises while the second "
        "opinion falls is over-optimisation (Gao et al. 2022)."
    )
    return section("reward-kl", "Reward against KL", about, grid(*panels), link="Reward and KL")


def _proxy_and_gold(inputs: ReportInputs, stage: str) -> LinePanel | None:
    """Return the gains in score and in second opinion against the square root of the KL.

    Gains are over the first measurement, because the zeros of the two are unrelated.
    """
    rows = [row for row in inputs.metrics[stage] if row.get("ppo/gold") is not None]
    curves = []
    for name, title in (("ppo/gold_proxy", "reward model"), ("ppo/gold", "second opinion")):
        points = [
            (max(row["ppo/gold_kl_nats"] or 0.0, 0.0) ** 0.5, (row[name] or 0.0)) for row in rows
        ]
        gains = [(x, y - points[0][1]) for x, y in points]
        curves.append(Curve(title, gains, accent=name == "ppo/gold", dots=True))
    return line_panel(
        curves if len(rows) > 1 else [],
        title=f"gain in score and second opinion, {stage}",
        x_title="square root of the KL from SFT",
        tall=True,
    )


def learning_curves(inputs: ReportInputs) -> Section | None:
    """Return the curves that show that the training was healthy."""
    panels = [
        line_panel([_curve(inputs, stage, "step", name)], title=title, x_title="step")
        for stage, name, title in OTHER_CURVES
        if stage in inputs.metrics
    ]
    stages = _policies_trained(inputs)
    for name, title in PPO_CURVES:
        curves = [_curve(inputs, stage, "step", name) for stage in stages]
        panels.append(line_panel(curves, title=title, x_title="iteration"))
    about = " ".join(_passes_sentence(inputs, stage) for stage in stages).strip()
    figures = grid(*panels, columns="three")
    return section("curves", "Learning curves", about, figures, link="Curves")


def _passes_sentence(inputs: ReportInputs, stage: str) -> str:
    """Return the sentence about models that shared a forward pass, where there were not four."""
    manifest = inputs.manifests.get(stage)
    models = {} if manifest is None else manifest.settings.get("ppo", {}).get("models", {})
    match models.get("kind"):
        case "shared-critic":
            return f"In {stage} the critic was a head on the policy's pass (shared-critic)."
        case "joint":
            return (
                f"In {stage} the critic was a head on the policy's pass, and the reward model one "
                "on the reference's (joint)."
            )
        case _:
            return ""


def reward_model(inputs: ReportInputs) -> Section | None:
    """Return the accuracy on held-out rankings, beside what the annotators' noise allows."""
    held = inputs.held_out
    if held is None:
        return None
    rows = [
        ("all pairs", {**held, "value": held.get("pair_accuracy")}),
        ("same policy", held.get("within_model")),
        ("prompts in turn", (inputs.prompt_folds or {}).get("pair_accuracy")),
        ("annotators learnt from", (inputs.folds or {}).get("in_group")),
        ("annotators never seen", (inputs.folds or {}).get("held_out_group")),
        ("ceiling", (held.get("ceiling") or {}).get("oracle_accuracy")),
    ]
    cells = [cell for name, rate in rows if (cell := _rate_cell(name, rate)) is not None]
    scale = Scale(0.4, 1.0, (0.4, 0.6, 0.8, 1.0))
    accuracy = interval_panel(
        cells,
        title="pair accuracy",
        about="on held-out rankings",
        focus="all pairs",
        scale=scale,
        reference=0.5,
    )
    about = (
        "The share of ranked pairs that the reward model orders as the annotator did. The ceiling "
        "is what the true order itself would reach against one annotator, estimated from how often "
        "annotators agree. Pairs of one and the same policy are the hard ones, and those PPO needs."
    )
    return section(
        "reward-model",
        "Reward model",
        about,
        grid(accuracy, _calibration(held)),
        _prompt_folds(inputs.prompt_folds),
        _annotator_folds(inputs.folds),
        _length_correlation(held.get("length_correlation")),
        link="Reward model",
    )


def _calibration(held: Any) -> LinePanel | None:
    points = [
        (float(row["predicted"]), float(row["accuracy"]["value"]))
        for row in held.get("by_confidence") or ()
        if row.get("predicted") is not None and row["accuracy"]["value"] is not None
    ]
    return line_panel(
        [
            Curve("held out", points, accent=True, dots=True),
            Curve("calibrated", [(0.5, 0.5), (1.0, 1.0)], dashed=True),
        ]
        if len(points) > 1
        else [],
        title="accuracy by the model's own confidence",
        x_title="predicted chance of the higher score winning",
    )


def _prompt_folds(folds: Any) -> Paragraph | None:
    if not folds:
        return None
    longer = folds["longer_wins"]["value"]
    beside = "" if longer is None else f", beside {longer:.1%} by the longer output"
    return Paragraph(
        f"Prompts in turn: dealt into {folds['folds']} parts, each ordered by a model that "
        f"learned from all the others, so that every prompt is held out once{beside}."
    )


def _annotator_folds(folds: Any) -> Paragraph | None:
    if not folds:
        return None
    return Paragraph(
        f"Annotators were dealt into {len(folds['groups'])} groups, and a model was trained "
        "without each: it orders held-out prompts as those it learnt from ranked them, and as the "
        "group it never saw did. The paper's five groups gave 72.4 % and 69.6 %."
    )


def _length_correlation(correlation: Any) -> Paragraph | None:
    if not correlation or correlation.get("within_prompt") is None:
        return None
    low, high = correlation.get("ci95") or (math.nan, math.nan)
    text = (
        f"Correlation of score and length within a prompt: {correlation['within_prompt']:.2f} "
        f"({low:.2f} to {high:.2f})."
    )
    return Paragraph(text.replace("-", MINUS))


def _rate_cell(name: str, rate: Any) -> Cell | None:
    if not rate or rate.get("value") is None:
        return None
    value = float(rate["value"])
    low, high = rate.get("ci95") or (value, value)
    n = int(rate.get("n_prompts") or 0)
    quantity = Quantity("reward", "pair_accuracy", "held-out", "rankings", "higher")
    return Cell(quantity, name, value, math.nan, (float(low), float(high)), n, n, 0, "bootstrap")


def _curve(inputs: ReportInputs, stage: str, x: str, y: str, *, dots: bool = False) -> Curve:
    points = [
        (float(row[x] or 0.0), value)
        for row in inputs.metrics[stage]
        if (value := row.get(y)) is not None and row.get(x) is not None
    ]
    return Curve(stage, points, accent=stage == inputs.focus or not is_ppo(stage), dots=dots)


def _policies_trained(inputs: ReportInputs) -> list[str]:
    return [stage for stage in inputs.metrics if is_ppo(stage)]
