"""The page: nothing left out, nothing added by what it shows, and readable by anybody."""

import base64
import dataclasses
import hashlib
import math
import pathlib
import re
import shlex
import tomllib
from html import parser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sharpjax.errors import UserError
from sharpjax.protocol.claims import Contrast, Hypothesis
from sharpjax.protocol.tests.catalog import TESTS, run
from sharpjax.protocol.tests.result import Samples
from sharpjax.report import (
    axis,
    content,
    describe,
    elements,
    evidence,
    html,
    markdown,
    marks,
    overview,
    words,
)
from sharpjax.runs import report
from tests import reports

MODULES = sorted(pathlib.Path(html.__file__).parent.glob("*.py"))


class Document(parser.HTMLParser):
    """The elements of a page: names, attributes and texts; tags must be balanced."""

    VOID = {"meta", "img", "br", "wbr"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), "", [x[0] for x in self.open]])
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), "", [x[0] for x in self.open]])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, [x[0] for x in self.open])
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, *names, **attributes):
        return [
            e for e in self.elements
            if e[0] in names and all(e[1].get(k.rstrip("_")) == v for k, v in attributes.items())
        ]  # fmt: skip

    def texts(self, *names, **attributes):
        return [e[2] for e in self.all(*names, **attributes)]


def document(**fields):
    return Document(reports.as_html(reports.full(**fields)))


@pytest.fixture(scope="module")
def full():
    return reports.as_html(reports.full((*reports.five(), *reports.kinds())))


# What is shown.


def test_order_of_the_page(full):
    headings = Document(full).texts("h2")
    assert headings == [
        "Verdicts", "Hypotheses", "Figures", "Funnel of runs", "All metrics", "Exploratory",
        "Amendments", "Power when it was registered", "How to run it again", "How to cite it",
        "Environment", "Config", "Digests",
    ]  # fmt: skip
    seal = reports.registered((*reports.five(), *reports.kinds())).seal
    assert full.index("2026-11-24 20:15:00 UTC") < full.index(seal) < full.index(">Verdicts</h2>")


def test_every_hypothesis_has_its_line_and_its_section():
    page = document()
    run, waiting = page.all("table")[:2]
    badges = [e for e in page.all("span") if e[1].get("class", "").startswith("verdict")]
    inside = [e[2] for e in badges if "table" in e[3]]
    assert inside[:5] == ["supported", "refuted", "equivalent", "inconclusive", "not run"]
    assert "details" in waiting[3] and "details" not in run[3]
    for judgement in reports.five():
        table = waiting if judgement.verdict == "not run" else run
        assert judgement.hypothesis.claim in table[2]
        title = f"{judgement.hypothesis.id} {judgement.hypothesis.claim}"
        assert title in page.texts("h3")
        assert any(judgement.reason in p for p in page.texts("p"))
    assert "5 hypotheses: 1 supported, 1 refuted, 1 equivalent" in page.texts("caption")[0]


def test_the_answer_comes_first():
    page = document()
    (answer,) = page.texts("p", class_="answer")
    assert answer.startswith(
        "5 hypotheses: 1 supported, 1 refuted, 1 equivalent, 1 inconclusive, 1 not run. "
        "supported: SAM ends where the largest eigenvalue is smaller (S.1). refuted: "
    )
    main = page.all("main")[0][2]
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert facts["Study"] == "sharpness (configs/sam_cifar.py:quick)"
    assert facts["Data"] == "digits"
    assert facts["Hardware"] == "8 × H100, EPYC" and facts["Cost"] == "38s in 1 process"
    assert facts["Run"] == "2026-11-24 20:15:01 UTC to 2026-11-24 20:16:01 UTC"
    order = [answer, facts["Data"], facts["Cost"], facts["Arms"], describe.CANNOT, "Estimate ["]
    places = [main.index(text) for text in order]
    assert places == sorted(places) and main.count(describe.CANNOT) == 1


def test_a_refuted_claim_is_not_hidden_behind_supported_ones():
    good = [reports.judgement(f"S.{i}", f"Good {i}.", reports.finding()) for i in range(9)]
    bad = reports.judgement("S.9", "Bad.", reports.finding("refuted"))
    (answer,) = document(judgements=(*good, bad)).texts("p", class_="answer")
    assert answer == (
        "10 hypotheses: 9 supported, 1 refuted. supported: Good 0 (S.0); Good 1 (S.1); "
        "Good 2 (S.2). refuted: Bad (S.9)."
    )


def test_a_line_of_the_table_names_its_effect_and_the_sources_number():
    page = document()
    (table,) = [e[2] for e in page.all("tbody")][:1]
    rows = {line[:3]: line for line in table.split("\n")}
    assert "−27 [−45, −9] mean difference−38.7, consistent0.0318 pairs" in rows["S.1"]
    assert "4.1 [−2.5, 10.7] difference of means; matched-pairs rank-biserial" in rows["S.4"]
    assert "12.5, not consistent" in rows["S.4"]
    assert "correlation 0.33" in rows["S.4"]


