"""The sections about training: reward against KL, learning curves, the reward model's quality."""

import math
from typing import Any

from pipeline.evaluation.samples.tables import Cell, Quantity
from pipeline.report.figures import Curve, LinePanel, Scale, interval_panel, line_panel
from pipeline.report.inputs import ReportInputs
from pipeline.report.render import Group, group
from pipeline.runs.stage import is_ppo
from reward_models.intervals import Interval

PPO_CURVES = (
    ("ppo/score", "reward model score"),
    ("ppo/validation_score", "score on validation prompts"),
    ("ppo/gold_score", "gold reward"),
    ("ppo/win_rate", "win rate against the start, by the gold reward"),
    ("ppo/toxicity", "toxicity of validation answers"),
    ("ppo/kl_nats", "KL from SFT, nats"),
    ("ppo/entropy_nats_per_token", "entropy, nats per token"),
    ("ppo/response_tokens", "response length, tokens"),
    ("ppo/eos_rate", "share that end by themselves"),
    ("ppo/policy_clip_fraction", "share of clipped ratios"),
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


def reward_against_kl(inputs: ReportInputs) -> Group:
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
    return group(*panels)


def _proxy_and_gold(inputs: ReportInputs, stage: str) -> LinePanel | None:
    """Return the gains in score and in gold reward against the square root of the KL.

    Gains are over the first measurement, because the zeros of the two are unrelated.
    """
    rows = [row for row in inputs.metrics[stage] if row.get("ppo/gold_score") is not None]
    curves = []
    for name, title in (("ppo/proxy_score", "reward model"), ("ppo/gold_score", "gold reward")):
        points = [
            (max(row["ppo/gold_kl_nats"] or 0.0, 0.0) ** 0.5, (row[name] or 0.0)) for row in rows
        ]
        gains = [(x, y - points[0][1]) for x, y in points]
        curves.append(Curve(title, gains, accent=name == "ppo/gold_score", dots=True))
    return line_panel(
        curves if len(rows) > 1 else [],
        title=f"gain in score and gold reward, {stage}",
        x_title="square root of the KL from SFT",
        tall=True,
    )


def learning_curves(inputs: ReportInputs) -> Group:
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
    return group(*panels, columns="three")


def shared_passes(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return the PPO stages whose models shared forward passes, and in what way."""
    kinds = [
        (stage, inputs.manifests[stage].settings.get("ppo", {}).get("models", {}).get("kind"))
        for stage in _policies_trained(inputs)
        if stage in inputs.manifests
    ]
    return [(stage, kind) for stage, kind in kinds if kind in {"shared-critic", "joint"}]


def reward_model(inputs: ReportInputs) -> Group:
    """Return the accuracy on held-out rankings, beside what the annotators' noise allows."""
    held = inputs.held_out
    if held is None:
        return group()
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
    return group(accuracy, _calibration(held))


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


def _rate_cell(name: str, rate: Any) -> Cell | None:
    if not rate or rate.get("value") is None:
        return None
    value = float(rate["value"])
    low, high = rate.get("ci95") or (value, value)
    ci95 = Interval(float(low), float(high))
    n = int(rate.get("n_prompts") or 0)
    quantity = Quantity("reward", "pair_accuracy", "held-out", "rankings", "higher")
    return Cell(quantity, name, value, math.nan, ci95, n, n, 0, "bootstrap")


def _curve(inputs: ReportInputs, stage: str, x: str, y: str, *, dots: bool = False) -> Curve:
    points = [
        (float(row[x] or 0.0), value)
        for row in inputs.metrics[stage]
        if (value := row.get(y)) is not None and row.get(x) is not None
    ]
    return Curve(stage, points, accent=stage == inputs.focus or not is_ppo(stage), dots=dots)


def _policies_trained(inputs: ReportInputs) -> list[str]:
    return [stage for stage in inputs.metrics if is_ppo(stage)]
