r"""List the registered data sets: what is there, what is missing, what prepares it.

Without names all of them, with names these; a training set with any folder of label maps is named
like in a config (voc_2012_trainaug@FOLDER). $DETECTRON2_DATASETS or --root says where they lie.
The exit status is 1 if a named set cannot be used, or if --check or --account finds a fault.

Examples:
    python -m d2_smallobj.data
    python -m d2_smallobj.data voc_2012_trainaug_irn voc_2012_seg_val --check --jobs 8
    python -m d2_smallobj.data --account instances_val2017.json
    python -m d2_smallobj.data --account lvis_v1_val.json --kind lvis --csv fates.csv
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from d2_smallobj.annotations.classes import choose_categories, read_class_names
from d2_smallobj.annotations.coco import PAINTINGS, InstanceAnnotations
from d2_smallobj.annotations.coco_file import KINDS
from d2_smallobj.annotations.coco_maps import account
from d2_smallobj.data.catalog import ALIASES, canonical_name, register_all, registered
from d2_smallobj.data.presence import Presence, check_files, find_files
from d2_smallobj.data.specs import DatasetSpec
from d2_smallobj.report.dataset_summary import format_accounting, write_accounting
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.options import look_up_option
from d2_smallobj.utils.tables import markdown_table

_SHOWN = 4


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m d2_smallobj.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    parser.add_argument("--root", type=Path, help="folder of all data sets")
    parser.add_argument(
        "--check",
        action="store_true",
        help="also read every label map or annotation, and the size of every image",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    fates = parser.add_argument_group("the annotations of a file instead of data sets")
    fates.add_argument(
        "--account", type=Path, metavar="JSON", help="what becomes of every annotation, by category"
    )
    fates.add_argument("--kind", choices=KINDS, default="coco", help="default: %(default)s")
    fates.add_argument("--painting", choices=PAINTINGS, default="area", help="default: %(default)s")
    fates.add_argument("--classes", help="as for tools/evaluate.py (default: all categories)")
    fates.add_argument("--category-map", metavar="FILE", help="as for tools/evaluate.py")
    fates.add_argument(
        "--void", nargs="+", default=[], metavar="CATEGORY", help="categories that are ignored"
    )
    fates.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    if args.account is not None and (args.names or args.check):
        parser.error("--account looks at a file: give no data sets and no --check with it")
    return args


def show_data_sets(args: argparse.Namespace) -> bool:
    """Print what is there of the data sets; returns whether all that is asked for is well."""
    register_all(args.root)
    names = [canonical_name(name) for name in args.names]
    known = {name: spec for name, spec in registered().items() if name not in ALIASES}
    for name in names:
        look_up_option("data set", name, known)
    chosen = {name: known[name] for name in names or known}
    found = {name: find_files(spec) for name, spec in chosen.items()}
    rows = [
        [name, p.state, f"{p.images:,}" if p.images else "", _missing(p, chosen[name])]
        for name, p in found.items()
    ]
    _say(markdown_table(["data set", "state", "images", "missing"], rows, text_columns=2))
    _say_what_to_do(chosen, found)
    well = not names or all(presence.usable for presence in found.values())
    for name, presence in found.items():
        if args.check and presence.state == "ready":
            faults = check_files(chosen[name], jobs=args.jobs, progress=True)
            well = well and not faults
            shown = itemized("image(s) with faults", faults) if faults else "all files are sound"
            _say(f"{name}: {shown}")
    return well


def _missing(presence: Presence, spec: DatasetSpec) -> str:
    """What is missing of a data set, in few words."""
    shown = [
        os.path.relpath(path, spec.folder) + os.sep * path.endswith(os.sep)
        for path in presence.missing[:_SHOWN]
    ]
    if len(presence.missing) <= _SHOWN:
        return ", ".join(shown)
    return f"{len(presence.missing):,} of {presence.required:,} files, e.g. {shown[0]}"


def _say_what_to_do(chosen: Mapping[str, DatasetSpec], found: Mapping[str, Presence]) -> None:
    """A line for every set that cannot be used: what prepares it, or what is wrong."""
    wanting = [name for name, presence in found.items() if not presence.usable]
    if not wanting:
        return
    width = max(map(len, wanting))
    _say("\nTo prepare them (where the files come from: datasets/README.md):")
    for name in wanting:
        spec = chosen[name]
        command = spec.command or f'see datasets/README.md, section "{spec.section}"'
        _say(f"  {name.ljust(width)}  {found[name].problem or command}")


def account_file(args: argparse.Namespace) -> bool:
    """Print what becomes of the annotations of a file; returns whether all are well-formed."""
    class_names = None if args.classes is None else read_class_names(args.classes)
    category_map = None
    if class_names is not None:
        category_map = choose_categories(args.account, class_names, args.category_map)
    elif args.category_map is not None:
        raise ValueError("--category-map needs --classes: the classes that it maps to")
    annotations = InstanceAnnotations(
        args.account,
        kind=args.kind,
        painting=args.painting,
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


def main() -> None:
    """List data sets, or account for a file's annotations."""
    args = parse_arguments()
    try:
        well = show_data_sets(args) if args.account is None else account_file(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(os.EX_OK if well else 1)


if __name__ == "__main__":
    main()
