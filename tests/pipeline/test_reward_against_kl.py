"""The panel of over-optimisation: score and gold reward over the root of the KL, by round."""

import html
from dataclasses import replace
from pathlib import Path

from pipeline.evaluation.samples.results import write_results
from pipeline.report.build import report_page
from pipeline.report.inputs import read_inputs
from reward_models.atomic_files import write_jsonl
from tests.pipeline.made_up_run import made_up_results, manifest

GOLD_PANEL = "Gain in score and gold reward, "


def page(run: Path, rows: dict[str, list[dict[str, float]]]) -> str:
    for stage, lines in rows.items():
        (run / stage).mkdir()
        write_jsonl(run / stage / "metrics.jsonl", lines)
    write_results(made_up_results(), run / "results.json")
    return report_page(read_inputs(run))


def test_every_rounds_policy_has_its_panel_where_a_gold_reward_was_measured(tmp_path: Path) -> None:
    (tmp_path / "sample-2").mkdir()
    rows = [
        {"step": n, "total": 3, "ppo/gold_score": 0.5 - 0.1 * n, "ppo/proxy_score": 0.3 * n}
        | {"ppo/gold_kl_nats": float(n * n)}
        for n in range(4)
    ]
    without = [{"step": 1, "total": 1, "ppo/kl_nats": 0.0, "ppo/score": 0.1}]
    text = page(tmp_path, {"ppo": without, "ppo-2": rows})
    assert f"{GOLD_PANEL}ppo-2<" in text
    assert f"{GOLD_PANEL}ppo<" not in text
    assert "square root of the KL from SFT" in text
    assert "over-optimisation (Gao et al. 2022)" in text


def test_a_single_measurement_makes_no_curve(tmp_path: Path) -> None:
    rows = [
        {
            "step": 0,
            "total": 1,
            "ppo/gold_score": 0.5,
            "ppo/proxy_score": 0.1,
            "ppo/gold_kl_nats": 0,
        }
    ]
    assert GOLD_PANEL not in page(tmp_path, {"ppo": rows})


def test_the_page_says_where_models_shared_a_pass(tmp_path: Path) -> None:
    page(tmp_path, {"ppo": [{"step": n, "total": 2, "ppo/score": 0.1 * n} for n in (1, 2)]})
    inputs = read_inputs(tmp_path)
    assert "the critic was a head" not in report_page(inputs)
    joint = replace(manifest("ppo", []), settings={"ppo": {"models": {"kind": "joint"}}})
    page_text = html.unescape(report_page(replace(inputs, manifests={"ppo": joint})))
    assert (
        "In ppo the critic was a head on the policy's pass, and the reward model one" in page_text
    )
