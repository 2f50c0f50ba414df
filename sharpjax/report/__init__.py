"""What people read of a run: a page, and the same as Markdown.

    content     all that a report shows of one run, checked: nothing registered is left out
    describe    the report of a run as a page, described once; of several runs: overview
    blocks      what such a description is made of; `html` and `markdown` write it

Below these: `words` and `evidence` (texts and numbers), `verdicts` and `record` (parts of the
page), `marks` and `axis` (drawings as SVG), `elements` (HTML without holes).
"""
