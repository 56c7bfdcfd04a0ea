#!/usr/bin/env python
"""Build PASCAL-B from the annotations of LVIS and COCO 2017 (see datasets/README.md).

A re-creation: the paper's authors have not published their list of images. Same inputs, same
options: same set. --manifest builds the set of a manifest again, to the pixel.

Examples:
    python datasets/prepare_pascal_b.py --jobs 2 --voc datasets/VOCdevkit/VOC2012
    python datasets/prepare_pascal_b.py --force --rejected rejected.json
    python datasets/prepare_pascal_b.py --manifest manifest.json
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from d2_smallobj.utils.cli import positive_int, readable_errors

with readable_errors():
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
    from d2_smallobj.utils.opencv import cv2


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    lvis = [root / f"lvis/lvis_v1_{split}.json" for split in ("train", "val")]
    coco = [root / f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")]
    screening = ScreeningOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    inputs = parser.add_argument_group("inputs and output")
    for name, paths, help_text in (
        ("--lvis", lvis, "LVIS v1 or v0.5 annotations"),
        ("--coco", coco, "COCO 2017 instance annotations"),
    ):
        help_text += f" (default: {' '.join(map(str, paths))})"
        inputs.add_argument(
            name, type=Path, nargs="+", default=paths, metavar="FILE", help=help_text
        )
    inputs.add_argument(
        "--images",
        type=Path,
        default=root / "coco",
        metavar="DIR",
        help="folder of train2017 and val2017 (default: %(default)s)",
    )
    inputs.add_argument(
        "--annotations-only", action="store_true", help="do without the images: no JPEGImages"
    )
    output = root / "pascal_b"
    inputs.add_argument(
        "--output", type=Path, default=output, metavar="DIR", help="default: %(default)s"
    )
    inputs.add_argument("--force", action="store_true", help="replace a set that is there")
    inputs.add_argument(
        "--jobs", type=positive_int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    inputs.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="build the set of this manifest again, with its options instead of those below",
    )
    choice = parser.add_argument_group("which images to choose")
    choice.add_argument(
        "--num-images", type=int, default=IMAGES, metavar="N", help="default: %(default)s"
    )
    choice.add_argument(
        "--per-cell",
        type=int,
        metavar="N",
        help="instances wanted of every class and size (default: as many as keep the average "
        "number of instances of an image)",
    )
    choice.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    choice.add_argument(
        "--coco-classes",
        nargs="*",
        choices=COCO_CLASS_OPTIONS,
        default=list(screening.from_coco),
        metavar="CLASS",
        help="classes whose instances COCO provides where LVIS has none: pottedplant (default, as "
        "in the paper), diningtable",
    )
    choice.add_argument(
        "--rejected",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="images not to use: reject lists of the review sheet, or image ids, one a line",
    )
    help_text = "VOCdevkit/VOC2012: leave out near-duplicates of its images"
    choice.add_argument("--voc", type=Path, metavar="DIR", help=help_text)
    choice.add_argument(
        "--max-distance",
        type=int,
        default=MAX_DISTANCE,
        metavar="BITS",
        help="of 64, in which the hashes of near-duplicates may differ (%(default)s)",
    )
    help_text = "write the verdict on every candidate as CSV"
    choice.add_argument("--candidates", type=Path, metavar="FILE", help=help_text)
    quality = parser.add_argument_group("requirements on an image")
    for name, kind, metavar, help_text in (
        ("min_area", int, "PIXELS", "instances with fewer visible pixels are void"),
        ("max_overlap", float, "SHARE", "largest intersection over union of two instances"),
        (
            "max_disagreement",
            float,
            "SHARE",
            "largest share of labelled pixels on which LVIS and COCO differ",
        ),
        ("max_void", float, "SHARE", "largest share of void pixels"),
    ):
        quality.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=getattr(screening, name),
            metavar=metavar,
            help=f"{help_text} (%(default)s)",
        )
    return parser.parse_args(arguments)


def build(args: argparse.Namespace) -> BuildResult:
    """Build the set that the command line asks for."""
    paths = BuildPaths(
        lvis=args.lvis,
        coco=args.coco,
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
def main(arguments: list[str] | None = None) -> None:
    """Build the set and print its balance."""
    args = parse_arguments(arguments)
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    result = build(args)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    manifest = result.manifest
    sampling, balance = manifest["sampling"], manifest["balance"]
    print(
        f"{len(manifest['image_ids'])} images, {manifest['outputs']['instances']} instances in "
        f"{result.folder}; distance to {sampling['per_cell']} instances of every class and size: "
        f"{sampling['distance']}, no set is nearer than {sampling['bound']}"
    )
    labels = {"source": "all fit images", "random": "as many at random", "achieved": "this set"}
    for name, label in labels.items():
        print(
            f"{label}: normalised entropy {balance[name]['normalized_entropy']:.3f}, coefficient "
            f"of variation {balance[name]['coefficient_of_variation']:.3f}"
        )


if __name__ == "__main__":
    main()
