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
    smallobj stats --output output/stats --dataset voc_2012_seg_val \
        --dataset pascal_b_val
    smallobj stats --output output/stats --coco-json instances_val2017.json
    smallobj stats --output output/stats --jobs 4 \
        --semantic VOC=VOC2012/SegmentationClass --instances VOC2012/SegmentationObject \
        --coco-json PASCAL-B=pascal_b/instances.json
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.utils.cli import SHARED, add_shared, checked, make_parser, readable_errors
from d2_smallobj.utils.installation import install_command

with readable_errors():
    from d2_smallobj.commands.evaluate import open_dataset
    from d2_smallobj.metrics import parse_size_bins
    from d2_smallobj.report import dataset_summary
    from d2_smallobj.scoring import Inputs, check_writable
    from d2_smallobj.scoring.inputs import PARTNERS
    from d2_smallobj.scoring.instance_sizes import measure_instances
    from d2_smallobj.statistics.balance import SizeStatistics, size_statistics
    from d2_smallobj.utils.messages import UsageError
    from d2_smallobj.utils.opencv import cv2

_SOURCES = (
    "--dataset",
    "--coco-json",
    "--lvis-json",
    "--panoptic",
    "--cityscapes",
    "--semantic",
    "--instances",
)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    data = parser.add_argument_group(
        "data sets", "one or more, in the order of tables and figures; [NAME=] names one there"
    )
    for option in _SOURCES:
        kind = option[2:].replace("-", "_")
        metavar = SHARED[option]["metavar"]
        if option not in ("--dataset", "--instances"):
            named = isinstance(metavar, tuple)
            metavar = ("[NAME=]JSON", "DIR") if named else f"[NAME=]{metavar}"
        # A value keeps its option, since the order of all options counts.
        keep = functools.partial(_keep_kind, kind)
        changes = {"dest": "sources", "action": "append", "default": [], "type": keep}
        add_shared(data, option, metavar=metavar, **changes)
    more = parser.add_argument_group("for annotation files and folders, as for `smallobj evaluate`")
    add_shared(more, "--classes", "--category-map")
    stuff = more.add_mutually_exclusive_group()
    add_shared(stuff, "--stuff", "--no-stuff")
    add_shared(more, "--list")
    more = parser.add_argument_group("how to count, and output")
    add_shared(more, "--size-bins", type=checked(parse_size_bins))
    add_shared(more, "--jobs", "--output")
    more.add_argument("--log", action="store_true", help="logarithmic axes")
    more.add_argument("--no-figures", action="store_true", help="tables only, no matplotlib")
    add_shared(more, "--quiet")
    return parser.parse_args(arguments)


def read_sources(given: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Turn (option, value) pairs into arguments of Inputs by data set, in their order."""
    sources: dict[str, dict[str, str]] = {}
    last: dict[str, str] = {}
    for entry in given:
        (kind, text), *maps = entry if isinstance(entry, list) else [entry]
        if kind == "instances":
            if list(last) != ["semantic"]:
                raise UsageError(f"--instances {text}: must follow the --semantic it belongs to")
            last["instances"] = text
            continue
        name, separator, path = text.partition("=")
        if kind == "dataset" or not separator or not name or os.path.exists(text):
            name = Path(text).stem if kind not in ("dataset", "semantic") else text
            path = text
        if name in sources:
            raise UsageError(f"two data sets are called {name!r}: name them, NAME=PATH")
        last = sources[name] = {kind: path}
        if maps:
            last["panoptic_maps"] = maps[0][1]
    if not sources:
        options = "--dataset, --coco-json, --lvis-json, --panoptic, --cityscapes or --semantic"
        raise UsageError(f"no data set: give {options}")
    return sources


def check(args: argparse.Namespace) -> None:
    """Refuse before the work what could only fail after it."""
    kinds = {kind for options in args.sources.values() for kind in options}
    for option in ("classes", "category_map"):
        if getattr(args, option) and kinds.isdisjoint(PARTNERS[option]):
            flags = " or ".join("--" + kind.replace("_", "-") for kind in PARTNERS[option])
            raise UsageError(f"--{option.replace('_', '-')} goes with {flags}; none is given")
    if not args.no_figures and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            f"figures need matplotlib: {install_command('plots')}, or give --no-figures"
        )
    check_writable(args.output)


def _keep_kind(kind: str, value: str) -> tuple[str, str]:
    return kind, value


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the files, print the tables."""
    args = parse_arguments(arguments)
    with readable_errors():
        args.sources = read_sources(args.sources)
        check(args)
        # Processes share the processors; inside one, threads would not be faster.
        cv2.setNumThreads(1)
        sets = [measure(name, source, args) for name, source in args.sources.items()]
        dataset_summary.write_counts(args.output / "counts.csv", sets)
        dataset_summary.write_balance(args.output / "balance.csv", sets)
        if not args.no_figures:
            dataset_summary.draw_class_bars(args.output / "classes.png", sets, log=args.log)
            dataset_summary.draw_size_boxes(args.output / "sizes.png", sets, log=args.log)
    if not args.quiet:
        counts = map(dataset_summary.format_counts, sets)
        print("\n\n".join([*counts, dataset_summary.format_balance(sets)]))
