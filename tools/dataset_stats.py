#!/usr/bin/env python
r"""Instances of data sets by class and size, and how balanced they are.

Works on registered data sets (needs torch, for the host), COCO, LVIS or panoptic annotation
files, Cityscapes, and folders of label maps; several are compared with each other. An instance's
size is what is visible of it when larger annotations are painted first. Writes to --output:
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
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    from d2_smallobj.metrics import SizeBins, parse_size_bins
    from d2_smallobj.report.dataset_summary import (
        draw_class_bars,
        draw_size_boxes,
        format_balance,
        format_counts,
        write_balance,
        write_counts,
    )
    from d2_smallobj.scoring import check_writable
    from d2_smallobj.scoring.instance_sizes import measure_instances, open_ground_truth
    from d2_smallobj.statistics.balance import SizeStatistics, size_statistics
    from d2_smallobj.utils.opencv import cv2
except (ValueError, ImportError) as error:
    # D2_SMALLOBJ_HOST is wrong or cannot be had, or a package is missing.
    sys.exit(f"error: {error}")


@dataclasses.dataclass
class Source:
    """A data set as the command line names it.

    Attributes:
        kind: which option named it.
        path: folder, file, or registered name.
        name: what tables and figures call it.
        instances: folder of instance maps, with ``kind="semantic"``.
        panoptic_maps: folder of the PNGs, with ``kind="panoptic"``.
    """

    kind: str
    path: str
    name: str
    instances: str | None = None
    panoptic_maps: str | None = None


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group(
        "data sets", "one or more, in the order of tables and figures; [NAME=] names one there"
    )
    for option, what, described in (
        ("--dataset", "NAME", "registered data set"),
        ("--coco-json", "[NAME=]FILE", "COCO annotations"),
        ("--lvis-json", "[NAME=]FILE", "LVIS annotations"),
        ("--panoptic", ("[NAME=]JSON", "DIR"), "COCO panoptic file and the folder of its PNGs"),
        ("--cityscapes", "[NAME=]DIR", "gtFine, or a split of it"),
        ("--semantic", "[NAME=]DIR", "folder of semantic label maps"),
        ("--instances", "DIR", "instance maps of the --semantic before it; without, its "
         "connected components are the instances"),
    ):  # fmt: skip
        kind = option[2:].replace("-", "_")
        data.add_argument(
            option, dest="sources", action="append", type=_given(kind), metavar=what,
            help=described, nargs=2 if isinstance(what, tuple) else None,
        )  # fmt: skip
    more = parser.add_argument_group("for annotation files and folders")
    more.add_argument(
        "--classes",
        metavar="voc|coco|N|FILE",
        help="names; default: all of an annotation file, voc for folders",
    )
    stuff = more.add_mutually_exclusive_group()
    stuff.add_argument(
        "--stuff", action="append", metavar="NAME", help="as for tools/evaluate.py, also repeated"
    )
    stuff.add_argument("--no-stuff", action="store_true", help="all classes are objects")
    more.add_argument("--category-map", metavar="FILE", help="as for tools/evaluate.py")
    more.add_argument("--list", metavar="FILE", help="images to use; default: all")
    parser.add_argument(
        "--size-bins",
        default="coco",
        metavar="BINS",
        help="coco (default), S:1024,M:9216,L:inf, or relative:S:0.01,M:0.1,L:1",
    )
    parser.add_argument("--log", action="store_true", help="logarithmic axes")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, help="processes for folders (%(default)s)")
    parser.add_argument("--no-figures", action="store_true", help="tables only, no matplotlib")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no tables")
    return parser.parse_args(arguments)


def _given(kind: str) -> Callable[[str], tuple[str, str]]:
    """An argparse type that keeps which option a value belongs to."""
    return lambda text: (kind, text)


def read_sources(pairs: Sequence[tuple[str, str] | list[tuple[str, str]]] | None) -> list[Source]:
    """Make data sets of the options, in their order.

    Raises:
        ValueError: there is none, --instances has no --semantic, or two share a name.
    """
    sources: list[Source] = []
    for pair in pairs or ():
        if isinstance(pair, list):
            (kind, text), (_, folder) = pair
            sources.append(dataclasses.replace(_source(kind, text), panoptic_maps=folder))
            continue
        kind, text = pair
        if kind != "instances":
            sources.append(_source(kind, text))
        elif not sources or sources[-1].kind != "semantic" or sources[-1].instances:
            raise ValueError(f"--instances {text}: must follow the --semantic that it belongs to")
        else:
            sources[-1].instances = text
    if not sources:
        raise ValueError(
            "which data set? Give --dataset, --coco-json, --lvis-json, --panoptic, --cityscapes or "
            "--semantic"
        )
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two data sets are called {twice[0]!r}: name them, NAME=PATH")
    return sources


def _source(kind: str, text: str) -> Source:
    """One data set; a name may precede the path."""
    if kind == "dataset":
        return Source(kind, text, text)
    name, separator, path = text.partition("=")
    if not separator or not name or os.path.exists(text):
        return Source(kind, text, Path(text).stem if kind != "semantic" else text)
    return Source(kind, path, name)


def measure(source: Source, args: argparse.Namespace, bins: SizeBins) -> SizeStatistics:
    """Read one data set and count."""
    options = {
        "instances": source.instances,
        "panoptic_maps": source.panoptic_maps,
        "image_list": args.list,
        "stuff": () if args.no_stuff else args.stuff,
    }
    if source.kind in ("coco_json", "lvis_json", "semantic"):
        options["classes"] = args.classes
    if source.kind in ("coco_json", "lvis_json"):
        options["category_map"] = args.category_map
    truth = open_ground_truth(source.kind, source.path, **options)
    sizes = measure_instances(truth, source=source.name, jobs=args.jobs, progress=not args.quiet)
    return size_statistics(source.name, sizes, truth.class_names, stuff=truth.stuff, bins=bins)


def check(args: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Refuse before the work what could only fail after it.

    Raises:
        ValueError: an option has nothing that it is about, or ``--jobs`` is below 1.
        ImportError: figures are wanted and matplotlib is missing.
        OSError: the folder cannot be written to.
    """
    kinds = {source.kind for source in sources}
    for option, partners in {
        "classes": {"coco_json", "lvis_json", "semantic"},
        "category_map": {"coco_json", "lvis_json"},
    }.items():
        if getattr(args, option) is not None and not kinds & partners:
            flags = " or ".join(sorted("--" + kind.replace("_", "-") for kind in partners))
            raise ValueError(f"--{option.replace('_', '-')} goes with {flags}; none is given")
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    if not args.no_figures and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "figures need matplotlib: pip install 'd2_smallobj[report]', or give --no-figures"
        )
    check_writable(args.output)


def main() -> None:
    """Measure, write the files, print the tables."""
    args = parse_arguments()
    try:
        sources = read_sources(args.sources)
        bins = parse_size_bins(args.size_bins)
        check(args, sources)
        # Processes share the processors; inside one, threads would not be faster.
        cv2.setNumThreads(1)
        sets = [measure(source, args, bins) for source in sources]
        write_counts(args.output / "counts.csv", sets)
        write_balance(args.output / "balance.csv", sets)
        if not args.no_figures:
            draw_class_bars(args.output / "classes.png", sets, log=args.log)
            draw_size_boxes(args.output / "sizes.png", sets, log=args.log)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if not args.quiet:
        print("\n\n".join([*map(format_counts, sets), format_balance(sets)]))


if __name__ == "__main__":
    main()
