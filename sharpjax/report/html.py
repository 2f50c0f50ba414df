"""One page that opens from disk: no network, no script but the sorting of tables.

The Content-Security-Policy names the style and the script by their SHA-256, so that the browser
runs nothing else, whatever a row or a config holds.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources

from sharpjax.report import record, sections, words
from sharpjax.report.content import UNREGISTERED, Content
from sharpjax.report.elements import Child, Markup, join, tag
from sharpjax.report.tables import facts


def render(content: Content) -> str:
    """`report.html`, as text."""
    parts = [part for part in _parts(content) if part[2]]
    main = [tag("section", tag("h2", name, id=id), *body) for name, id, body in parts]
    links = [tag("li", tag("a", name, href=f"#{id}")) for name, id, _ in parts]
    kind = "Report of a registered run" if content.is_registered else "Report of a run"
    header = tag(
        "header",
        tag("p", kind, class_="kind"),
        tag("h1", words.clean(content.title)),
    )
    contents = tag("nav", tag("ul", *links), aria_label="Contents")
    return page(
        words.clean(content.title),
        join((header, tag("main", _asked(content), contents, *main, id="main"))),
    )


def page(title: str, body: Markup) -> str:
    """A whole document round `body`, which has an element with the id `main`."""
    style, script = (Markup(resource(name)) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", style),
    )
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    document = tag("html", head, tag("body", skip, body, tag("script", script)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def resource(name: str) -> str:
    """A file that lies beside this module."""
    return resources.files("sharpjax.report").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asked(content: Content) -> Markup:
    """What was asked, and when it was sealed."""
    notices = [tag("p", words.clean(w, 2_000), class_="notice") for w in content.warnings]
    if not content.is_registered:
        notices.insert(0, tag("p", tag("strong", UNREGISTERED), class_="notice"))
    return join((*notices, facts([(name, record.value(text)) for name, text in content.asked])))


def _parts(content: Content) -> Iterator[tuple[str, str, Sequence[Child]]]:
    """Name, id and body of each section, in order; those without body are left out."""
    exploratory = not content.is_registered
    yield "Verdicts", "verdicts", _verdicts(content)
    yield "Tables", "tables", record.study_tables(content)
    yield (
        "Hypotheses",
        "hypotheses",
        [
            sections.hypothesis(j, ident=sections.anchor("h", i), exploratory=exploratory)
            for i, j in enumerate(content.judgements)
        ],
    )
    yield "Funnel of runs", "funnel", record.funnel(content)
    yield (
        "Figures",
        "figures",
        [tag("div", *map(record.picture, content.pictures), class_="pictures")]
        * (bool(content.pictures)),
    )
    yield "All metrics", "metrics", record.metrics(content)
    yield "Exploratory", "exploratory", list(_exploratory(content))
    yield "Amendments", "amendments", [record.amendment(a) for a in content.amendments]
    yield "Power when it was registered", "power", record.power(content)
    yield "How to run it again", "again", record.again(content)
    yield "Environment", "environment", record.environment(content)
    yield "Config", "config", record.config(content)
    yield "Digests", "digests", record.digests(content)


def _verdicts(content: Content) -> list[Child]:
    judgements = content.judgements
    if not judgements:
        return [tag("p", "No hypothesis was put forward for this run.")]
    total = words.counts(j.verdict for j in judgements)
    caption = f"{words.many(len(judgements), 'hypothesis')}: {total}"
    meanings = facts(
        [
            (word, words.MEANINGS[word])
            for word in words.VERDICTS
            if any(word == j.verdict for j in judgements)
        ]
    )
    return [
        sections.verdict_table(
            judgements, caption, prefix="h", exploratory=not content.is_registered
        ),
        tag(
            "details",
            tag("summary", "What the words mean"),
            meanings,
            tag("p", words.INTERVALS, class_="note"),
        ),
    ]


def _exploratory(content: Content) -> Iterator[Child]:
    if not content.is_registered:
        yield tag("p", "Everything in this report: nothing was registered.")
        return
    yield tag(
        "p", "What was not registered before the data were seen: it may suggest, it confirms "
        "nothing. Metrics marked exploratory in the table above belong here too.",
    )  # fmt: skip
    if content.exploratory:
        caption = words.many(len(content.exploratory), "unregistered hypothesis")
        yield sections.verdict_table(content.exploratory, caption, prefix="x", exploratory=True)
        for i, judgement in enumerate(content.exploratory):
            yield sections.hypothesis(judgement, ident=sections.anchor("x", i), exploratory=True)
    if content.later:
        caption = "Measured after the run was finished: mean ± standard error (n)"
        yield record.metric_table(content.later, content, caption, "later-table", rests=False)
