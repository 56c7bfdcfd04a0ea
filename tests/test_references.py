"""Every reference in the repository leads somewhere a reader can follow."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# Not spelled out, so that this file holds no reference of the kind that it looks for.
_OUTSIDE = re.compile(r"\bSP" r"EC\b(?:\s*\d+(?:\.\d+)*)?|\[P (?:§|Fig|Eq)[^\]\n]*\]")
_PAGE = re.compile(r"\bdocs/[\w.-]+\.md(?:#[\w-]+)?")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$")


def headings(text: str) -> set[str]:
    """Anchors of a Markdown page's headings, as GitHub makes them."""
    anchors: set[str] = set()
    fenced = False
    for line in text.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        found = None if fenced else _HEADING.match(line)
        if found:
            words = re.sub(r"[^\w\- ]", "", found[1].lower()).replace(" ", "-")
            repeats = [words, *(f"{words}-{count}" for count in range(1, len(anchors) + 1))]
            anchors.add(next(anchor for anchor in repeats if anchor not in anchors))
    return anchors


def dead(target: Path, anchor: str) -> bool:
    """Whether a file, or a heading in it, does not exist."""
    if not target.exists():
        return True
    return bool(anchor) and anchor not in headings(target.read_text(encoding="utf-8"))


def outside(text: str) -> list[str]:
    """References to a document that is not in the repository."""
    return [found[0] for found in _OUTSIDE.finditer(text)]


def dead_pages(root: Path, text: str) -> list[str]:
    """Pages of docs/, cited from the root with or without a heading, that do not exist."""
    pairs = (found[0].partition("#") for found in _PAGE.finditer(text))
    return [f"{page}{mark}{anchor}" for page, mark, anchor in pairs if dead(root / page, anchor)]


def dead_links(page: Path, text: str) -> list[str]:
    """Relative Markdown links of a page that lead to no file, or to no heading."""
    wrong = []
    for link in _LINK.findall(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page.parent / path if path else page
        if dead(target, anchor if target.suffix == ".md" else ""):
            wrong.append(link)
    return wrong


@functools.lru_cache(maxsize=1)
def _texts(root: Path) -> dict[Path, str]:
    """Every text file of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    texts = {}
    for name in sorted(set(listed.decode().split("\0")) - {""}):
        path = root / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content:
            texts[path] = content.decode("utf-8", errors="replace")
    return texts


def check_texts(root: Path, find: Callable[[Path, str], list[str]], suffix: str = "") -> None:
    """Fail with one line for each file with a reference that leads nowhere."""
    texts = {path: text for path, text in _texts(root).items() if path.suffix.endswith(suffix)}
    assert root / "docs" / "method.md" in texts
    found = {path.relative_to(root): find(path, text) for path, text in texts.items()}
    report = "\n".join(f"{path}: {', '.join(names)}" for path, names in found.items() if names)
    assert not report, f"references that lead nowhere:\n{report}"


def test_no_document_outside_of_the_repository_is_cited(repository):
    check_texts(repository, lambda _, text: outside(text))


def test_cited_pages_and_headings_exist(repository):
    check_texts(repository, lambda _, text: dead_pages(repository, text))


def test_relative_links_exist(repository):
    check_texts(repository, dead_links, ".md")


# ---- The checks above can fail -----------------------------------------------------------------


def test_headings_are_githubs():
    page = "# The *method*\n```\n# no heading\n```\n## What's new, in 2.0?\n## Sizes\n## Sizes ##\n"
    assert headings(page) == {"the-method", "whats-new-in-20", "sizes", "sizes-1"}


def test_a_document_outside_is_found():
    word, tag = "SP" + "EC", "[" + "P Fig. 4]"
    text = f"(see {word} 1.2), {word}. DatasetSpec, A{word}T_RATIO, {word}IAL {tag} [P]"
    assert outside(text) == [f"{word} 1.2", word, tag]


def test_dead_pages_and_links_are_found(tmp_path):
    folder = "docs"
    page = tmp_path / folder / "a.md"
    page.parent.mkdir()
    page.write_text("# Top\n")
    good, bad = f"{folder}/a.md", f"{folder}/b.md"
    cited = f"{good} {good}#top {good}#gone, {bad}. {bad}#top"
    assert dead_pages(tmp_path, cited) == [f"{good}#gone", bad, f"{bad}#top"]
    links = (
        "[](#top) [](a.md#top) [](../docs) [](https://x.org/#y) ![](c.png) [](#gone) [](a.md#gone)"
    )
    assert dead_links(page, links) == ["c.png", "#gone", "a.md#gone"]
