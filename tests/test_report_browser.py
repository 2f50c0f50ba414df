"""The page in a real browser: it loads in silence, sorts, fits a phone, prints, and goes dark."""

import io

import numpy as np
import pytest
from PIL import Image

from sharpjax.report import html, overview
from tests import browser, reports
from tests.test_report_html import hostile, registry, runs

pytestmark = pytest.mark.skipif(
    browser.executable() is None, reason="no Chromium here (Debian: apt-get install chromium)"
)

METRICS = ("train/loss", "test/loss", "test/error", *(f"test/m_{i}" for i in range(9)))
PAGES = {
    "full": lambda: reports.as_html(
        reports.full((*reports.five(), *reports.kinds()), results=reports.rows(metrics=METRICS))
    ),
    "unregistered": lambda: reports.as_html(reports.full(registration=None)),
    "hostile": lambda: reports.as_html(hostile()),
    "overview": lambda: html.render(overview.describe(registry(), runs())),
}
FIRST = "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[{}].textContent)"
SORTED = "document.querySelector('th[aria-sort]')?.getAttribute('aria-sort') ?? null"
TAB, ENTER = ("Tab", 9), ("Enter", 13, "\r")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.started(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), "utf-8")
    (folder / "noisy.html").write_text(
        reports.as_html(reports.full()).replace("</main>", "<p style='color: red'></p></main>")
    )
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def page(tab, files):
    tab.resize(1000, 800)
    tab.prefer("light")
    tab.open(files["full"])
    return tab


def picture(page):
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), float)


@pytest.mark.parametrize("name", PAGES)
def test_it_loads_without_a_word(tab, files, name):
    tab.open(files[name])
    assert tab.evaluate("document.readyState") == "complete"
    assert tab.complaints == []
    assert tab.evaluate("performance.getEntriesByType('resource').length") == 0


def test_a_complaint_would_be_heard(tab, files):
    tab.open(files["noisy"])
    assert "Content Security Policy" in str(tab.complaints)


def test_tables_sort_by_click(page):
    button = "document.querySelectorAll('thead button')[3].getBoundingClientRect()"
    page.evaluate("document.querySelectorAll('thead button')[3].scrollIntoView({block: 'center'})")
    x, y = (page.evaluate(f"{button}.{side} + {half}") for side, half in (("left", 5), ("top", 5)))
    before = page.evaluate(FIRST.format(3))
    page.click(x, y)
    after = page.evaluate(FIRST.format(3))
    assert page.evaluate(SORTED) == "ascending" and sorted(after) == sorted(before)
    effects = [x.split(" ")[0].replace("−", "-") for x in after]
    numbers = [float(x) for x in effects[:-1]]
    assert numbers == sorted(numbers) and len(numbers) == 9
    assert effects[-1:] == ["5"]
    page.click(x, y)
    down = page.evaluate(FIRST.format(3))
    assert page.evaluate(SORTED) == "descending"
    assert sorted(down[:9]) == sorted(after[:9]) and down[0] == after[8] and down[9:] == after[9:]


def test_tables_sort_by_keyboard(page):
    for _ in range(60):
        page.press(*TAB)
        if page.evaluate("document.activeElement.textContent") == "Verdict":
            break
    page.press(*ENTER)
    assert page.evaluate("document.activeElement.localName") == "button"
    verdicts = page.evaluate(FIRST.format(1))
    assert verdicts == sorted(verdicts) and page.evaluate(SORTED) == "ascending"
    names = "[...document.querySelectorAll('thead button')].every(b => b.textContent.length > 0)"
    assert page.evaluate(names)


def test_metrics_can_be_searched(page):
    rows = "[...document.querySelectorAll('.searchable tbody tr')].filter(r => r.checkVisibility())"
    names = f"{rows}.map(r => r.cells[0].textContent)"
    every = page.evaluate(names)
    assert len(every) >= 10
    page.evaluate("document.querySelector('.search input').focus()")
    for letter in "LOSS train":
        page.press(letter, ord(letter.upper()), letter)
    assert page.evaluate(names) == [n for n in every if "loss" in n and "train" in n] != []
    for _ in "LOSS train":
        page.press("Backspace", 8)
    assert page.evaluate(names) == every


def test_a_link_opens_what_is_folded(page):
    waiting = "[...document.querySelectorAll('td, th')].find(e => e.textContent === 'S.5')"
    link = page.evaluate(f"{waiting}.querySelector('a').getAttribute('href')")
    shown = f"document.querySelector('{link}').checkVisibility()"
    assert not page.evaluate(shown)
    page.evaluate(f"{waiting}.closest('details').open = true")
    page.evaluate(f"{waiting}.querySelector('a').click()")
    assert page.evaluate(shown)


def test_the_first_tab_skips_to_the_content(page):
    page.press(*TAB)
    box = "document.activeElement.getBoundingClientRect()"
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate(f"{box}.left >= 0 && {box}.top >= 0")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 1000])
def test_the_page_never_scrolls_sideways(tab, files, name, width):
    tab.resize(width, 700, phone=width == 360)
    tab.open(files[name])
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.documentElement.clientWidth") in (width, width - 15)
    wide = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip, svg')
      && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert tab.evaluate(wide) == []


def test_wide_tables_scroll_in_their_own_box(tab, files):
    tab.resize(360, 700, phone=True)
    tab.open(files["full"])
    box = "document.querySelector('.scroll')"
    assert tab.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
    assert tab.evaluate("Math.min(...[...document.querySelectorAll('main svg[role=img] text')]"
                        ".map(e => e.getBoundingClientRect().height))") > 9  # fmt: skip


def test_dark_is_dark_and_print_is_light(page):
    light = picture(page)
    page.prefer("dark")
    dark = picture(page)
    assert light.shape == dark.shape
    assert np.median(light) > 240 and np.median(dark) < 40
    color = "getComputedStyle(document.documentElement).backgroundColor"
    dark_paper = page.evaluate(color)
    page.call("Emulation.setEmulatedMedia", media="print",
              features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    assert page.evaluate(color) != dark_paper
    page.call("Emulation.setEmulatedMedia", media="")


def test_it_prints(page):
    closed = page.evaluate("document.querySelectorAll('details:not([open])').length")
    pdf = page.pdf()
    assert closed > 5 and pdf.startswith(b"%PDF-") and len(pdf) > 50_000
    page.call("Emulation.setEmulatedMedia", media="print")
    hidden = """[...document.querySelectorAll('details > :not(summary)')]
      .filter(e => !e.checkVisibility()).length"""
    assert page.evaluate(hidden) == 0
    page.call("Emulation.setEmulatedMedia", media="")
