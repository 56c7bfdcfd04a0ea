"""List the registered data sets and check their files.

The list says which files exist, which are missing, and which command makes them; "24 of 10,582"
images are those of a list that is shorter than the published one. Without names it has all sets.
A training set with another folder of label maps is named as in a config
(voc_2012_trainaug@FOLDER), as are a user's own files (coco_json@JSON@IMAGES), whose classes are
listed, too; --check paints their masks. The data sets lie in $DETECTRON2_DATASETS, or in --root.
The exit status is 1 if a named set cannot be used, or if --check or --account finds an error.

Examples:
    smallobj data
    smallobj data voc_2012_trainaug_irn voc_2012_seg_val --check --jobs 8
    smallobj data --account instances_val2017.json
    smallobj data --account lvis_v1_val.json --kind lvis --csv fates.csv
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.annotations.classes import choose_categories, read_class_names
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.coco_file import KINDS
from d2_smallobj.annotations.coco_maps import account
from d2_smallobj.report.dataset_summary import format_accounting, write_accounting
from d2_smallobj.utils.cli import add_shared, make_parser, readable_errors
from d2_smallobj.utils.messages import itemized, look_up_option
from d2_smallobj.utils.tables import markdown_table


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, prog="smallobj data")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    add_shared(parser, "--root", type=Path)
    add_shared(parser, "--check", "--jobs")
    fates = parser.add_argument_group("annotations of a file instead of data sets")
    add = fates.add_argument
    text = "count used and unused annotations by category"
    add("--account", type=Path, metavar="FILE", help=text)
    add("--kind", choices=KINDS, default="coco", metavar="KIND", help="coco or lvis")
    add_shared(fates, "--classes", "--category-map")
    text = "categories that are ignored"
    add("--void", nargs="+", default=[], metavar="CATEGORY", help=text)
    add("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    args = parser.parse_args(arguments)
    if args.account is not None and (args.names or args.check):
        parser.error("--account reads an annotation file: give no data sets and no --check with it")
    if args.account is not None and args.category_map is not None and args.classes is None:
        parser.error("--category-map needs --classes: the classes that it maps to")
    return args


def show_data_sets(args: argparse.Namespace) -> bool:
    """Print the state of the data sets; returns whether no problem was found."""
    # These import torch, which takes seconds: after the command line has been read.
    from d2_smallobj.data.catalog import ALIASES, canonical_name, register_all, registered
    from d2_smallobj.data.file_checks import (
        Findings,
        check_files,
        describe,
        find_files,
        paint_files,
    )
    from d2_smallobj.data.own_specs import is_own

    register_all(args.root)
    names = [canonical_name(name) for name in args.names]
    known = {name: spec for name, spec in registered().items() if name not in ALIASES}
    chosen = {name: known[look_up_option("data set", name, known)] for name in names or known}
    found = {name: find_files(spec) for name, spec in chosen.items()}
    problems: dict[str, list[str]] = {}
    for name, spec in chosen.items():
        if args.check and found[name].state == "on first use" and is_own(name):
            problems[name] = paint_files(spec, args.jobs)
            found[name] = find_files(spec)
    rows = [[name, *files[:3]] for name, files in found.items()]
    _say(markdown_table(["data set", "state", "images", "missing"], rows, text_columns=2))
    unusable = {name: files.what_to_do for name, files in found.items() if files.what_to_do}
    if unusable:
        width = max(map(len, unusable))
        _say("\nTo prepare them (where the files come from: datasets/README.md):")
        for name, text in unusable.items():
            _say(f"  {name.ljust(width)}  {text}")
    good = not (names and unusable)
    for name, files in found.items():
        checked = Findings(problems=problems.get(name, []))
        if args.check and files.state == "ready":
            checked = check_files(chosen[name], args.jobs)
        if checked.problems or (args.check and files.state == "ready"):
            good = good and not checked.problems
            what = itemized("bad image(s)", checked.problems)
            _say(f"{name}: {what if checked.problems else 'all files are good'}")
        if is_own(name) and files.state in ("ready", "on first use"):
            _say(describe(chosen[name], checked))
    return good


def account_file(args: argparse.Namespace) -> bool:
    """Print how many annotations of a file are used; returns whether all are well-formed."""
    class_names = None if args.classes is None else read_class_names(args.classes)
    category_map = None
    if class_names is not None:
        category_map = choose_categories(args.account, class_names, args.category_map)
    annotations = InstanceAnnotations(
        args.account,
        kind=args.kind,
        category_map=category_map,
        class_names=class_names,
        void_categories=args.void,
        label_maps=False,
    )
    result = account(annotations, jobs=args.jobs, progress=True)
    _say(format_accounting(result))
    if args.csv is not None:
        write_accounting(args.csv, result)
    return not result.malformed


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_arguments(arguments)
    with readable_errors():
        good = show_data_sets(args) if args.account is None else account_file(args)
        sys.exit(os.EX_OK if good else 1)


if __name__ == "__main__":
    # Worker processes (--jobs) find a function of this module under the module's own name only.
    from d2_smallobj.data.__main__ import main as command

    command()
