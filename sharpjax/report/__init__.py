"""The report of a run, as a page of HTML and as Markdown.

    content     all that a report shows of one run, checked: nothing registered is left out
    describe    the report of one run as a page; `overview` does it for several runs
    blocks      the parts of a page; `html` and `markdown` write them

These use `words` and `evidence` (texts and numbers), `verdicts` and `record` (parts of the page),
`marks` and `axis` (drawings as SVG), `elements` (HTML in which every text is escaped).
"""
