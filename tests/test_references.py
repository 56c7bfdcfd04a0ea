"""Every reference in the repository leads somewhere a reader can follow."""

from __future__ import annotations

import functools
import re
import subprocess
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


@pytest.mark.parametrize("kind", ["documents", "pages", "links"])
def test_references_lead_somewhere(repository, kind):
    texts = _texts(repository)
    assert repository / "docs" / "method.md" in texts
    wrong = []
    for path, text in texts.items():
        if kind == "documents":
            found = outside(text)
        elif kind == "pages":
            found = dead_pages(repository, text)
        else:
            found = dead_links(path, text) if path.suffix == ".md" else []
        wrong += [f"{path.relative_to(repository)}: {reference}" for reference in found]
    assert not wrong, "references that lead nowhere:\n" + "\n".join(wrong)


def test_the_checks_can_fail(tmp_path):
    page = "# The *method*\n```\n# no heading\n```\n## What's new, in 2.0?\n## Sizes\n## Sizes ##\n"
    assert headings(page) == {"the-method", "whats-new-in-20", "sizes", "sizes-1"}
    word, tag = "SP" + "EC", "[" + "P Fig. 4]"
    text = f"(see {word} 1.2), {word}. DatasetSpec, A{word}T_RATIO, {word}IAL {tag} [P]"
    assert outside(text) == [f"{word} 1.2", word, tag]

    folder = "docs"
    page = tmp_path / folder / "a.md"
    page.parent.mkdir()
    page.write_text("# Top\n")
    good, bad = f"{folder}/a.md", f"{folder}/b.md"
    cited = f"{good} {good}#top {good}#gone, {bad}. {bad}#top"
    assert dead_pages(tmp_path, cited) == [f"{good}#gone", bad, f"{bad}#top"]
    fine, dead = "[](#top) [](a.md#top) [](../docs) [](https://x.org/#y)", "[](#gone) [](a.md#gone)"
    assert dead_links(page, f"{fine} ![](c.png) {dead}") == ["c.png", "#gone", "a.md#gone"]
