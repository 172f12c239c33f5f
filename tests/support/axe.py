"""What axe-core finds wrong with a page for those who do not see it, or who use no mouse."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from playwright.sync_api import Page

# Every rule that axe runs by itself: those of WCAG's levels A and AA, and what it calls best practices.
_RUN = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.flatMap(({ id, help, nodes }) =>
  nodes.map(({ target, any, all, none }) => {
    const why = [...any, ...all, ...none].map(({ message }) => message);
    return `${id}: ${target.flat().join(" ")}: ${help}${why.length ? ` (${why[0]})` : ""}`;
  }))"""


def violations(page: Page) -> list[str]:
    """Each place that breaks a rule, as rule, target, what to do, and why; none: the page breaks no rule that a machine can check.

    The script is evaluated from outside, which a page's policy does not hinder, and stays in the page until it is left.
    """
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(_source())
    found: list[str] = page.evaluate(_RUN)
    return found


@cache
def _source() -> str:
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
