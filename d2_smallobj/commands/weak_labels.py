"""Make label maps from image labels or from boxes: what a net is trained on without masks."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2_smallobj.utils.cli import (
    add_shared,
    finite,
    make_parser,
    parse_with_overrides,
    positive_int,
    readable_errors,
)

with readable_errors():
    from d2_smallobj.commands.prepare import write_label_summaries
    from d2_smallobj.postprocessing import CrfOptions, DenseCrf
    from d2_smallobj.pseudo_labels.activations import ClassifierOptions, write_activation_label
    from d2_smallobj.pseudo_labels.box_labels import REFINEMENTS, write_box_label
    from d2_smallobj.pseudo_labels.misses import summarize_labels
    from d2_smallobj.pseudo_labels.preparation import check_origin
    from d2_smallobj.utils.files import atomic_write_text, read_json
    from d2_smallobj.utils.messages import Problems
    from d2_smallobj.utils.opencv import cv2
    from d2_smallobj.utils.parallel import parallel_map

if TYPE_CHECKING:
    from d2_smallobj.data.weak_images import WeakSet

LABEL_CRF = CrfOptions(
    iterations=5,
    gaussian_sxy=1.5,
    gaussian_weight=3.0,
    bilateral_sxy=25.0,
    bilateral_srgb=5.0,
    bilateral_weight=10.0,
)
"""IRN's weights and width in colour; its widths in space are halved, as the image is."""
THRESHOLD = 0.3
SCALES = [0.5, 1.0, 1.5]

_WRITTEN = """Written are, for a folder FOLDER,

    FOLDER/<image name>.png          0 background, 1.. classes, 255 ignored
    FOLDER.json                      what they were made from
    FOLDER.md, .csv, .png            their quality and what they miss, where there are true masks"""

BOXES_HELP = rf"""Make label maps of a data set's boxes.

Every box is painted, the smaller on top, crowds as 255. With --refine grabcut or crf, only the
object that is found inside the box gets its class, and its border is 255 where that is unsure.
{_WRITTEN}

An interrupted run can be started again.

Example:
    smallobj prepare weak-labels boxes --refine grabcut --output weak/boxes \
        --dataset coco_json@instances.json@images
"""

CAM_HELP = rf"""Make label maps of image labels: a classifier's activation maps (CAM), thresholded.

Trains a multi-label classifier on the config's backbone (image labels only), sums the activation
maps of each image's own classes over scales and mirrored copies, takes the largest, background
where none exceeds the threshold, and refines with a CRF. {_WRITTEN}
    FOLDER_activations/              <image name>.npy, plain arrays, and classes.json
    FOLDER_classifier.pth            the classifier

An interrupted run continues when it is started again; with --force, what other options do not
change is kept: another --threshold needs no training.

Example:
    smallobj prepare weak-labels cam --config-file Base-MobileNetV2.yaml --output weak/cam \
        --dataset coco_json@instances.json@images MODEL.WEIGHTS mobilenet_v2.pth
"""


