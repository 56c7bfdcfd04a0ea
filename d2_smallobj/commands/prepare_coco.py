r"""Paint COCO's instance annotations as label maps, semantic and instance PNGs.

Reads <root>/annotations/instances_<split>.json and writes, for every image,

    <root>/SegmentationClass81/<split>/<image name>.png         0 background, 1..80 classes
    <root>/SegmentationObject81/<split>/<image name>.png        0 none, 1.. instances

in the painting of WSSS work on COCO (annotations in file order, later ones on top, crowds as
background): what coco_<year>_train_81_gt trains on. With --painting area, the painting of our
evaluation (larger first, so that the smaller stays visible; crowds 255), to
SegmentationClass81_area and SegmentationObject81_area. An image with more than 254 instances gets
a 16-bit instance map. Maps that are there already are kept, so an interrupted run can be started
again.

Examples:
    smallobj prepare coco train2014 train2017 --jobs 8
    smallobj prepare coco val2017 --painting area --jobs 8
    smallobj evaluate --predictions preds --classes coco \
        --semantic datasets/coco/SegmentationClass81_area/val2017 \
        --instances datasets/coco/SegmentationObject81_area/val2017 --output scores/mine
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.utils.cli import make_parser, positive_int, readable_errors

with readable_errors():
    from d2_smallobj.annotations.coco import PAINTINGS
    from d2_smallobj.annotations.coco_maps import write_coco_maps
    from d2_smallobj.utils.opencv import cv2

SPLITS = ("train2014", "val2014", "train2017", "val2017")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    parser = make_parser(__doc__)
    parser.add_argument("splits", nargs="+", choices=SPLITS, help="parts of COCO to paint")
    parser.add_argument(
        "--root", type=Path, default=default_root, help=f"COCO's folder (default: {default_root})"
    )
    parser.add_argument(
        "--painting", choices=PAINTINGS, default="file", help="see above (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace maps made from another annotation file"
    )
    return parser.parse_args(arguments)


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Paint the maps and print where they are."""
    args = parse_arguments(arguments)
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    options = {"painting": args.painting, "jobs": args.jobs, "force": args.force}
    for split in args.splits:
        done = write_coco_maps(args.root, split, **options, progress=True)
        print(
            f"{split}: maps of {done.written} images written, of {done.kept} kept, in "
            f"{done.folders.semantic} and {done.folders.instances} ({done.unannotated} images "
            f"have no annotation, {done.crowded} more than 254 instances)"
        )
