#!/usr/bin/env python
r"""Draw the pictures of docs/metric.md and renew the numbers in it.

Needs neither torch nor detectron2. Between `<!-- table: NAME -->` and `<!-- end -->` the page
holds what the library computes; the tables of real images are renewed only with --voc.

Example:
    python docs/draw_metric.py --voc ../shared/realdata/voc/VOC2012
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from metric_drawings import draw_matching, draw_outcomes, draw_pooling
from metric_examples import example_tables

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.truth import folder_truth
from d2_smallobj.report.conventions import PERTURBATIONS, compare_conventions, convention_table
from d2_smallobj.report.labelled_images import drawn_pair, drawn_sizes, find_pair, truth_images
from d2_smallobj.report.sensitivity import (
    corner_cases,
    draw_corner_cases,
    draw_removal,
    removal_curve,
)
from d2_smallobj.utils.files import atomic_write_text

_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """Renew the tables and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent)
    parser.add_argument("--voc", type=Path, metavar="DIR", help="folder VOC2012 of real images")
    args = parser.parse_args()
    try:
        tables = example_tables()
        if args.voc:
            tables["voc"] = voc_table(args.voc)
        page = args.docs / "metric.md"
        renewed = renew(page.read_text(encoding="utf-8"), tables)
        draw(args.docs)
        atomic_write_text(page, renewed)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {page} and {args.docs / 'metric_*.png'}")


def draw(docs: Path) -> None:
    """Draw all pictures."""
    draw_pooling(docs / "metric_pooling.png")
    draw_matching(docs / "metric_matching.png")
    draw_outcomes(docs / "metric_outcomes.png")
    names = ("background", "disc")
    pair = find_pair([drawn_pair()], names)
    draw_corner_cases(docs / "metric_corner.png", pair, corner_cases(pair))
    draw_removal(docs / "metric_removal.png", removal_curve(drawn_sizes(), names, "disc"))


def voc_table(folder: Path) -> str:
    """Every convention on perturbed ground truth of real VOC images."""
    truth = folder_truth(folder / "SegmentationClass", folder / "SegmentationObject")
    images = truth_images(truth, len(VOC_CLASS_NAMES))
    return convention_table(compare_conventions(images, PERTURBATIONS, VOC_CLASS_NAMES))


def renew(page: str, tables: Mapping[str, str]) -> str:
    """Replace the blocks that ``tables`` has; the others stay.

    Raises:
        ValueError: if the page lacks one of them.
    """
    missing = set(tables) - {found["name"] for found in _BLOCK.finditer(page)}
    if missing:
        raise ValueError(f"metric.md has no block <!-- table: NAME --> for {sorted(missing)}")

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return f"{found[1]}{tables[name]}{found[3]}" if name in tables else found[0]

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    main()
