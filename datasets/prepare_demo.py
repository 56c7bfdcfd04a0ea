#!/usr/bin/env python
"""Make the demo data set (synthetic scenes; see datasets/README.md)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from d2_smallobj.demo.dataset import DemoOptions, make_demo


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the scenes; returns the exit status."""
    defaults = DemoOptions()
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "smallobj_demo"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=default_root, help="folder to make")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of all scenes")
    parser.add_argument(
        "--num-train", type=int, default=defaults.num_train, help="number of training scenes"
    )
    parser.add_argument(
        "--num-val", type=int, default=defaults.num_val, help="number of validation scenes"
    )
    parser.add_argument(
        "--size", type=int, default=defaults.size, help="side of the scenes in pixels"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a demo folder made with other options"
    )
    args = parser.parse_args(arguments)
    try:
        make_demo(
            args.root,
            seed=args.seed,
            num_train=args.num_train,
            num_val=args.num_val,
            size=args.size,
            force=args.force,
        )
    except (ValueError, OSError) as error:
        print(f"prepare_demo: {error}", file=sys.stderr)
        return 2
    print(f"{args.num_train} + {args.num_val} scenes at {args.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
