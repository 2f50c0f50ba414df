"""Pages as the bytes that a caller publishes, by the names they have in a folder."""

from collections.abc import Sequence

from sharpjax.protocol.claims import Hypothesis
from sharpjax.report import html, markdown, overview
from sharpjax.report.content import Content
from sharpjax.report.overview import Run


def pages(content: Content) -> dict[str, bytes]:
    """`report.html` and `report.md` of one run."""
    return {
        "report.html": html.render(content).encode(),
        "report.md": markdown.render(content).encode(),
    }


def overview_pages(hypotheses: Sequence[Hypothesis], runs: Sequence[Run]) -> dict[str, bytes]:
    """`overview.html` and `overview.md` of several runs, and of all hypotheses there are."""
    return {
        "overview.html": overview.render_html(hypotheses, runs).encode(),
        "overview.md": overview.render_markdown(hypotheses, runs).encode(),
    }