def test_a_refuted_row_shows_the_p_that_refuted_it():
    found = reports.finding("refuted", p=0.98, adjusted=1.0)
    page = document(judgements=(reports.judgement("S.1", "No.", found),))
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert facts["p in the opposite direction"] == "0.02" and "p" not in facts
    (row,) = [e[2] for e in page.all("tr") if e[2].startswith("S.1")][:1]
    assert row.endswith("0.028 pairs")


def test_a_claim_that_its_refutation_refutes_says_so_in_the_table():
    """Its parts alone would read 'refuted: 2 parts, 2 inconclusive'."""
    why = "What would refute it is supported: sam greater than sgd."
    judged = reports.kinds()[0]._replace(
        verdict="refuted", parts=("inconclusive",) * 2, reason=why, by_refutation=True
    )
    rows = [e[2] for e in document(judgements=(judged,)).all("tr")]
    assert any("2 parts: 2 inconclusive" in row and why in row for row in rows)


def test_several_parts_are_counted_in_the_table():
    judged = reports.kinds()[0]._replace(parts=("supported", "supported", "refuted"))
    rows = [e[2] for e in document(judgements=(judged,)).all("tr")]
    assert any("3 parts: 2 supported, 1 refuted" in row for row in rows)


def test_what_was_planned_stands_beside_what_came():
    page = document()
    facts = [
        (name, text)
        for section in page.all("section", class_="hypothesis")[:2]
        for name, text in zip(page.texts("dt"), page.texts("dd"), strict=True)
        if name == "Planned" and text in section[2]
    ]
    said = "power 0.055 at the margin; chance of 'equivalent' 0, and 0.8 from 80 units on"
    assert facts == [("Planned", said)]
    power = page.all("table")[-4]
    heads = [e[2] for e in page.all("th", scope="col") if e[2] in power[2]]
    assert "Power at the margin" in heads and "Chance of equivalent" in heads
    assert "no p can be below 0.0625" in power[2]


def test_one_plot_holds_all_contrasts_by_effect():
    page = document(judgements=(*reports.five(), *reports.kinds()))
    names = [e[1]["aria-label"] for e in page.all("svg", role="img")]
    first = next(x for x in names if x.startswith("mean difference of train[:512]"))
    assert "S.1 sam less than sgd: Estimate −27 [−45, −9]" in first
    assert first.count("H1.1") == 5 and "S.2" not in first  # its metric has another unit
    assert "S.2 sam less than sgd" in next(
        x for x in names if x.startswith("mean difference of test/error")
    )
    plots = [e for e in page.all("svg", role="img") if "details" not in e[3]]
    labels = [t for e in plots for t in [e[2]] if "H1.8 train[:512]" in t]
    assert len(labels) == 1


def test_what_a_correlation_is_about_is_said():
    page = document(judgements=(*reports.five(), reports.kinds()[-1]))
    notes = [text for text in page.texts("p", class_="note") if "not about other arms" in text]
    assert len(notes) == 1 and "; spearman. Where a seed has several units" in notes[0]


def test_every_effect_in_units_of_the_metric_is_one_of_some_test():
    effects = [test.effect for test in TESTS.values()]
    assert all(any(x.startswith(prefix) for x in effects) for prefix in evidence._IN_UNITS)
    assert not any(x.startswith(evidence._IN_UNITS) for x in effects if "ratio" in x or "'s" in x)


def test_figures_stand_beside_the_hypothesis_that_they_show():
    png = reports.png(64, 32)
    captions = {
        "end": "Another thing; n = 3 seeds.",
        "curve": {"caption": "The error; n = 3 seeds.", "metrics": ["test/error"]},
        "odd": {"caption": 3, "metrics": "test/error"},
    }
    page = document(figures=dict.fromkeys(captions, png), captions=captions)
    images = {e[1]["alt"]: e[3] for e in page.all("img")}
    assert len(images) == len(page.all("img")) == 3
    assert images["The error; n = 3 seeds."].count("section") == 2
    assert images["Another thing; n = 3 seeds."].count("section") == 1
    assert images["odd"].count("section") == 1
    (own,) = [e for e in page.all("section", class_="hypothesis") if "The error" in e[2]]
    assert own[2].startswith("S.2")


def test_metrics_are_grouped_and_those_that_were_asked_for_come_first():
    metrics = ("train/loss", "test/accuracy", "test/error", "train[:9]/hessian/num_products")
    page = document(results=reports.rows(metrics=metrics))
    tables = [e for e in page.all("table") if "searchable" in e[1].get("class", "")]
    captions = [e[2].split(":")[0] for e in page.all("caption") if "mean ±" in e[2]][:3]
    assert captions == ["Results", "Training", "Cost and convergence"] and len(tables) == 3
    results = tables[0][2]
    assert results.index("test/error") < results.index("test/accuracy")
    assert "train/loss" in tables[1][2] and "num_products" in tables[2][2]


def test_rows_can_be_taken_from_the_page():
    csv = b"study,arm\nsharpness,sgd\n"
    page = document(rows=csv)
    (link,) = [e for e in page.all("a") if "download" in e[1]]
    assert link[1]["download"] == "results.csv"
    assert base64.b64decode(link[1]["href"].removeprefix("data:text/csv;base64,")) == csv
    assert not [e for e in document(rows=None).all("a") if "download" in e[1]]


