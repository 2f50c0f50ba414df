"""What mkdocs does to the pages beside what `mkdocs.yml` says.

The README is the start page. A link to a file that is no page, such as a test, becomes its path.
Examples in docstrings become blocks of code.
"""

import pathlib
import posixpath
import re

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
START = "index.md"


def on_files(files, config):
    files.append(File.generated(config, START, content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = ROOT if here == START else (ROOT / "docs" / here).parent
    pages = {(ROOT / "docs" / f.src_uri).resolve(): f.src_uri for f in files.documentation_pages()}

    def resolved(match):
        text, path, anchor = match.groups("")
        target = (folder / path).resolve()
        if target in pages:
            uri = posixpath.relpath(pages[target], posixpath.dirname(here) or ".")
            return f"[{text}]({uri}{anchor})"
        if target.exists() and target.is_relative_to(ROOT):
            name = f"`{target.relative_to(ROOT)}`"
            return name if text.strip("`") == name.strip("`") else f"{text} ({name})"
        return match[0]  # mkdocs says that it leads nowhere

    return re.sub(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)", resolved, markdown)


class Examples(griffe.Extension):
    """Docstrings hold their examples as plain `>>>` lines, up to a blank line or the end."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text):
    return re.sub(
        r"^( *)>>> (?:.+\n?)+",
        lambda match: f"{match[1]}```pycon\n{match[0].rstrip()}\n{match[1]}```\n",
        text,
        flags=re.MULTILINE,
    )