def parse_boxes(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(BOXES_HELP)
    add_shared(parser, "--dataset", required=True, help="training set with boxes")
    add_shared(parser, "--output", "--jobs", "--force")
    text = "none: the whole box; grabcut or crf: the object found inside"
    parser.add_argument("--refine", choices=REFINEMENTS, default="none", metavar="HOW", help=text)
    parser.add_argument("--no-summary", action="store_true", help="write no summary")
    return parser.parse_args(arguments)


def parse_cam(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(CAM_HELP)
    add_shared(parser, "--config-file", required=True)
    add_shared(parser, "--dataset", required=True, help="training set with image labels")
    add_shared(parser, "--output", "--jobs", "--force", "--seed")
    add, defaults = parser.add_argument, ClassifierOptions()
    text = "steps of the classifier (default: ten passes, at least 200)"
    add("--iterations", type=positive_int, default=0, metavar="N", help=text)
    batch, rate, crop = defaults.batch_size, defaults.learning_rate, defaults.crop
    add("--batch-size", type=positive_int, default=batch, metavar="N", help="images a step")
    text = "of the backbone; the new layer's is thirty times as much"
    add("--learning-rate", type=_positive, default=rate, metavar="NUMBER", help=text)
    add("--crop", type=positive_int, default=crop, metavar="N", help="side of training crops")
    text = "factors on the images' size for the maps"
    add("--scales", type=_positive, nargs="+", default=SCALES, metavar="NUMBER", help=text)
    text = "background where no activation exceeds it"
    add("--threshold", type=_share, default=THRESHOLD, metavar="NUMBER", help=text)
    add("--no-crf", action="store_true", help="leave the labels as they are")
    add("--no-summary", action="store_true", help="write no summary")
    return parse_with_overrides(parser, arguments)


def _positive(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


def _share(text: str) -> float:
    value = finite(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number >= 0 and < 1, got {text!r}")
    return value


@readable_errors()
def boxes(arguments: Sequence[str] | None = None) -> None:
    """Make label maps of boxes, and print their quality."""
    args = parse_boxes(arguments)
    # What imports torch, which takes seconds, comes after the command line has been read.
    from d2_smallobj.data.weak_images import weak_images

    cv2.setNumThreads(1)
    images = weak_images(args.dataset, boxes=True)
    crf = DenseCrf(LABEL_CRF) if args.refine == "crf" else None
    origin = {**_origin(args, images, "boxes"), "refine": args.refine}
    keep = _open_folder(args, origin, images)
    write = functools.partial(write_box_label, refine=args.refine, crf=crf, keep=keep)
    items = [(x.file_name, x.boxes, _label_path(args, x.stem)) for x in images.images]
    _write_labels(args, images, write, items)


@readable_errors()
def cam(arguments: Sequence[str] | None = None) -> None:
    """Train the classifier, write activation maps and label maps, and print their quality."""
    args = parse_cam(arguments)
    from d2_smallobj.data.weak_images import weak_images
    from d2_smallobj.engine import build_config
    from d2_smallobj.engine.classifier_training import train_classifier, write_activations
    from d2_smallobj.engine.setup import fingerprint

    cv2.setNumThreads(1)
    cfg = build_config(args.config_file, args.opts)
    images = weak_images(args.dataset)
    names = [field.name for field in dataclasses.fields(ClassifierOptions)]
    options = ClassifierOptions(**{name: getattr(args, name) for name in names})
    classifier = {
        **dataclasses.asdict(options),
        "images": images.digest(),
        "weights": cfg.MODEL.WEIGHTS,
        "config": {key: value for key, value in fingerprint(cfg).items() if _of_backbone(key)},
    }
    crf = None if args.no_crf else DenseCrf(LABEL_CRF)
    origin = {
        **_origin(args, images, "cam"),
        "classifier": classifier,
        "scales": list(args.scales),
        "threshold": args.threshold,
        "crf": crf is not None,
    }
    folder = args.output.with_name(f"{args.output.name}_activations")
    before = _read_marker(args.output)
    same_maps = all(before.get(key) == origin[key] for key in ("classifier", "scales"))
    keep = _open_folder(args, origin, images, () if same_maps else (folder,))
    path = args.output.with_name(f"{args.output.name}_classifier.pth")
    num_classes = len(images.class_names) - 1
    model = train_classifier(cfg, images.images, num_classes, options, path, classifier)
    written = write_activations(
        model,
        images.images,
        folder,
        image_format=cfg.INPUT.FORMAT,
        scales=args.scales,
    )
    print(f"{written} activation maps written, {len(images.images) - written} kept in {folder}")
    write = functools.partial(write_activation_label, threshold=args.threshold, crf=crf, keep=keep)
    items = [
        (x.file_name, x.classes, str(folder / f"{x.stem}.npy"), _label_path(args, x.stem))
        for x in images.images
    ]
    _write_labels(args, images, write, items)


def _of_backbone(key: str) -> bool:
    """Whether a config key decides the classifier's weights."""
    roots = ("MODEL.BACKBONE", "MODEL.RESNETS", "MODEL.PIXEL", "INPUT.FORMAT")
    ours = ("SMALLOBJ.OUTPUT_STRIDE", "SMALLOBJ.STEM_POOL_CEIL", "SMALLOBJ.MOBILENET")
    return key.startswith((*roots, *ours)) or key == "MODEL.SEM_SEG_HEAD.IN_FEATURES"


def _origin(args: argparse.Namespace, images: WeakSet, kind: str) -> dict[str, Any]:
    """What every label folder records."""
    return {
        "sources": [args.dataset],
        "format": kind,
        "supervision": images.digest(),
        "class_names": list(images.class_names),
    }


def _read_marker(folder: Path) -> dict[str, Any]:
    """The origin of existing labels; empty without a readable one."""
    try:
        found = read_json(folder.with_name(f"{folder.name}.json"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _open_folder(
    args: argparse.Namespace, origin: dict[str, Any], images: WeakSet, stale: Sequence[Path] = ()
) -> bool:
    """Note the origin beside the folder; returns whether label maps that exist can be kept.

    Maps of another origin, and those in the folders ``stale``, are removed before, so that a run
    which is interrupted cannot keep them later.
    """
    advice = "replace them with --force, or choose another --output"
    keep = check_origin(args.output, origin, force=args.force, advice=advice)
    for folder in (*stale, *(() if keep else (args.output,))):
        for image in images.images:
            (folder / f"{image.stem}{'.png' if folder == args.output else '.npy'}").unlink(True)
    path = args.output.with_name(f"{args.output.name}.json")
    atomic_write_text(path, json.dumps(origin, indent=2) + "\n")
    return keep


def _label_path(args: argparse.Namespace, stem: str) -> str:
    return str(args.output / f"{stem}.png")


def _write_labels(
    args: argparse.Namespace,
    images: WeakSet,
    write: Callable[[Any], str | bool],
    items: Sequence[Any],
) -> None:
    """Write all label maps, say what was done, and summarise them."""
    problems, counts = Problems(), Counter[bool]()
    results = parallel_map(write, items, jobs=args.jobs, description="label maps", progress=True)
    for result in results:
        if isinstance(result, str):
            problems.add("image(s) without a label map", result)
        else:
            counts[result] += 1
    problems.raise_if_any()
    print(
        f"{counts[True]} label maps written, {counts[False]} kept in {args.output}; "
        f"{images.without_classes} image(s) have no label, their maps are background"
    )
    if args.no_summary:
        return
    if images.truth is None:
        print("no summary: the data set has no true masks to compare with")
        return
    files = {image.stem: _label_path(args, image.stem) for image in images.images}
    name = args.output.name
    summary = summarize_labels(images.truth, files, name=name, jobs=args.jobs, progress=True)
    write_label_summaries(summary, args.output)
    label, value = summary.constant
    print(f"the best single label for all pixels ({label}) has mIoU {value:.2f}")
