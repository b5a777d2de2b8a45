"""The sections for checking: every difference, every number, and who measured what with what."""

from collections.abc import Sequence
from html import escape

from pipeline.report.inputs import ReportInputs
from pipeline.report.sections import section
from pipeline.report.words import (
    MINUS,
    cell_text,
    difference_text,
    filter_title,
    named,
    number,
    p_text,
    suite_title,
)


def differences(inputs: ReportInputs) -> str:
    """Every paired comparison, by suite, folded."""
    parts = []
    for suite in _suites(inputs):
        rows = "".join(
            "<tr>"
            f'<th scope="row">{escape(c.a)} {MINUS} {escape(c.b)}</th>'
            f"<td>{escape(named(c.quantity.metric).title)}</td>"
            f"<td>{escape(filter_title(c.quantity.filter))}</td><td>{difference_text(c)}</td>"
            f"<td>{p_text(c.p)}</td><td>{p_text(c.p_holm)}</td><td>{c.n}</td>"
            f"<td>{number(c.minimum_detectable, named(c.quantity.metric))}</td>"
            f'<td class="verdict">{c.verdict}</td></tr>'
            for c in inputs.results.comparisons
            if c.quantity.suite == suite
        )
        heads = (
            "", "measure", "part", "difference", "p", "Holm's p", "n", "detectable", "verdict",
        )  # fmt: skip
        parts.append(folded_table(suite_title(suite), heads, rows))
    about = (
        "Paired by prompt: intervals from resampled prompts, p by sign flips (or McNemar's exact "
        "test for rates), corrected after Holm within a table. Detectable is the difference that "
        "so many prompts show with 80 % power: where none is shown, a smaller one may hide."
    )
    return section("differences", "All differences", about, *parts)


def numbers(inputs: ReportInputs) -> str:
    """Every cell, by suite, folded."""
    parts = []
    for suite in _suites(inputs):
        rows = "".join(
            "<tr>"
            f'<th scope="row">{escape(c.model)}</th>'
            f"<td>{escape(named(c.quantity.metric).title)}</td>"
            f"<td>{escape(filter_title(c.quantity.filter))}</td><td>{cell_text(c)}</td>"
            f"<td>{c.n}</td><td>{c.n_failed}</td><td>{escape(c.quantity.scorer)}</td></tr>"
            for c in inputs.results.cells
            if c.quantity.suite == suite
        )
        heads = ("", "measure", "part", "estimate (95 %)", "n", "failed", "scored by")
        parts.append(folded_table(suite_title(suite), heads, rows))
    return section("numbers", "All numbers", "", *parts)


def folded_table(title: str, heads: Sequence[str], rows: str) -> str:
    """A table behind its title; it scrolls sideways where it is too wide."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def provenance(inputs: ReportInputs) -> str:
    """Who scored, with version and hash; what each stage took; what must be said."""
    scorers = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(meta["version"]))}</td>'
        f"<td><code>{escape(str(meta['sha256'])[:12])}</code></td>"
        f"<td>{escape(_threshold(meta['threshold']))}</td></tr>"
        for name, meta in inputs.results.scorers.items()
    )
    stages = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td>{m.wall_s:.0f} s</td>'
        f"<td>{m.peak_rss_bytes / 1e6:.0f} MB</td><td>{m.seed}</td>"
        f"<td>{escape(', '.join(m.labels) or 'no labels')}</td>"
        f"<td>{escape(m.code_version)}</td></tr>"
        for stage, m in inputs.manifests.items()
    )
    said = [*inputs.results.notes, *map(str, inputs.overlaps)]
    notes = "".join(f"<li>{escape(_sentence(note))}</li>" for note in said)
    return section(
        "provenance",
        "How this was measured",
        "",
        f"<ul>{notes}</ul>" if notes else "",
        _table(("scorer", "version", "sha256", "threshold"), scorers),
        _table(("stage", "time", "peak memory", "seed", "labels behind it", "code"), stages),
    )


def _table(heads: Sequence[str], rows: str) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{heads[0]}s">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _threshold(value: object) -> str:
    return "none" if value is None else str(value)


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:].rstrip(".") + "."


def _suites(inputs: ReportInputs) -> list[str]:
    return list(dict.fromkeys(cell.quantity.suite for cell in inputs.results.cells))
