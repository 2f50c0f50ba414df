"""What people read of a run: the table on the console, the page, and the same as Markdown.

    content     all that a report shows of one run, checked: nothing registered is left out
    html        report.html, self-contained; markdown: report.md; pages: the bytes of both
    overview    several runs: every hypothesis, its certainty, its verdict or 'not yet run'
    console     the table at the end of a run

Below these: `words`, `statements`, `evidence` (texts and numbers), `marks` and `axis` (drawings as
SVG), `elements`, `tables`, `sections`, `record` (HTML), `fields` (tables of values).
"""