def test_how_to_cite_it():
    page = document()
    text = "\n".join(page.texts("pre"))
    assert "author = {{The sharpjax authors}}" in text and "version = {0.1.0}" in text
    assert f"commit {'d' * 40}" in text
    assert "@misc{arXiv:2010.01412," in text and "https://arxiv.org/abs/2010.01412" in text


def test_the_repository_says_how_to_cite_it():
    root = MODULES[0].parent.parent.parent
    cited = (root / "CITATION.cff").read_text()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for line in (
        f"version: {project['version']}",
        f"license: {project['license']}",
        f"abstract: {project['description']}",
    ):
        assert f"\n{line}\n" in cited
    assert "doi" not in cited


def test_the_numbers_of_a_contrast():
    page = document()
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    text = page.all("main")[0][2]
    for shown in ("−27 [−45, −9]", "0.0078", "0.031", "0.0039", "8 pairs"):
        assert shown in text, shown
    assert facts["In the source"].startswith("λ₁ 24.2 under SAM")
    assert facts["Here"] == "sam less than sgd: −27 [−45, −9] (mean difference)"
    sam, sgd = (np.asarray(g) for g in reports.five()[0].findings[0].samples.groups)
    assert f"sam {sam.mean():.1f} ± {sam.std(ddof=1) / math.sqrt(8):.1f}" in text
    assert f"{sgd[3]:.6g}" in text


def test_a_p_that_could_not_be_small_is_said():
    finding = reports.finding("inconclusive", least=0.0625)
    page = document(judgements=(reports.judgement("S.1", "Too few.", finding),))
    assert "0.062, above 0.05: could not be significant" in page.texts("dd")


def test_funnel_amendments_power_environment_and_commands():
    page = document()
    text = page.all("main")[0][2]
    for shown in (
        "Runs, one seed of one arm each: 16 planned, 14 done, 2 failed",
        "seed 3 turned non-finite; seed 5 has no rows",
        "a sign was wrong",
        "no p can be below 0.0625",
        "packages.jax",
        "optim.rho = 0.05",
        "results.jsonl",
        "python -m sharpjax.studies verify 'runs/a b'",
    ):
        assert shown in text, shown


def test_commands_survive_a_shell():
    lines = [
        c.line
        for c in report.commands_for(
            "c.py:quick", {"a": "x y; rm", "seeds": (0, 1)}, folder="f 'g", is_registered=True,
            commit="abc",
        )
    ]  # fmt: skip
    assert lines[0] == "git checkout abc"
    assert shlex.split(lines[2])[2:] == [
        "--config=c.py:quick", "--config.a=x y; rm", "--config.seeds=(0, 1)",
    ]  # fmt: skip
    assert all(shlex.split(line)[-1] == "f 'g" for line in lines[3:])


def test_pictures_are_in_the_page_byte_for_byte():
    png = reports.png(64, 32)
    page = document(
        figures={"large": png + b"x" * 2**23, "not a picture": b"GIF89a", "curves": png},
        captions={"curves": "Loss against steps; n = 3 seeds.", "nowhere": "What is not there."},
    )
    (image,) = page.all("img")
    assert base64.b64decode(image[1]["src"].removeprefix("data:image/png;base64,")) == png
    assert (image[1]["width"], image[1]["height"]) == ("64", "32")
    assert image[1]["alt"] == "Loss against steps; n = 3 seeds."
    captions = page.texts("figcaption")[-3:]
    assert captions == ["Loss against steps; n = 3 seeds.", "large", "not a picture"]
    assert any("figures/large.png cannot be embedded" in p for p in page.texts("p"))


def test_metrics_that_nobody_asked_for_are_exploratory():
    page = document()
    rows = [e[2] for e in page.all("tr") if "11.20 ± 0.58 (3)" in e[2]]
    asked = {row.split("11.20")[0]: row.split("(3)")[-1] for row in rows}
    assert asked == {"train/loss": "exploratory", "test/error": "S.2, S.5"}


# What may not be left out.


def test_a_registered_hypothesis_without_judgement_stops_the_report():
    sealed = reports.registered(reports.five())
    with pytest.raises(UserError, match=r"S\.2"):
        reports.full((*reports.five()[:1], *reports.five()[2:]), registration=sealed)


def test_a_hypothesis_that_was_changed_stops_the_report():
    first, *others = reports.five()
    sealed = reports.registered((first, *others))
    changed = first._replace(hypothesis=dataclasses.replace(first.hypothesis, alpha=0.1))
    with pytest.raises(UserError, match=r"S\.1 is not as it was registered"):
        reports.full((changed, *others), registration=sealed)
    with pytest.raises(UserError, match=r"S\.1 has 2 verdicts"):
        reports.full((first, first, *others), registration=sealed)


def test_what_was_not_registered_is_exploratory():
    sealed = reports.registered(reports.five()[:2])
    page = document(registration=sealed)
    assert "3 unregistered hypotheses" in page.texts("caption")
    text = page.all("main")[0][2]
    exploratory = text[text.index("it may suggest") :]
    assert "S.4 SAM beats SGD of equal compute." in exploratory
    assert text.count("exploratory") > 6 and "S.4 SAM beats" not in text[: -len(exploratory)]


