"""Build PASCAL-B, and review its candidates by eye."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.utils.cli import (
    add_shared,
    finite,
    make_parser,
    natural_int,
    positive_int,
    readable_errors,
)

with readable_errors():
    from d2_smallobj.annotations.image_lists import IMAGE_FOLDER
    from d2_smallobj.pascal_b import (
        IMAGES,
        BuildOptions,
        BuildPaths,
        BuildResult,
        ScreeningOptions,
        build_pascal_b,
        rebuild_pascal_b,
    )
    from d2_smallobj.pascal_b.index import COCO_CLASS_OPTIONS
    from d2_smallobj.pascal_b.near_duplicates import MAX_DISTANCE
    from d2_smallobj.pascal_b.painting import ANNOTATION_FILE
    from d2_smallobj.report.review import open_review_set, read_suspicions, write_review
    from d2_smallobj.utils.opencv import cv2

BUILD_HELP = """Build PASCAL-B from the annotations of LVIS and COCO 2017 (see datasets/README.md).

A re-creation: the paper's authors have not published their list of images. Same inputs, same
options: same set. --manifest builds the set of a manifest again, to the pixel.

Examples:
    smallobj prepare pascal-b --jobs 2 --voc datasets/VOCdevkit/VOC2012
    smallobj prepare pascal-b --force --rejected rejected.json
    smallobj prepare pascal-b --manifest manifest.json
"""

REVIEW_HELP = r"""Make a sheet to review candidates for PASCAL-B by eye: one HTML file.

Open it in a browser, keep or reject every image by a key (press ? for the list), and save the
reject list; `smallobj prepare pascal-b` leaves those images out and samples others instead.
Decisions are kept in the browser from one visit to the next. A list 'suspicion' of texts in an
image's entry of --coco-json is shown; --images are its pictures, or COCO's folder for a set that
was built without.

Examples:
    smallobj prepare review --pascal-b datasets/pascal_b --output review.html
    smallobj prepare review --coco-json candidates.json --images coco --output review.html \
        --only-suspicious --per-sheet 200 --side 640
To review more images than the set will have, build a larger one first:
    smallobj prepare pascal-b --num-images 4000 --annotations-only --output more \
        --candidates candidates.csv
    smallobj prepare review --pascal-b more --images datasets/coco \
        --verdicts candidates.csv --output review.html
    smallobj prepare pascal-b --rejected rejected.json
