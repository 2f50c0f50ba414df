"""The report as Markdown: the same numbers as on the page, and no markup by what it shows."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpjax.report import describe, markdown, marks, overview, words
from tests import reports
from tests.test_report_html import Document, hostile, registry, runs


@pytest.fixture(scope="module")
def full():
    return reports.as_markdown(reports.full((*reports.five(), *reports.kinds())))


def tables(text):
    """Each table as a list of rows of cells, split at bars that are not escaped."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n") if block[:1] == "|"]
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block] for block in blocks]
    assert all(_rule(table[1]) for table in rows)
    return [[table[0], *table[2:]] for table in rows]


def _rule(cells):
    return all(re.fullmatch(r" -{3}:? ", cell) for cell in cells)


def test_order(full):
    headings = re.findall(r"^## (.*)$", full, re.MULTILINE)
    assert headings == [
        "Verdicts", "Hypotheses", "Figures", "Funnel of runs", "All metrics", "Exploratory",
        "Amendments", "Power when it was registered", "How to run it again", "How to cite it",
        "Environment", "Config", "Digests",
    ]  # fmt: skip
    assert full.startswith("# SAM against SGD on handwritten digits\n")
    assert full.index("- Sealed: 2026-11-24 20:15:00 UTC") < full.index("## Verdicts")


def test_every_hypothesis_with_its_verdict_and_reason(full):
    rows = [row for table in tables(full)[:2] for row in table[1:]]
    judgements = (*reports.five(), *reports.kinds())
    assert len(rows) == len(judgements)
    for row, judgement in zip(
        rows, sorted(judgements, key=lambda j: j.verdict == "not run"), strict=True
    ):
        assert row[0].strip() == markdown.text(judgement.hypothesis.id)
        assert row[1].strip() == f"**{judgement.verdict}**"
        assert f"**{judgement.verdict}**: {markdown.text(judgement.reason)}" in full


def test_the_same_numbers_as_on_the_page(full):
    page = Document(reports.as_html(reports.full((*reports.five(), *reports.kinds()))))
    plain = re.sub(r"\\(.)", r"\1", full)
    numbers = [
        e[2] for dl in page.all("dl", class_="numbers") for e in page.all("dd") if e[2] in dl[2]
    ]
    assert len(numbers) > 100
    assert all(number in plain for number in numbers)


def test_an_unregistered_run_says_so():
    text = reports.as_markdown(reports.full(registration=None))
    assert f"> **{markdown.text(describe.UNREGISTERED)}**" in text
    assert text.count("(exploratory)") == 14 and "Sealed" not in text
    assert "Everything in this report: nothing was registered." in text


def test_commands_are_as_they_are(full):
    assert (
        "\npython launch.py --config=configs/sam_cifar.py:quick --config.optim.rho=0.1\n"
    ) in full


def test_the_drawing_in_characters():
    def places(line):
        return {c: [i for i, x in enumerate(line) if x == c] for c in set(line)}

    def drawn(*interval):
        return marks.characters([marks.Line(marks.Interval(*interval))], 61)

    found = places(drawn(2.0, 1.0, 3.0, 0.0, 0.5))
    (low,), (high,), (at,) = found["├"], found["┤"], found["●"]
    assert abs((at - low) - (high - at)) <= 1 and found["┊"][0] < low
    unit = (high - low) / 2
    assert len(found["░"]) == pytest.approx(unit, abs=1)
    assert "┼" in drawn(0.1, -1.0, 1.0, 0.0)
    assert drawn(1.0, -math.inf, 2.0, 0.0) == ""


def test_no_drawing_without_an_interval(full):
    section = full[full.index("### S.4") : full.index("### H1.1")]
    assert "```" not in section
    assert not re.search(r"\bnan\b", full)


def test_hostile_texts_add_no_markup():
    text = describe.pages(hostile())["report.md"].decode()
    outside = re.sub(r"```(sh|text)\n.*?\n```", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    # Links of the report's own: figures.
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", outside)
    assert links and all(re.fullmatch(r"figures/[\w.%-]+\.png", link) for link in links)
    assert "\u202e" not in text and "\x00" not in text
    widths = [{len(row) for row in table} for table in tables(outside)]
    assert widths and all(len(width) == 1 for width in widths)


def test_a_command_cannot_end_its_block():
    from sharpjax.report.content import Command

    commands = (Command("x", "a\n```\n# owned"),)
    text = reports.as_markdown(reports.full(commands=commands))
    assert "\n# owned" not in text and text.count("```") % 2 == 0


@given(st.text())
def test_every_text_stays_one_escaped_line(text):
    shown = markdown.text(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>|#~]", shown)
    assert re.sub(r"\\(.)", r"\1", shown).replace(" ", "") == re.sub(
        r"\\(.)", r"\1", re.sub(r"([\\])", r"\\\1", "".join(words.clean(text).split()))
    )


@pytest.mark.parametrize("start", ["- a", "+ a", "= a", "1. a", "12) a", "# a", "> a"])
def test_no_text_begins_a_block(start):
    assert re.match(r"\d*\\", markdown.text(start))
    assert markdown.text("0.05") == "0.05"


def test_the_overview():
    text = markdown.render(overview.describe(registry(), runs()))
    rows = {row[0].strip(): row for table in tables(text)[1:] for row in table[1:]}
    assert rows["H7.6"][1].strip() == "**not yet run**"
    assert rows["H7.6"][4].strip() == "still missing: pruning"
    assert rows["S.1"][1].strip() == "**supported**"
    assert "[one](one/report.html): **supported**" in rows["S.1"][4]
    assert "**inconclusive** (exploratory)" in rows["S.1"][4]
    assert "<b>" not in text.replace(r"\<b\>", "") and "(javascript:" not in text
