"""Make a sheet to review candidates for PASCAL-B by eye: one HTML file, no network needed.

Open it in a browser, keep or reject every image by a key (press ? for the list), and save the
reject list; `smallobj prepare pascal-b` leaves those images out and samples others instead.
Decisions are kept in the browser from one visit to the next.

Examples:
    smallobj prepare review --pascal-b datasets/pascal_b --output review.html
    smallobj prepare review --json candidates.json --images coco --output review.html \
        --only-suspicious --per-sheet 200 --side 640
To review more images than the set will have, build a larger one first:
    smallobj prepare pascal-b --num-images 4000 --annotations-only --output more \
        --candidates candidates.csv
    smallobj prepare review --pascal-b more --images datasets/coco \
        --verdicts candidates.csv --output review.html
    smallobj prepare pascal-b --rejected rejected.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.utils.cli import make_parser, positive_int, readable_errors

with readable_errors():
    from d2_smallobj.annotations.image_lists import IMAGE_FOLDER
    from d2_smallobj.pascal_b.painting import ANNOTATION_FILE
    from d2_smallobj.report.review import open_review_set, read_suspicions, write_review
    from d2_smallobj.utils.opencv import cv2


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    data = parser.add_argument_group("what to review, one of")
    data.add_argument("--pascal-b", type=Path, metavar="DIR", help="a set that was built")
    data.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="COCO-format annotations; a list 'suspicion' of texts in an image's entry is shown",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the images of --json; for a set that was built without images, COCO's folder",
    )
    parser.add_argument(
        "--verdicts",
        type=Path,
        metavar="FILE.csv",
        help="the list of `prepare pascal-b --candidates`: its findings become suspicions",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html")
    parser.add_argument(
        "--per-sheet", type=int, default=500, metavar="N", help="images a file (%(default)s)"
    )
    parser.add_argument(
        "--side", type=int, default=512, metavar="PIXELS", help="longest of a picture (%(default)s)"
    )
    parser.add_argument(
        "--only-suspicious", action="store_true", help="leave out images without suspicion"
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=1, metavar="N", help="processes (%(default)s)"
    )
    args = parser.parse_args(arguments)
    if (args.pascal_b is None) == (args.json is None):
        parser.error("give either --pascal-b or --json")
    if args.json is not None and args.images is None:
        parser.error("--json needs the folder of its images: give --images")
    if args.pascal_b is not None:
        args.json = args.pascal_b / ANNOTATION_FILE
        args.images = args.images or args.pascal_b / IMAGE_FOLDER
    return args


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the sheets and print where they are."""
    args = parse_arguments(arguments)
    # Processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    review = open_review_set(
        args.json,
        args.images,
        suspicions=None if args.verdicts is None else read_suspicions(args.verdicts),
        only_suspicious=args.only_suspicious,
    )
    options = {name: getattr(args, name) for name in ("per_sheet", "side", "jobs")}
    paths = write_review(args.output, review, **options, progress=True)
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{len(review.tasks)} images in {len(paths)} sheet(s), {size:.1f} MB: {paths[0]}")
