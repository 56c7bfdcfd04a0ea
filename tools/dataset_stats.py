#!/usr/bin/env python
r"""Count the instances of data sets by class and size, and measure how balanced they are.

Takes registered data sets (needs torch), COCO, LVIS or panoptic annotation files, Cityscapes, and
folders of label maps. An instance's size is its visible area when larger annotations are painted
first. Writes to --output:
  counts.csv    instances by data set, class and size
  balance.csv   one row a data set: images, instances, normalised entropy and coefficient of
                variation over class x size
  classes.png   sorted bars for each size (Fig. 1b of the paper)
  sizes.png     box plots over the classes for each size (Fig. 6)

Examples:
    python tools/dataset_stats.py --output output/stats --dataset voc_2012_seg_val \
        --dataset pascal_b_val
    python tools/dataset_stats.py --output output/stats --coco-json instances_val2017.json
    python tools/dataset_stats.py --output output/stats --jobs 4 \
        --semantic VOC=VOC2012/SegmentationClass --instances VOC2012/SegmentationObject \
        --coco-json PASCAL-B=pascal_b/instances.json
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.utils.cli import checked, positive_int, readable_errors

with readable_errors():
    from d2_smallobj.metrics import parse_size_bins
    from d2_smallobj.report.dataset_summary import (
        draw_class_bars,
        draw_size_boxes,
        format_balance,
        format_counts,
        write_balance,
        write_counts,
    )
    from d2_smallobj.scoring import Inputs, check_writable
    from d2_smallobj.scoring.inputs import PARTNERS
    from d2_smallobj.scoring.instance_sizes import measure_instances
    from d2_smallobj.statistics.balance import SizeStatistics, size_statistics
    from d2_smallobj.utils.opencv import cv2


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group(
        "data sets", "one or more, in the order of tables and figures; [NAME=] names one there"
    )
    for option, what, text in (
        ("--dataset", "NAME", "registered data set"),
        ("--coco-json", "[NAME=]FILE", "COCO annotations"),
        ("--lvis-json", "[NAME=]FILE", "LVIS annotations"),
        ("--panoptic", ("[NAME=]JSON", "DIR"), "COCO panoptic file and the folder of its PNGs"),
        ("--cityscapes", "[NAME=]DIR", "gtFine, or a split of it"),
        ("--semantic", "[NAME=]DIR", "folder of semantic label maps"),
        ("--instances", "DIR", "instance maps of the --semantic before it; default: its "
         "connected components are the instances"),
    ):  # fmt: skip
        kind = option[2:].replace("-", "_")
        data.add_argument(
            option, dest="sources", action="append", metavar=what, help=text, default=[],
            # A value keeps its option, since the order of all options counts.
            type=lambda value, kind=kind: (kind, value),
            nargs=2 if isinstance(what, tuple) else None,
        )  # fmt: skip
    more = parser.add_argument_group("for annotation files and folders, as for tools/evaluate.py")
    text = "class names; default: all of an annotation file, voc for folders"
    more.add_argument("--classes", metavar="voc|coco|N|FILE", help=text)
    stuff = more.add_mutually_exclusive_group()
    stuff.add_argument("--stuff", action="append", metavar="NAME", help="a class without objects")
    stuff.add_argument("--no-stuff", action="store_true", help="all classes are objects")
    more.add_argument("--category-map", metavar="FILE", help="class of each category")
    more.add_argument("--list", metavar="FILE", help="images to use; default: all")
    text = "coco (default), S:1024,M:9216,L:inf, or relative:S:0.01,M:0.1,L:1"
    bins = {"type": checked(parse_size_bins), "default": "coco", "metavar": "BINS"}
    parser.add_argument("--size-bins", help=text, **bins)
    parser.add_argument("--log", action="store_true", help="logarithmic axes")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    text = "processes for folders (default: %(default)s)"
    parser.add_argument("--jobs", type=positive_int, default=1, help=text)
    parser.add_argument("--no-figures", action="store_true", help="tables only, no matplotlib")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no tables")
    args = parser.parse_args(arguments)
    with readable_errors():
        args.sources = read_sources(args.sources)
        check(args)
    return args


def read_sources(given: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Turn (option, value) pairs into arguments of Inputs by data set, in the order of the options.

    Raises:
        ValueError: there is none, --instances has no --semantic, or two share a name.
    """
    sources: dict[str, dict[str, str]] = {}
    last: dict[str, str] = {}
    for entry in given:
        (kind, text), *maps = entry if isinstance(entry, list) else [entry]
        if kind == "instances":
            if list(last) != ["semantic"]:
                raise ValueError(f"--instances {text}: must follow the --semantic it belongs to")
            last["instances"] = text
            continue
        name, separator, path = text.partition("=")
        if kind == "dataset" or not separator or not name or os.path.exists(text):
            name = Path(text).stem if kind not in ("dataset", "semantic") else text
            path = text
        if name in sources:
            raise ValueError(f"two data sets are called {name!r}: name them, NAME=PATH")
        last = sources[name] = {kind: path}
        if maps:
            last["panoptic_maps"] = maps[0][1]
    if not sources:
        raise ValueError(
            "no data set: give --dataset, --coco-json, --lvis-json, --panoptic, --cityscapes or "
            "--semantic"
        )
    return sources


def check(args: argparse.Namespace) -> None:
    """Refuse before the work what could only fail after it."""
    kinds = {kind for options in args.sources.values() for kind in options}
    for option in ("classes", "category_map"):
        if getattr(args, option) and kinds.isdisjoint(PARTNERS[option]):
            flags = " or ".join("--" + kind.replace("_", "-") for kind in PARTNERS[option])
            raise ValueError(f"--{option.replace('_', '-')} goes with {flags}; none is given")
    if not args.no_figures and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "figures need matplotlib: pip install 'd2_smallobj[report]', or give --no-figures"
        )
    check_writable(args.output)


def measure(name: str, options: dict[str, Any], args: argparse.Namespace) -> SizeStatistics:
    """Read one data set and count its instances."""
    shared = {"classes": args.classes, "category_map": args.category_map}
    fitting = {key: shared[key] for key in shared if not options.keys().isdisjoint(PARTNERS[key])}
    truth = Inputs(
        predictions="",
        **{**options, **fitting},
        image_list=args.list,
        stuff=() if args.no_stuff else args.stuff,
        open_dataset=open_dataset,
    ).open_truth(label_maps=False)
    sizes = measure_instances(truth, source=name, jobs=args.jobs, progress=not args.quiet)
    return size_statistics(name, sizes, truth.class_names, stuff=truth.stuff, bins=args.size_bins)


def open_dataset(name: str, **options: Any) -> Any:
    """Open a registered data set; this alone needs torch."""
    from d2_smallobj.data.ground_truth import open_dataset as open_registered

    return open_registered(name, **options)


def main() -> None:
    """Measure, write the files, print the tables."""
    args = parse_arguments()
    with readable_errors():
        # Processes share the processors; inside one, threads would not be faster.
        cv2.setNumThreads(1)
        sets = [measure(*source, args) for source in args.sources.items()]
        write_counts(args.output / "counts.csv", sets)
        write_balance(args.output / "balance.csv", sets)
        if not args.no_figures:
            draw_class_bars(args.output / "classes.png", sets, log=args.log)
            draw_size_boxes(args.output / "sizes.png", sets, log=args.log)
    if not args.quiet:
        print("\n\n".join([*map(format_counts, sets), format_balance(sets)]))


if __name__ == "__main__":
    main()