def test_an_unregistered_run_says_so_at_every_verdict():
    page = document(registration=None, warnings=["unregistered: everything is exploratory"])
    assert describe.UNREGISTERED in page.texts("p") and len(page.all("p", class_="notice")) == 1
    badges = [e for e in page.all("span") if e[1].get("class", "").startswith("verdict")]
    tags = page.all("span", class_="tag")
    assert len(tags) >= 10 and {e[2] for e in tags} == {"exploratory"}
    assert len(badges) == len(tags)
    assert "Sealed" not in page.texts("dt")


def test_warnings_stand_before_the_verdicts(full):
    page = reports.as_html(reports.full(warnings=["the analysis was changed"]))
    assert page.index("the analysis was changed") < page.index(">Verdicts</h2>")
    assert 'class="notice"' not in full


def test_nothing_known_is_a_page_too():
    empty = content.make(title="x", config={}, judgements=())
    assert "No hypothesis was put forward" in reports.as_html(empty)
    bare = Hypothesis("H4.1", "AI output grows fastest.", (), missing="bibliographic data")
    judged = reports.judgement("H4.1", "", verdict="not run", reason="bibliographic data")
    page = document(judgements=(judged._replace(hypothesis=bare),))
    assert "bibliographic data" in page.all("section", class_="hypothesis")[0][2]


def test_what_is_not_a_number_is_a_dash():
    nothing = reports.finding(
        "inconclusive", effect=math.nan, interval=(math.nan, math.nan), p=math.nan,
        adjusted=math.nan, least=0.0, detectable=math.nan,
        arrays=(np.array([1.0, np.nan]), np.array([np.nan, np.nan])),
    )  # fmt: skip
    page = document(judgements=(reports.judgement("S.1", "Nothing.", nothing),))
    assert not re.search(r"\bnan\b", page.all("main")[0][2])
    labels = [e[1].get("aria-label", "") for e in page.all("svg")]
    assert any("1 not finite" in label for label in labels)


def test_thirty_hypotheses():
    judgements = tuple(
        reports.judgement(f"H9.{i}", f"Claim {i}.", *(reports.finding() for _ in range(1 + i % 5)))
        for i in range(30)
    )
    text = reports.as_html(reports.full(judgements))
    page = Document(text)
    assert len(page.all("section", class_="hypothesis")) == 30
    assert len(text) < 2_000_000


def test_of_very_many_contrasts_the_numbers_are_in_the_table():
    """1,600 pictures of points make a page of 40 MB, which no browser likes."""
    few, many = 24, 25
    asked = [
        reports.judgement(f"D.{n}", "Claim.", *(reports.finding() for _ in range(n)))
        for n in (few, many)
    ]
    made = reports.full(tuple(asked))
    drawn, listed = Document(reports.as_html(made)).all("section", class_="hypothesis")
    assert "The points as numbers" in drawn[2] and "Smallest p possible" in drawn[2]
    assert "The points as numbers" not in listed[2]
    for words_ in ("Smallest p", "0.0039", "Detectable with power 0.8", "21", "results.jsonl"):
        assert words_ in listed[2] and words_ in reports.as_markdown(made)
    forest = "24 contrasts, by effect; 1 hypothesis with more than 24 not drawn"
    assert forest in Document(reports.as_html(made)).all("main")[0][2]


# Anybody's text.


def hostile():
    bad = reports.HOSTILE
    finding = reports.finding(
        groups=(bad, "sgd"), quantity=dataclasses.replace(reports.LAMBDA, metric=bad)
    )
    asked = reports.judgement(
        bad, bad, finding, finding, reason=bad, source=bad, reference=bad, refuted_if=bad,
        uncertain=bad, missing=bad, family=bad, correction="holm",
    )  # fmt: skip
    return reports.full(
        (asked,),
        registration=None,
        title=bad, warnings=(bad,),
        config={bad: {bad: bad}, "study": bad, "arms": {bad: {bad: bad}}, "seeds": bad},
        results=reports.rows(arms=(bad,), metrics=(bad,)), later_results=(),
        figures={bad: reports.png(8, 8), bad + "2": b""},
        environment=({bad: bad},), processes=({bad: bad},),
        manifest={bad: bad, "files": {bad: {"bytes": 1, "sha256": bad}}},
        commands=(content.Command(bad, bad),),
    )  # fmt: skip


def test_hostile_texts_add_no_markup():
    pages_ = describe.pages(hostile())
    text = pages_["report.html"].decode()
    page = Document(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    known = {"html", "head", "meta", "title", "style", "body", "a", "header", "main", "nav", "ul",
             "li", "p", "h1", "h2", "h3", "h4", "strong", "dl", "dt", "dd", "div", "table",
             "caption", "span", "thead", "tbody", "tr", "th", "td", "svg", "path", "details",
             "summary", "section", "figure", "figcaption", "desc", "line", "text", "circle",
             "rect", "img", "pre", "code", "script", "wbr", "b"}  # fmt: skip
    assert {e[0] for e in page.elements} <= known
    for name, attributes, _, _ in page.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes)
        for key in ("href", "src"):
            if key in attributes:
                allowed = r"#|data:(image/png|text/csv);base64,[\w+/=]+$"
                assert re.match(allowed, attributes[key]), (name, attributes)
    assert not set("\u202e\x00\ud800") & set(text)
    assert r"\u202e\u0000\ud800" in text and "&lt;/style&gt;&lt;script&gt;" in text


