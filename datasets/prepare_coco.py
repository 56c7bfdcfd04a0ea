#!/usr/bin/env python
"""Paint COCO's instance annotations as 81-class label maps, for training on ground truth.

Writes <coco>/SegmentationClass81/<split>/<image name>.png for every image with annotations.
Maps that are there already are kept, so an interrupted run can be started again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from d2_smallobj.annotations.coco import PAINTINGS, InstanceAnnotations
from d2_smallobj.annotations.label_maps import write_label_map

SPLITS = ("train2014", "val2014", "train2017", "val2017")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and paint the maps; returns the exit status."""
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("splits", nargs="+", choices=SPLITS, help="parts of COCO to paint")
    parser.add_argument(
        "--root", type=Path, default=default_root, help=f"COCO's folder (default: {default_root})"
    )
    parser.add_argument(
        "--painting",
        choices=PAINTINGS,
        default="file",
        help="file: in the order of the annotation file, crowds as background, as WSSS work does "
        "(default); area: larger first, crowds ignored, as our evaluation does",
    )
    args = parser.parse_args(arguments)
    try:
        for split in args.splits:
            number = paint(args.root, split, args.painting)
            print(f"{number} new label maps in {args.root / 'SegmentationClass81' / split}")
    except (ValueError, OSError) as error:
        print(f"prepare_coco: {error}", file=sys.stderr)
        return 2
    return 0


def paint(root: Path, split: str, painting: str) -> int:
    """Paint the missing label maps of a split; returns how many were written."""
    annotations = InstanceAnnotations(
        root / "annotations" / f"instances_{split}.json", painting=painting
    )
    folder = root / "SegmentationClass81" / split
    folder.mkdir(parents=True, exist_ok=True)
    present = set(os.listdir(folder))
    written = 0
    for image_id in tqdm(annotations.image_ids, desc=split, unit="image", disable=None):
        name = f"{PurePosixPath(annotations.file_name(image_id)).stem}.png"
        if name in present or not annotations.is_annotated(image_id):
            continue
        semantic, _ = annotations.maps(image_id)
        write_label_map(folder / name, semantic)
        written += 1
    return written


if __name__ == "__main__":
    sys.exit(main())
