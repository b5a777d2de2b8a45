"""Violations that axe-core finds in a page (WCAG 2.2 AA)."""

from importlib.resources import files
from typing import Any

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def violations(page: Any) -> list[str]:
    """Return axe's violations of WCAG 2.2 AA."""
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found_by_axe = page.evaluate(
        "rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES
    )["violations"]
    return [f"{v['id']}: {node['html'][:120]}" for v in found_by_axe for node in v["nodes"]]
