"""Bring the pages outside docs/ into the site, and point links at them.

Links to source files lead nowhere in the site, so that their text alone stays.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "datasets/README.md": "datasets.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository outside docs/, and their names in the site."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=relinked(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of the pages in docs/ at the site."""
    source = page.file.src_uri
    return markdown if source in PAGES.values() else relinked(markdown, f"docs/{source}")


def relinked(text: str, source: str) -> str:
    """Rewrite the relative links of a page of the repository for the site."""

    def replace(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or not path:
            return match.group(0)
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if place in PAGES:
            return f"{picture}[{label}]({PAGES[place]}{hash_sign}{anchor})"
        if place.startswith("docs/"):
            return f"{picture}[{label}]({place[len('docs/') :]}{hash_sign}{anchor})"
        return label

    return _LINK.sub(replace, text)
