"""Make data sets: COCO as label maps, the demo scenes, pseudo labels of any method."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.utils.cli import add_shared, finite, make_parser, positive_int, readable_errors

with readable_errors():
    from d2_smallobj.annotations.coco import PAINTINGS
    from d2_smallobj.annotations.coco_maps import write_coco_maps
    from d2_smallobj.annotations.dataset_files import datasets_root
    from d2_smallobj.demo.dataset import DemoOptions, make_demo
    from d2_smallobj.postprocessing import DenseCrf
    from d2_smallobj.pseudo_labels.formats import FORMATS, METHODS
    from d2_smallobj.pseudo_labels.misses import LabelSummary, summarize_labels
    from d2_smallobj.pseudo_labels.preparation import check_labels, find_sources, prepare_labels
    from d2_smallobj.pseudo_labels.targets import DATA_SETS, LabelTarget, open_target
    from d2_smallobj.report.label_summary import (
        draw_label_summary,
        format_label_summary,
        write_label_summary,
    )
    from d2_smallobj.utils.files import atomic_write_text
    from d2_smallobj.utils.opencv import cv2

COCO_HELP = r"""Paint COCO's instance annotations as label maps, semantic and instance PNGs.

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

DEMO_HELP = """Draw the demo data set (synthetic scenes; see datasets/README.md).

Example:
    smallobj prepare demo --num-train 1000
"""

PSEUDO_LABELS_HELP = r"""Convert a method's pseudo labels to the registered form; check, summarise.

METHOD is one of the methods of datasets/README.md, or "other"; the folders are what its code
wrote: one label map (<image name>.png: indices) or one file of activation maps (<image name>.npy:
cams, clip_es; scores, with the background's, as a CRF writes them) per image; for BANA two folders,
Y_crf and Y_ret, which become 255 where they disagree. Other files in them (RIB's <id>_palette.png)
are ignored. --check converts nothing and checks the prepared labels. Written are, below --root,

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


SPLITS = ("train2014", "val2014", "train2017", "val2017")


def parse_coco(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    parser = make_parser(COCO_HELP)
    text = "parts of COCO to paint: train2014, val2014, train2017, val2017"
    parser.add_argument("splits", nargs="+", choices=SPLITS, metavar="SPLIT", help=text)
    text = "file, or area: larger annotations first"
    parser.add_argument("--painting", choices=PAINTINGS, default="file", metavar="ORDER", help=text)
    add_shared(parser, "--root", default=default_root)
    add_shared(parser, "--jobs", "--force")
    return parser.parse_args(arguments)


@readable_errors()
def prepare_coco(arguments: Sequence[str] | None = None) -> None:
    """Paint the maps and print where they are."""
    args = parse_coco(arguments)
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


@readable_errors()
def prepare_demo(arguments: Sequence[str] | None = None) -> None:
    """Make the scenes."""
    defaults = DemoOptions()
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "smallobj_demo"
    parser = make_parser(DEMO_HELP)
    add_shared(parser, "--root", default=root)
    for name, text, metavar in (
        ("num_train", "training scenes", "N"),
        ("num_val", "validation scenes", "N"),
        ("size", "side of the scenes", "PIXELS"),
    ):
        option, default = f"--{name.replace('_', '-')}", getattr(defaults, name)
        parser.add_argument(option, type=positive_int, default=default, metavar=metavar, help=text)
    add_shared(parser, "--seed", default=defaults.seed)
    add_shared(parser, "--force")
    args = parser.parse_args(arguments)
    make_demo(**vars(args))
    print(f"{args.num_train} + {args.num_val} scenes at {args.root}")


def parse_pseudo_labels(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(PSEUDO_LABELS_HELP)
    parser.add_argument("method", metavar="METHOD", choices=METHODS, help=", ".join(METHODS))
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="what it wrote")
    add_shared(parser, "--root", default=datasets_root())
    add = parser.add_argument
    text = f"what was labelled: {', '.join(DATA_SETS)}"
    add("--dataset", choices=DATA_SETS, default="voc", metavar="NAME", help=text)
    text = "of the prepared labels (default: the method; needed for other)"
    add("--name", metavar="NAME", help=text)
    text = f"{', '.join(FORMATS)}, as above (default: by what is there)"
    add("--format", choices=("auto", *FORMATS), default="auto", metavar="FORMAT", help=text)
    text = "background where no activation exceeds it (default: the method's own)"
    add("--threshold", type=finite, metavar="NUMBER", help=text)
    add_shared(parser, "--jobs", "--force", "--check")
    add("--no-summary", action="store_true", help="write no summary")
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
    # CLIP-ES refines with DeepLab's weights, which are the defaults.
    options["crf"] = DenseCrf() if sources.file_format == "clip_es" else None
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
    write_label_summaries(summary, target.summary)


def write_label_summaries(summary: LabelSummary, base: Path) -> None:
    """Write a summary as ``<base>.md``, ``.csv`` and ``.png``, and print it."""
    text = format_label_summary(summary)
    atomic_write_text(f"{base}.md", text)
    write_label_summary(f"{base}.csv", summary)
    print(text)
    try:
        draw_label_summary(f"{base}.png", summary)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
    print(f"summary: {base}.md, .csv, .png")


@readable_errors()
def prepare_pseudo_labels(arguments: Sequence[str] | None = None) -> None:
    """Prepare and summarise the labels, and print how to train on them."""
    args = parse_pseudo_labels(arguments)
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    target = prepare(args)
    if not args.no_summary:
        write_summary(target, args.jobs)
    print(f"to train on them: {target.command}")
