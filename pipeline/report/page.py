"""report.html: one self-contained page about a run, made from the files it left behind."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

from pipeline.report import by_instruction, more, numbers, sections, training
from pipeline.report.export import write_tables
from pipeline.report.inputs import ReportInputs, read_inputs
from pipeline.report.outputs import outputs

_NAVIGATION = (
    ("summary", "In short"),
    ("preference", "Preference"),
    ("use-cases", "Use cases"),
    ("hallucination", "Hallucination"),
    ("toxicity", "Toxicity"),
    ("truthfulness", "Truthfulness"),
    ("cost", "Cost"),
    ("more", "More"),
    ("reward-kl", "Reward and KL"),
    ("reward-model", "Reward model"),
    ("curves", "Curves"),
    ("outputs", "Outputs"),
    ("differences", "Differences"),
    ("numbers", "Numbers"),
    ("provenance", "Method"),
)


def write_report(run: Path, out: Path) -> Path:
    """Write the page about the run to `out`, and its tables beside it; ValueError if no results."""
    inputs = read_inputs(run)
    page = report_page(inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tables(inputs, out.parent / "tables")
    aside = out.with_name(out.name + ".part")
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)
    return out


def report_page(inputs: ReportInputs) -> str:
    """The whole HTML text."""
    body = "".join(
        (
            sections.summary(inputs),
            sections.preference(inputs),
            sections.use_cases(inputs),
            sections.hallucination(inputs),
            by_instruction.toxicity(inputs),
            by_instruction.truthfulness(inputs),
            sections.cost(inputs),
            more.others(inputs),
            training.reward_against_kl(inputs),
            training.reward_model(inputs),
            training.learning_curves(inputs),
            outputs(inputs),
            numbers.differences(inputs),
            numbers.numbers(inputs),
            numbers.provenance(inputs),
        )
    )
    parts = {
        "title": escape(f"{inputs.name}: report"),
        "name": escape(inputs.name),
        "kicker": "What each stage changed" if inputs.focus else "Samples of several models",
        "policies": escape((" → " if inputs.focus else ", ").join(inputs.results.models)),
        "who": str(min(13, max(map(len, inputs.results.models)) + 1)),
        "style": _part("report.css"),
        "script": _part("report.js"),
        "banners": _banners(inputs),
        "headline": sections.headline(inputs),
        "navigation": _navigation(body),
        "body": body,
    }
    return _filled(parts)


def small_page(*, title: str, kicker: str, under: str, body: str, headline: str = "") -> str:
    """A page in the report's look about something other than a run; `body` is HTML."""
    parts = {
        "title": escape(title),
        "name": escape(title),
        "kicker": escape(kicker),
        "policies": escape(under),
        "who": "13",
        "style": _part("report.css"),
        "script": "",
        "banners": "",
        "headline": headline,
        "navigation": "",
        "body": body,
    }
    return _filled(parts)


def _filled(parts: Mapping[str, str]) -> str:
    page = _part("report.html")
    before, *slots = page.split("{{")
    written = [before]
    for slot in slots:
        name, _, after = slot.partition("}}")
        written += [parts[name.strip()], after]
    return "".join(written)


def _part(name: str) -> str:
    return (files("pipeline.report") / "template" / name).read_text(encoding="utf-8")


def _navigation(body: str) -> str:
    return "".join(
        f'<a href="#{anchor}">{title}</a>'
        for anchor, title in _NAVIGATION
        if f'<section id="{anchor}"' in body
    )


def _banners(inputs: ReportInputs) -> str:
    """What nobody may overlook: who made the labels, and whether the data are invented."""
    found = []
    kinds = inputs.label_kinds
    if "simulated" in kinds:
        mixed = "" if kinds == {"simulated"} else ", among labels by people"
        found.append(
            "<p class='banner' role='note'><b>Simulated labels.</b> Programs, not people, ranked "
            f"the outputs behind this reward model{mixed}. Nothing here says what people like.</p>"
        )
    if inputs.synthetic:
        found.append(
            "<p class='banner' role='note'><b>Synthetic data.</b> Prompts, passages and texts are "
            "about an invented world, made by a program, which also knows the right answers.</p>"
        )
    return "".join(found)