@pytest.mark.parametrize("odd", [math.nan, math.inf, -5, 10**400, "many", [3], None, True])
def test_odd_numbers_of_anybody_make_a_page_too(odd):
    planned = {"hypothesis": "S.1", "contrast": odd, "n": odd, "alpha": odd, "power": {"1.0": odd},
               "power_at_margin": odd, "equivalent": odd, "equivalent_likely": odd,
               "cluster": odd, "warning": odd}  # fmt: skip
    made = reports.full(
        processes=({"seconds": {"total": odd}, "peak_bytes": {"host": odd}, "started": odd},),
        environment=({"processor": odd, "device_kind": odd, "device_count": odd},),
        manifest={"data": {"x": {"spec": {"size": odd}}}, "code": {"commit": odd}},
        captions={"curves": {"caption": odd, "metrics": odd}},
    )
    registration = dataclasses.replace(made.registration, power=(planned,))
    made = dataclasses.replace(made, registration=registration)
    assert describe.pages(made).keys() == {"report.html", "report.md"}
    overview.pages((), (overview.Run("one", made),))


@given(st.text())
def test_every_text_survives(text):
    page = Document(elements.tag("p", text, title=text))
    shown = words.clean(text, 10_000)
    name, attributes, inside, _ = page.elements[0]
    assert name == "p" and len(page.elements) == 1
    assert inside.replace("\r", "") == shown.replace("\r", "")
    assert attributes["title"] == shown
    inside.encode()


def test_endless_names_are_cut():
    assert len(words.clean("x" * 10_000)) == words.LONGEST
    assert elements.tag("p", elements.Markup("<b>")) == "<p><b></p>"
    assert elements.tag("p", "<b>") == "<p>&lt;b&gt;</p>"


