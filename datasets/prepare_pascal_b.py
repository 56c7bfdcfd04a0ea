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

try:
    from d2_smallobj.pascal_b import (
        IMAGES,
        BuildOptions,
        BuildPaths,
        BuildResult,
        ScreeningOptions,
        build_pascal_b,
        rebuild_pascal_b,
    )
    from d2_smallobj.pascal_b.categories import COCO_CLASS_OPTIONS
    from d2_smallobj.pascal_b.near_duplicates import MAX_DISTANCE
    from d2_smallobj.utils.opencv import cv2
except ImportError as error:
    # A package is missing.
    sys.exit(f"error: {error}")


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
    inputs.add_argument(
        "--lvis",
        type=Path,
        nargs="+",
        default=lvis,
        metavar="FILE",
        help=f"LVIS v1 or v0.5 annotations (default: {' '.join(map(str, lvis))})",
    )
    inputs.add_argument(
        "--coco",
        type=Path,
        nargs="+",
        default=coco,
        metavar="FILE",
        help=f"COCO 2017 instance annotations (default: {' '.join(map(str, coco))})",
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
    inputs.add_argument(
        "--output",
        type=Path,
        default=root / "pascal_b",
        metavar="DIR",
        help="default: %(default)s",
    )
    inputs.add_argument("--force", action="store_true", help="replace a set that is there")
    inputs.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    inputs.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="build the set of this manifest again; the options below are the manifest's then",
    )
    what = parser.add_argument_group("what to choose")
    what.add_argument(
        "--num-images", type=int, default=IMAGES, metavar="N", help="default: %(default)s"
    )
    what.add_argument(
        "--per-cell",
        type=int,
        metavar="N",
        help="instances wanted of every class and size (default: as many as keep the average "
        "number of instances of an image)",
    )
    what.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    what.add_argument(
        "--coco-classes",
        nargs="*",
        choices=COCO_CLASS_OPTIONS,
        default=list(screening.from_coco),
        metavar="CLASS",
        help="classes whose instances COCO provides where LVIS has none: pottedplant (default, as "
        "in the paper), diningtable",
    )
    what.add_argument(
        "--rejected",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="images not to use: what the review sheet exports, or image ids, one a line",
    )
    what.add_argument(
        "--voc",
        type=Path,
        metavar="DIR",
        help="VOCdevkit/VOC2012: leave out near-duplicates of its images",
    )
    what.add_argument(
        "--max-distance",
        type=int,
        default=MAX_DISTANCE,
        metavar="BITS",
        help="of 64, in which the hashes of near-duplicates may differ (%(default)s)",
    )
    what.add_argument(
        "--candidates",
        type=Path,
        metavar="FILE",
        help="write the verdict on every candidate as CSV",
    )
    quality = parser.add_argument_group("what to ask of an image")
    quality.add_argument(
        "--min-area",
        type=int,
        default=screening.min_area,
        metavar="PIXELS",
        help="instances with fewer visible pixels are void (%(default)s)",
    )
    for name, help_text in (
        ("overlap", "largest intersection over union of two instances"),
        ("disagreement", "largest share of labelled pixels on which LVIS and COCO differ"),
        ("void", "largest share of void pixels"),
    ):
        quality.add_argument(
            f"--max-{name}",
            type=float,
            default=getattr(screening, f"max_{name}"),
            metavar="SHARE",
            help=f"{help_text} (%(default)s)",
        )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> BuildResult:
    """Build what the command line asks for."""
    place = BuildPaths(
        lvis=args.lvis,
        coco=args.coco,
        output=args.output,
        pictures=None if args.annotations_only else args.images,
        jobs=args.jobs,
        force=args.force,
        progress=True,
    )
    if args.manifest is not None:
        return rebuild_pascal_b(place, args.manifest)
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
    return build_pascal_b(place, options)


def main(arguments: list[str] | None = None) -> None:
    """Build the set and say what it is."""
    args = parse_arguments(arguments)
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    try:
        result = run(args)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    manifest = result.manifest
    sampling, balance = manifest["sampling"], manifest["balance"]
    print(
        f"{len(manifest['image_ids'])} images, {manifest['outputs']['instances']} instances in "
        f"{result.folder}; distance to {sampling['per_cell']} instances of every class and size: "
        f"{sampling['distance']}, no set is nearer than {sampling['bound']}"
    )
    for name, label in (
        ("source", "all fit images"),
        ("random", "as many at random"),
        ("achieved", "this set"),
    ):
        print(
            f"{label}: normalised entropy {balance[name]['normalized_entropy']:.3f}, coefficient "
            f"of variation {balance[name]['coefficient_of_variation']:.3f}"
        )


if __name__ == "__main__":
    main()
