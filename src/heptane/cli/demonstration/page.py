"""The page in which the demonstration ends: its sentences, and links to the reports beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from heptane.base.storage import write_text

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>heptane, the demonstration</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1.05rem/1.6 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; }}
</style>
</head>
<body>
<h1>What heptane did on this machine</h1>
{sentences}
<h2>Reports</h2>
<ul>
{links}
</ul>
<p>Each was made by one command, which its report repeats. On your own images:
<code>heptane train --data FOLDER</code>, with one folder of images per class.</p>
</body>
</html>
"""


def write_page(sentences: Sequence[str], links: Mapping[str, str], path: Path) -> None:
    """Write the page.

    Args:
        sentences: a paragraph each.
        links: addresses by their texts.
        path: where to write; the file is replaced in one step.
    """
    paragraphs = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    items = "\n".join(f'<li><a href="{escape(address)}">{escape(text)}</a></li>' for text, address in links.items())
    write_text(path, PAGE.format(sentences=paragraphs, links=items or "<li>none: nothing could be run here</li>"))