def test_the_policy_lets_nothing_else_run(full):
    page = Document(full)
    (policy,) = [
        e[1]["content"]
        for e in page.all("meta")
        if "Content-Security" in e[1].get("http-equiv", "")
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for name in ("style", "script"):
        (inside,) = page.texts(name)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", full)
    assert "url(" not in full and "@import" not in full


# Readable by anybody.


def test_landmarks_headings_and_names(full):
    page = Document(full)
    assert [len(page.all(name)) for name in ("main", "header", "nav", "h1")] == [1, 1, 1, 1]
    assert page.all("html")[0][1]["lang"] == "en"
    assert page.all("a")[0][1]["href"] == "#main"
    levels = [int(e[0][1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [e[1]["id"] for e in page.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for name in element[1].get("aria-labelledby", "").split():
            assert name in ids
        if element[1].get("href", "").startswith("#"):
            assert element[1]["href"][1:] in ids


def test_tables_and_drawings_have_names(full):
    page = Document(full)
    assert len(page.all("table")) == len(page.all("caption")) > 8
    assert all(page.texts("caption"))
    assert all(e[1].get("scope") in ("col", "row") for e in page.all("th"))
    drawings = page.all("svg")
    assert len(drawings) > 30
    for e in drawings:
        if e[1].get("aria-hidden") != "true":
            assert e[1]["role"] == "img" and len(e[1]["aria-label"]) > 20
    for box in page.all("div", class_="scroll"):
        assert box[1]["tabindex"] == "0" and box[1]["role"] == "region"


def test_a_verdict_is_a_word_and_a_sign_too(full):
    page = Document(full)
    for word in words.VERDICTS:
        assert word in page.texts("span", class_=f"verdict {word.replace(' ', '-')}")
    assert len(set(html.SIGNS.values())) == len(words.VERDICTS) == len(words.MEANINGS)


def luminance(color):
    """Relative luminance (WCAG 2.2)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    style = html.resource("page.css")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert light.keys() == dark.keys()
    for colors in (light, dark):
        for ground in ("paper", "raised"):
            for name in ("ink", "soft", "link", *(w.replace(" ", "-") for w in words.VERDICTS)):
                assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
            assert contrast(colors["accent"], colors["band"]) >= 3
        assert contrast(colors["ink"], colors["band"]) >= 4.5


# Drawings.


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6), st.booleans())
@example([1e-9], False)
def test_an_axis_holds_its_values(values, log):
    found = axis.fit(values, 10, 110, log=log)
    places = [found.at(v) for v in sorted(v for v in values if math.isfinite(v))]
    assert all(10 <= place <= 110 for place in places) and places == sorted(places)
    ticks = found.ticks()
    assert len(ticks) <= 5 and all(found.low <= t <= found.high for t in ticks)


def test_an_axis_is_linear_or_logarithmic():
    linear = axis.fit([0.0, 10.0], 0, 100)
    assert linear.at(5.0) == 50 and linear.ticks() == [0, 5, 10]
    log = axis.fit([1.0, 10_000.0], 0, 100, log=True)
    assert log.log and log.at(100.0) == 50
    assert log.ticks() == [1, 10, 100, 1000, 10_000]
    assert not axis.fit([0.0, 10_000.0], 0, 100, log=True).log


def label_of(page):
    (svg,) = page.all("svg")
    return svg[1]["aria-label"]


def numbers_of(svg, name, attribute, **attributes):
    return [float(e[1][attribute]) for e in Document(svg).all(name, **attributes)]


def forest(*drawn):
    return marks.forest([marks.Line(interval) for interval in drawn], title="t")


def test_the_interval_lies_where_it_should():
    drawn = marks.Interval(2.0, 1.0, 3.0, 0.0, 0.5)
    svg = forest(drawn)
    scale = axis.fit([-0.5, 3.0], 14, marks.WIDTH - 14)
    (line,) = Document(svg).all("line", class_="interval")
    assert float(line[1]["x1"]) == scale.at(1.0) and float(line[1]["x2"]) == scale.at(3.0)
    assert numbers_of(svg, "circle", "cx", class_="estimate") == [scale.at(2.0)]
    assert numbers_of(svg, "line", "x1", class_="null") == [scale.at(0.0)]
    (band,) = Document(svg).all("rect")
    assert float(band[1]["x"]) == scale.at(-0.5)
    assert float(band[1]["width"]) == pytest.approx(scale.at(0.5) - scale.at(-0.5))
    assert label_of(Document(svg)) == f"t. {drawn.in_words()}"


def test_a_forest_has_one_axis_and_a_line_for_each_contrast():
    lines = [
        marks.Line(marks.Interval(2.0, 1.0, 3.0, 0.0), "S.1 sam less than sgd", "supported"),
        marks.Line(marks.Interval(-1.0, -4.0, 1.0, 0.0), "S.2 <b>", "inconclusive"),
    ]
    page = Document(marks.forest(lines, title="t"))
    scale = axis.fit([-4.0, 3.0], 14, marks.WIDTH - 14)
    places = [float(e[1]["cx"]) for e in page.all("circle")]
    assert places == [scale.at(2.0), scale.at(-1.0)]
    texts = page.texts("text", class_="label")
    assert texts == ["S.1 sam less than sgd", "S.2 <b>"]
    assert page.texts("text", class_="label supported") == ["supported"]
    assert "S.2 <b>: Estimate −1.0 [−4.0, 1.0]; null 0." in label_of(page)


def test_an_interval_without_end_has_an_arrow():
    svg = forest(marks.Interval(2.0, -math.inf, 3.0, 0.0))
    ends = [e[1]["d"] for e in Document(svg).all("path")]
    assert sum("L" in d for d in ends) == 1 and sum("V" in d for d in ends) == 1


def test_no_interval_is_drawn_where_none_is_known():
    svg = forest(marks.Interval(0.3, math.nan, math.nan, 0.0))
    assert not Document(svg).all("line", class_="interval")
    assert len(Document(svg).all("circle")) == 1
    assert "Estimate 0.3; null 0." in svg


def test_every_finite_value_is_a_point_and_every_pair_a_line():
    x, y = np.array([1.0, 2.0, np.nan, 4.0]), np.array([2.0, 3.0, 4.0, 5.0])
    svg = marks.points([("a", x), ("b", y)], title="t", paired=True)
    scale = axis.fit([1.0, 5.0], marks._LABELS, marks.WIDTH - 14)
    places = numbers_of(svg, "circle", "cx")
    assert places == [scale.at(v) for v in (1, 2, 4, 2, 3, 4, 5)]
    assert len(Document(svg).all("path", class_="pair")) == 3
    assert numbers_of(svg, "line", "x1", class_="mean") == [scale.at(7 / 3), scale.at(3.5)]
    assert "a: 3 values from 1 to 4, mean 2.333, 1 not finite." in label_of(Document(svg))


def test_equal_points_lie_side_by_side():
    svg = marks.points([("a", np.array([1.0, 1.0, 1.0, 2.5]))], title="t")
    points = Document(svg).all("circle")
    assert len({(e[1]["cx"], e[1]["cy"]) for e in points}) == 4


def test_shares_boxes_and_times():
    svg = marks.points([("a", np.repeat([1.0, 0.0], [3, 9]))], title="t")
    (bar,) = Document(svg).all("rect")
    scale = axis.fit([0.0, 1.0], marks._LABELS, marks.WIDTH - 14)
    assert float(bar[1]["width"]) == pytest.approx(scale.at(0.25) - scale.at(0))
    assert "3 of 12" in Document(svg).texts("text")
    svg = marks.points([("a", np.arange(1001.0))], title="t")
    (box,) = Document(svg).all("rect")
    scale = axis.fit([0.0, 1000.0], marks._LABELS, marks.WIDTH - 14)
    assert float(box[1]["x"]) == scale.at(250) and not Document(svg).all("circle")
    seen = [np.array([True, False])]
    svg = marks.points([("a", np.array([1.0, 2.0]))], title="t", seen=seen)
    assert [e[1]["class"] for e in Document(svg).all("circle")] == ["point", "point hollow"]


def test_pairs_of_models_are_drawn_once_and_correlations_as_a_cloud():
    by_id = {j.hypothesis.id: evidence.evidence(j.findings[0]) for j in reports.kinds()}
    pairs = by_id["H1.5"]
    assert [len(x) for _, x in pairs.groups] == [15, 15] and pairs.units == "6 models each"
    # (0, 1) and (1, 0) are 0.12 and 0.11.
    assert pairs.groups[0][1][0] == pytest.approx(0.115)
    cloud = by_id["H1.8"]
    assert [name for name, _ in cloud.groups] == ["train[:512]/hessian/lambda_1", "test/gap"]
    svg = marks.scatter(*cloud.groups, title="t")
    assert len(Document(svg).all("circle")) == 60


def test_a_cloud_of_very_many_points_is_thinned():
    x = np.arange(10_000.0)
    svg = Document(marks.scatter(("a", x), ("b", x), title="t"))
    assert len(svg.all("circle")) == 1_000 and "10,000 points" in label_of(svg)


# Words and means.


def test_contrasts_in_words():
    def said(test, groups, direction="two-sided", **fields):
        return words.comparison(Contrast(reports.ERROR, groups, direction, test, **fields))

    assert said("kruskal-wallis", ("a", "b", "c")) == "a, b, c differ"
    assert said("difference-of-ratios", ("a", "b", "c", "d"), "less") == "a / b less than c / d"
    assert said("non-inferiority", ("a", "b"), "less", margin=0.1) == "a not over 0.1 more than b"
    assert said("welch", ("a|c", "b"), margin=0.1, within=True) == "a + c equal to b within 0.1"
    assert said("not a test", ("a", "b")) == "a different from b"


@pytest.mark.parametrize("test", ["jonckheere", "page"])
def test_a_trend_is_said_as_it_is_tested(test):
    """'greater': the first group is the largest."""
    falling = Samples(tuple(np.arange(4.0) + 10 * (3 - i) for i in range(3)))
    assert run(test, falling, alternative="greater").p < 0.01
    contrast = Contrast(reports.ERROR, ("a", "b", "c"), "greater", test)
    assert words.comparison(contrast) == "falls along a, b, c"
    assert words.comparison(dataclasses.replace(contrast, direction="less")).startswith("rises")


def test_what_lies_within_a_margin_is_not_decided_by_p():
    found = reports.finding("supported", margin=0.02)
    inside = dataclasses.replace(found.contrast, direction="two-sided", within=True)
    hypothesis = reports.judgement("H.1", "Equal.", found).hypothesis

    def names(found):
        return [name for name, _ in evidence.numbers(evidence.evidence(found), hypothesis)]

    assert "p" in names(found) and "Smallest p possible" in names(found)
    assert not any(name.startswith(("p", "Smallest p")) for name in names(
        found._replace(contrast=inside)))  # fmt: skip


def test_arms_keep_the_plans_order():
    arms, config = ("sgd", "base", "sam"), {"arms": {"base": {}, "sam": {}, "sgd": {}}}
    rows = reports.rows(arms=arms)
    for fields in ({"results": rows}, {"results": reports.rows(arms=sorted(arms)), "arms": arms}):
        page = document(config=config, later_results=reports.rows(arms=sorted(arms)), **fields)
        heads = [t for t in page.texts("th", scope="col") if t in arms][-6:]
        assert heads == [*arms, *arms]  # the metrics, and those measured later
        facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
        assert facts["Arms"] == "sgd; base; sam"
        markdown_ = describe.pages(reports.full(config=config, **fields))["report.md"].decode()
        assert "| Metric | sgd | base | sam | Asked by |" in markdown_


# Several runs.


def as_page(*given):
    return html.render(overview.describe(*given))


def as_text(*given):
    return markdown.render(overview.describe(*given))


def runs():
    first, *others = reports.five()
    sealed = reports.full((first, *others))
    changed = first._replace(verdict="inconclusive")
    return (
        overview.Run("one", sealed, "one/report.html"),
        overview.Run("<b>two", reports.full((changed,), registration=None), "javascript:alert(1)"),
    )


def registry():
    waiting = Hypothesis("H7.6", "Methods are ordered.", (), missing="pruning")
    return (reports.kinds()[0].hypothesis, waiting)


def test_the_overview_has_every_hypothesis_and_says_what_was_not_run():
    page = Document(as_page(registry(), runs()))
    assert page.texts("h2") == ["Runs", "Paper 1", "Paper 7", "Study sharpness"]
    text = page.all("main")[0][2]
    assert "7 hypotheses: 1 supported, 1 refuted, 1 equivalent, 1 inconclusive, 1 not run" in text
    assert "2 not yet run" in text and "still missing: pruning" in text
    assert "no: exploratory" in text
    links = {e[2]: e[1]["href"] for e in page.all("a")}
    assert links["one"] == "one/report.html"
    assert links["<b>two"] == "javascript%3Aalert%281%29"


def test_registered_answers_count_before_exploratory_ones():
    one, two = runs()
    found = {e.hypothesis.id: e for e in overview.entries(registry(), (one, two))}
    assert overview.word(found["S.1"]) == "supported" and len(found["S.1"].answers) == 2
    assert overview.word(found["H7.6"]) == "not yet run"
    third = reports.full((reports.five()[0]._replace(verdict="refuted"),))
    entries = overview.entries((), (one, two, overview.Run("three", third)))
    assert overview.word(entries[0]) == "the runs differ"
    assert overview.word(overview.entries((), (two,))[0]) == "inconclusive"


def test_hypotheses_of_two_studies_are_two_whatever_their_ids():
    asked = reports.five()[0]
    said = {"circles": asked, "surfaces": asked._replace(verdict="refuted")}
    runs = [
        overview.Run(
            study, dataclasses.replace(reports.full((judgement,)), config={"study": study})
        )
        for study, judgement in said.items()
    ]
    entries = overview.entries((), runs)
    assert [(e.study, overview.word(e), len(e.answers)) for e in entries] == [
        ("circles", "supported", 1),
        ("surfaces", "refuted", 1),
    ]
    page = Document(as_page((), runs))
    assert page.texts("h2") == ["Runs", "Study circles", "Study surfaces"]
    assert "the runs differ" not in page.all("main")[0][2]
    (paper,) = overview.entries([asked.hypothesis], runs)  # of the papers: one, whoever runs it
    assert overview.word(paper) == "the runs differ" and len(paper.answers) == 2


def test_what_was_not_run_is_counted_and_not_listed():
    idle = reports.five()[0]._replace(verdict="not run")
    runs = [
        overview.Run(name, reports.full((judgement,)))
        for name, judgement in (("one", idle), ("two", idle), ("three", reports.five()[0]))
    ]
    rows = [row[2] for row in Document(as_page((), runs)).all("tr")]
    assert "not run: 1. " in rows[1] and "S.1" not in rows[1]
    (answers,) = [row for row in rows if row.startswith("S.1")]
    assert answers.endswith("; not run in 2 runs") and "one: " not in answers


def test_warnings_that_differ_in_a_digest_alone_are_one():
    runs = [
        overview.Run(
            name,
            dataclasses.replace(
                reports.full(), warnings=(f"The analysis ({digest * 12}) has changed.",)
            ),
        )
        for name, digest in (("one", "a"), ("two", "b"))
    ]
    assert "| The analysis has changed. | one, two |" in as_text((), runs)


def test_the_overview_labels_a_word_that_nothing_registered_stands_for():
    one, two = runs()
    for of, expected in (((one, two), ""), ((two,), "exploratory")):
        found = {e.hypothesis.id: e for e in overview.entries(registry(), of)}
        assert overview.tag_of(found["S.1"]) == expected
        assert not overview.tag_of(found["H7.6"])
    page = Document(as_page(registry(), (two,)))
    assert any("inconclusive" in t and "exploratory" in t for t in page.texts("td"))
    assert "**inconclusive** (exploratory)" in as_text(registry(), (two,))


def test_the_overview_says_what_to_know_of_a_run():
    warned = dataclasses.replace(reports.full(), warnings=("the analysis has changed",))
    page = Document(as_page((), (overview.Run("one", warned),)))
    assert "the analysis has changed" in page.texts("th") and any(
        warned.title in text for text in page.texts("td")
    )


def test_the_overview_lists_runs_newest_first_and_marks_negative_results():
    def made(started, *kept):
        content = reports.full([j for j in reports.five() if j.verdict in kept])
        return dataclasses.replace(content, processes=({"started": started},))

    runs = [
        overview.Run("old", made("2026-11-01T00:00:00+00:00", "refuted", "inconclusive")),
        overview.Run(
            "new", made("2026-11-03T00:00:00+00:00", "supported", "refuted"), rows="new/r"
        ),
        overview.Run("never", made("2026-11-02T00:00:00+00:00", "not run")),
        overview.Run("lost", None, "lost/README.md", problem="it holds <nothing>"),
    ]
    page = Document(as_page((), runs))
    (body, lost) = (e[2].split("\n") for e in page.all("tbody")[:2])
    assert [line[:3] for line in body] == ["new", "nev", "old"]
    assert ["negative result" in line for line in body] == [False, False, True]
    assert "refuted: S.2. inconclusive: S.4." in body[2] and "supported: S.1." in body[0]
    assert lost == ["lostit holds <nothing>"]
    assert {e[2]: e[1]["href"] for e in page.all("a")}["rows"] == "new/r"


def test_the_overview_refuses_two_of_one_name():
    with pytest.raises(UserError, match="two hypotheses are named 'H7.6'"):
        overview.entries((*registry(), registry()[1]), ())
    with pytest.raises(UserError, match="two runs are named 'one'"):
        overview.entries((), (runs()[0], runs()[0]))


def test_the_overview_of_nothing():
    page = Document(as_page(registry(), ()))
    assert "2 hypotheses: 2 not yet run." in page.texts("p")


def test_pages_are_bytes_by_name():
    made = describe.pages(reports.full())
    assert set(made) == {"report.html", "report.md"}
    assert made["report.html"].decode() == reports.as_html(reports.full())
    page, text = overview.pages(registry(), runs())
    assert page.startswith(b"<!DOCTYPE html>") and text.startswith(b"# Runs, and")
