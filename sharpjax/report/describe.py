"""The report of one run as a `Page`: its parts and their order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sharpjax.protocol.judging.verdicts import Judgement
from sharpjax.report import blocks, html, markdown, record, verdicts, words
from sharpjax.report.blocks import Block, Facts, Folded, Group, Paragraph, Section, Span, Text
from sharpjax.report.content import EXPLORATORY, Content, metrics_of

UNREGISTERED = (
    "Unregistered: everything here is exploratory. What was asked was not sealed before the data "
    "were seen, so no verdict below confirms anything."
)
CANNOT = (
    "What this page cannot show: whoever recomputes every sum of a folder is caught only by the "
    "registration that lies in git, or by a replay. That somebody looked at such data in another "
    "folder first, or registered again elsewhere, cannot be prevented."
)
_MOST_SAID = 4


def pages(content: Content) -> dict[str, bytes]:
    """`report.html` and `report.md` of one run, by name."""
    described = page(content)
    return {
        "report.html": html.render(described).encode(),
        "report.md": markdown.render(described).encode(),
    }


def page(content: Content) -> blocks.Page:
    """The page of one run."""
    pictures = list(content.pictures)
    power = content.registration.power if content.registration else ()
    parts: dict[str, Iterable[Block | None]] = {
        "Verdicts": _verdicts(content),
        "Tables": content.tables,
        "Hypotheses": [*_hypotheses(content.judgements, "h", content.tag, pictures, power)],
        "Figures": [Group(pictures, "pictures")] if pictures else (),
        "Funnel of runs": record.funnel(content),
        "All metrics": record.metrics(content),
        "Exploratory": _exploratory(content),
        "Amendments": record.amendments(content),
        "Power when it was registered": record.power(power),
        "How to run it again": record.again(content),
        "How to cite it": record.cite(content),
        "Environment": record.environment(content),
        "Config": record.config(content),
        "Digests": record.digests(content),
    }
    sections = [Section(n, list(x), n.lower().replace(" ", "-")) for n, x in parts.items()]
    kind = f"Report of a {'registered run' if content.is_registered else 'run'}"
    return blocks.Page(content.title, kind, list(_lead(content)), sections)


def _lead(content: Content) -> Iterator[Block]:
    """The top of the page: warnings, the answer, and facts about the run and its registration."""
    for line in (*([] if content.is_registered else [UNREGISTERED]), *content.warnings):
        yield Paragraph(line, "notice")
    yield from _answer(content)
    pairs: list[tuple[str, Text]] = [
        *record.circumstances(content),
        ("Arms", _arms(content.config.get("arms"), content.arms)),
        ("Seeds", str(content.config.get("seeds", "")).strip("[()]")),
    ]
    if (sealed := content.registration) is not None:
        dirty = ", with changes that were not committed" if sealed.dirty else ""
        amended = f"{words.many(len(content.amendments), 'amendment')}, below"
        pairs += [
            ("Sealed", words.moment(sealed.time)),
            ("Seal", record.value(sealed.seal)),
            *([("Held as", content.place)] if content.place else []),
            ("Commit", (record.value(sealed.commit or "unknown"), dirty)),
            ("Amendments", amended if content.amendments else "none"),
        ]
    yield Facts(pairs)
    yield Paragraph(CANNOT, "note")


def _answer(content: Content) -> Iterator[Block]:
    """How many hypotheses have each verdict, and up to `_MOST_SAID` claims that were tested. The
    first claim of each verdict is taken first."""
    if not (judgements := content.judgements):
        return
    given = [j.verdict for j in judgements]
    parts: list[Text] = [Span(f"{words.many(len(given), 'hypothesis')}: {words.counts(given)}.")]
    places = [(given[:i].count(word), words.VERDICTS.index(word)) for i, word in enumerate(given)]
    ranked = sorted(zip(places, judgements, strict=True), key=lambda pair: pair[0])
    run = [j for _, j in ranked if j.verdict != "not run"][:_MOST_SAID]
    for word in words.VERDICTS:
        for tag in dict.fromkeys(content.tag(j) for j in run if j.verdict == word):
            said = [j.hypothesis for j in run if (j.verdict, content.tag(j)) == (word, tag)]
            claims = "; ".join(f"{h.claim.rstrip('.')} ({h.id})" for h in said)
            parts += [" ", verdicts.verdict(word, tag), f": {claims}."]
    yield Paragraph(tuple(parts), "answer")


def _hypotheses(
    judgements: Sequence[Judgement],
    prefix: str,
    tag: Callable[[Judgement], str],
    pictures: list[blocks.Picture],
    power: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Block]:
    """The sections of hypotheses; those that were not run are folded at the end.

    Args:
        pictures: the first hypothesis whose metric a picture shows takes it out of this list.
    """
    waiting = []
    for i, judgement in enumerate(judgements, 1):
        asked = judgement.hypothesis
        rows = [row for row in power if row.get("hypothesis") == asked.id]
        own = []
        if judgement.verdict != "not run":
            own = [x for x in pictures if x.metrics & metrics_of([asked]).keys()]
        for picture in own:
            pictures.remove(picture)
        made = verdicts.section(
            judgement,
            f"{prefix}{i}",
            tag=tag(judgement),
            planned=record.planned(rows[0]) if len(rows) == 1 else "",
            pictures=own,
        )
        if judgement.verdict == "not run":
            waiting.append(made)
        else:
            yield made
    if waiting:
        yield Folded(f"Not run: {words.many(len(waiting), 'hypothesis')}", waiting)


def _table(
    judgements: Sequence[Judgement], caption: str, prefix: str, tag: Callable[[Judgement], str]
) -> Iterator[Block]:
    """The table of verdicts, with hypotheses that were not run folded below it."""
    named = [(f"{prefix}{i}", judgement) for i, judgement in enumerate(judgements, 1)]
    run = [pair for pair in named if pair[1].verdict != "not run"]
    waiting = [pair for pair in named if pair[1].verdict == "not run"]
    if run:
        yield verdicts.table(run, caption, tag)
    if waiting:
        name = f"Not run: {words.many(len(waiting), 'hypothesis')}"
        yield Folded(name, [verdicts.table(waiting, name, tag)])


def _verdicts(content: Content) -> Iterator[Block | None]:
    judgements = content.judgements
    if not judgements:
        yield Paragraph("No hypothesis was put forward for this run.")
        return
    given = [j.verdict for j in judgements]
    caption = f"{words.many(len(judgements), 'hypothesis')}: {words.counts(given)}"
    yield from _table(judgements, caption, "h", content.tag)
    meanings = [(word, words.MEANINGS[word]) for word in words.VERDICTS if word in given]
    yield Folded("What the words mean", [Facts(meanings), Paragraph(words.INTERVALS, "note")])
    yield verdicts.forests(judgements)


def _exploratory(content: Content) -> Iterator[Block]:
    if not content.is_registered:
        yield Paragraph("Everything in this report: nothing was registered.")
        return
    yield Paragraph(
        "What was not registered before the data were seen: it may suggest, it confirms nothing. "
        "Metrics marked exploratory in the table above belong here too."
    )
    if found := content.exploratory:
        caption = words.many(len(found), "unregistered hypothesis")
        yield from _table(found, caption, "x", lambda judgement: EXPLORATORY)
        yield from _hypotheses(found, "x", lambda judgement: EXPLORATORY, [])
    if content.later:
        caption = "Measured after the run was finished: mean ± standard error (n)"
        yield record.metric_table(content.later, caption, content.arms)


def _arms(arms: Any, order: Sequence[str]) -> str:
    """Each arm with what it changes; what all arms change is named once.

    >>> _arms({"sam": {"n": 1}, "sgd": {"optim": {"rho": 0.0}, "n": 1}}, order=("sgd",))
    'sgd (optim.rho = 0.0); sam; all with n = 1'
    """
    known = arms if isinstance(arms, Mapping) else {}
    flat = {
        name: {f"{k} = {v}": None for k, v in record.flatten(known[name]).items()}
        if isinstance(known[name], Mapping)
        else {}
        for name in dict.fromkeys((*(name for name in order if name in known), *known))
    }
    shared = [
        x
        for x in next(iter(flat.values()), ())
        if len(flat) > 1 and all(x in f for f in flat.values())
    ]
    own = {name: ", ".join(x for x in f if x not in shared) for name, f in flat.items()}
    parts = [f"{name} ({changes})" if changes else str(name) for name, changes in own.items()]
    return "; ".join([*parts, f"all with {', '.join(shared)}"] if shared else parts)