"""


def parse_build(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    lvis = [root / f"lvis/lvis_v1_{split}.json" for split in ("train", "val")]
    coco = [root / f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")]
    screening = ScreeningOptions()
    parser = make_parser(BUILD_HELP)
    inputs = parser.add_argument_group("inputs and output")
    for flag, old, paths in (("--lvis-json", "--lvis", lvis), ("--coco-json", "--coco", coco)):
        add_shared(inputs, flag, type=Path, nargs="+", default=paths, metavar="FILE")
        # The names of earlier versions.
        hidden: dict[str, Any] = {
            "dest": flag[2:].replace("-", "_"),
            "default": paths,
            "help": argparse.SUPPRESS,
        }
        inputs.add_argument(old, type=Path, nargs="+", **hidden)
    add_shared(inputs, "--images", type=Path, default=root / "coco")
    add_shared(inputs, "--output", required=False, default=root / "pascal_b")
    add_shared(inputs, "--jobs", default=os.cpu_count() or 1)
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    text = "build this set again, with its options instead of those below"
    inputs.add_argument("--manifest", help=text, **file)
    text = "do without the images: no JPEGImages"
    inputs.add_argument("--annotations-only", action="store_true", help=text)
    add_shared(inputs, "--force")

    choice = parser.add_argument_group("which images to choose")
    text = "instances wanted of a class and size (default: by the average image)"
    choice.add_argument("--per-cell", type=positive_int, metavar="N", help=text)
    text = "VOC2012: leave out near-duplicates of its images"
    choice.add_argument("--voc", type=Path, metavar="DIR", help=text)
    choice.add_argument("--candidates", help="write the verdict on every candidate as CSV", **file)
    text = "images not to use: reject lists of the review sheet, or image ids"
    choice.add_argument("--rejected", nargs="+", default=[], help=text, **file)
    choice.add_argument(
        "--coco-classes",
        nargs="*",
        choices=COCO_CLASS_OPTIONS,
        default=list(screening.from_coco),
        metavar="CLASS",
        help=f"of COCO where LVIS has none: {', '.join(COCO_CLASS_OPTIONS)}",
    )
    text = "of 64, in which the hashes of near-duplicates differ"
    _add(
        choice,
        ("--num-images", positive_int, IMAGES, "N", "images of the set"),
        ("--max-distance", natural_int, MAX_DISTANCE, "BITS", text),
    )
    add_shared(choice, "--seed")
    text = "largest share of pixels on which LVIS and COCO differ"
    iou = "largest intersection over union of two instances"
    _add(
        parser.add_argument_group("requirements on an image"),
        ("--min-area", natural_int, screening.min_area, "PIXELS", "of an instance; else void"),
        ("--max-overlap", finite, screening.max_overlap, "SHARE", iou),
        ("--max-disagreement", finite, screening.max_disagreement, "SHARE", text),
        ("--max-void", finite, screening.max_void, "SHARE", "largest share of void pixels"),
    )
    return parser.parse_args(arguments)


def _add(group: Any, *options: tuple[str, Callable[[str], Any], Any, str, str]) -> None:
    """Add options: flag, type, default, metavar, help."""
    for flag, kind, default, metavar, text in options:
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=text)


def build(args: argparse.Namespace) -> BuildResult:
    """Build the set that the command line asks for."""
    paths = BuildPaths(
        lvis=args.lvis_json,
        coco=args.coco_json,
        output=args.output,
        pictures=None if args.annotations_only else args.images,
        jobs=args.jobs,
        force=args.force,
        progress=True,
    )
    if args.manifest is not None:
        return rebuild_pascal_b(paths, args.manifest)
    screening = ScreeningOptions(
        from_coco=tuple(sorted(set(args.coco_classes))),
        min_area=args.min_area,
        max_overlap=args.max_overlap,
        max_disagreement=args.max_disagreement,
        max_void=args.max_void,
    )
    options = BuildOptions(
        number=args.num_images,
        per_cell=args.per_cell,
        seed=args.seed,
        screening=screening,
        rejected=args.rejected,
        voc=args.voc,
        max_distance=args.max_distance,
        candidate_list=args.candidates,
    )
    return build_pascal_b(paths, options)


@readable_errors()
def prepare_pascal_b(arguments: Sequence[str] | None = None) -> None:
    """Build the set and print its balance."""
    args = parse_build(arguments)
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    result = build(args)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    manifest = result.manifest
    sampling, balance = manifest["sampling"], manifest["balance"]
    print(
        f"{len(manifest['image_ids'])} images, {manifest['outputs']['instances']} instances in "
        f"{result.folder}; the aim is {sampling['per_cell']} instances of every class and size, "
        f"or all there are where there are fewer: {sampling['distance']} instances from it in "
        f"all, and no set of {len(manifest['image_ids'])} images is nearer than {sampling['bound']}"
    )
    labels = {"source": "all fit images", "random": "as many at random", "achieved": "this set"}
    for name, label in labels.items():
        print(
            f"{label}: normalised entropy {balance[name]['normalized_entropy']:.3f}, coefficient "
            f"of variation {balance[name]['coefficient_of_variation']:.3f}"
        )


def parse_review(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(REVIEW_HELP)
    data = parser.add_argument_group("what to review, one of")
    data.add_argument("--pascal-b", type=Path, metavar="DIR", help="a set that was built")
    add_shared(data, "--coco-json", type=Path)
    data.add_argument("--json", dest="coco_json", type=Path, help=argparse.SUPPRESS)  # its old name
    add_shared(parser, "--images", type=Path)
    add = parser.add_argument
    text = "list of `prepare pascal-b --candidates`: its findings become suspicions"
    add("--verdicts", type=Path, metavar="FILE.csv", help=text)
    add("--per-sheet", type=positive_int, default=500, metavar="N", help="images a file")
    add("--side", type=positive_int, default=512, metavar="PIXELS", help="longest of a picture")
    add("--only-suspicious", action="store_true", help="leave out images without suspicion")
    add_shared(parser, "--jobs")
    add_shared(parser, "--output", metavar="FILE.html", help="HTML page to write")
    args = parser.parse_args(arguments)
    if (args.pascal_b is None) == (args.coco_json is None):
        parser.error("give either --pascal-b or --coco-json")
    if args.coco_json is not None and args.images is None:
        parser.error("--coco-json needs the folder of its images: give --images")
    if args.pascal_b is not None:
        args.coco_json = args.pascal_b / ANNOTATION_FILE
        args.images = args.images or args.pascal_b / IMAGE_FOLDER
    return args


@readable_errors()
def review_pascal_b(arguments: Sequence[str] | None = None) -> None:
    """Make the sheets and print where they are."""
    args = parse_review(arguments)
    # Processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    review = open_review_set(
        args.coco_json,
        args.images,
        suspicions=None if args.verdicts is None else read_suspicions(args.verdicts),
        only_suspicious=args.only_suspicious,
    )
    options = {name: getattr(args, name) for name in ("per_sheet", "side", "jobs")}
    paths = write_review(args.output, review, **options, progress=True)
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{len(review.tasks)} images in {len(paths)} sheet(s), {size:.1f} MB: {paths[0]}")
