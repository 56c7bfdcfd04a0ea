r"""Convert a method's pseudo labels to the registered form, check and summarise them.

METHOD is one of the methods of datasets/README.md, or "other"; the folders are what its code
wrote: one label map (<image name>.png) or one file of activation maps (<image name>.npy) per
image; for BANA two folders, Y_crf and Y_ret, which become 255 where they disagree. Other files in
them (RIB's <id>_palette.png) are ignored. Written are, below --root,

    VOCdevkit/VOC2012/PseudoLabels/<method>/<id>.png            --dataset voc, 10,582 images
    coco/PseudoLabels/<method>_<year>/<image name>.png          --dataset coco_2014, coco_2017
    .../PseudoLabels/<method>.{json,md,csv,png}                 origin; summary by size and class

The summary compares the labels with the true instances, where there are any (VOC: the images with
SegmentationObject; COCO: the annotation file): how many small objects they miss. An interrupted
run can be started again. Activation maps are pickles: they are read without running anything.

Examples:
    smallobj prepare pseudo-labels irn result/sem_seg --jobs 8
    smallobj prepare pseudo-labels bana Generation/Y_crf Generation/Y_ret
    smallobj prepare pseudo-labels edam out_cam --threshold 0.4 --name edam_04
    smallobj prepare pseudo-labels rib result/sem_seg_coco --dataset coco_2014
    smallobj prepare pseudo-labels irn --check
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.utils.cli import make_parser, positive_int, readable_errors

with readable_errors():
    from d2_smallobj.annotations.dataset_files import datasets_root
    from d2_smallobj.pseudo_labels.formats import FORMATS, METHODS
    from d2_smallobj.pseudo_labels.misses import summarize_labels
    from d2_smallobj.pseudo_labels.preparation import check_labels, find_sources, prepare_labels
    from d2_smallobj.pseudo_labels.targets import DATA_SETS, LabelTarget, open_target
    from d2_smallobj.report.label_summary import (
        draw_label_summary,
        format_label_summary,
        write_label_summary,
    )
    from d2_smallobj.utils.files import atomic_write_text
    from d2_smallobj.utils.opencv import cv2


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("method", metavar="METHOD", choices=METHODS, help=", ".join(METHODS))
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="what it wrote")
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="folder of all data sets (default: %(default)s)",
    )
    parser.add_argument("--dataset", choices=DATA_SETS, default="voc", help="default: %(default)s")
    parser.add_argument(
        "--name", help="folder of the prepared labels (default: the method; needed for other)"
    )
    parser.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="indices: PNG; cams: activation maps; scores: scores with background, as a CRF "
        "writes them (default: auto, PNG or activation maps by what is there)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="background where no activation exceeds it (default: the method's own, 0.15 or 0.5)",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace labels that were made from something else"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="convert nothing: check the prepared labels, and write their summary",
    )
    parser.add_argument("--no-summary", action="store_true", help="write no summary")
    args = parser.parse_args(arguments)
    if args.check == bool(args.folders):
        parser.error("give the folders that the method wrote, or --check alone")
    if args.method == "other" and not args.name:
        parser.error("--name is needed for a method without one")
    if args.threshold is None:
        args.threshold = METHODS[args.method].threshold
    return args


def prepare(args: argparse.Namespace) -> LabelTarget:
    """Convert or check the labels."""
    target = open_target(args.root, args.dataset, args.name or args.method)
    if args.check:
        sources = find_sources(target, "other", [target.folder], file_format="indices")
        count = check_labels(target, sources, jobs=args.jobs, progress=True)
        print(f"{count} label maps in {target.folder} are valid")
        return target
    sources = find_sources(target, args.method, args.folders, file_format=args.format)
    options = {"threshold": args.threshold, "jobs": args.jobs, "force": args.force}
    done = prepare_labels(target, sources, **options, progress=True)
    print(
        f"{done.written} label maps written, {done.kept} kept in {target.folder}; "
        f"{sources.others} other files ignored"
    )
    return target


def write_summary(target: LabelTarget, jobs: int) -> None:
    """Write and print the summary by size, where there are true instances."""
    truth = target.ground_truth()
    if truth is None:
        print("no summary: none of the images has a map in SegmentationObject")
        return
    name = target.folder.name
    summary = summarize_labels(truth, target.files(), name=name, jobs=jobs, progress=True)
    text = format_label_summary(summary)
    base = target.summary
    atomic_write_text(f"{base}.md", text)
    write_label_summary(f"{base}.csv", summary)
    print(text)
    try:
        draw_label_summary(f"{base}.png", summary)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
    print(f"summary: {base}.md, .csv, .png")


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare and summarise the labels, and print how to train on them."""
    args = parse_arguments(arguments)
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    target = prepare(args)
    if not args.no_summary:
        write_summary(target, args.jobs)
    print(f"to train on them: {target.command}")
