"""Draw the demo data set (synthetic scenes; see datasets/README.md).

Example:
    smallobj prepare demo --num-train 1000
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.utils.cli import make_parser, readable_errors

with readable_errors():
    from d2_smallobj.demo.dataset import DemoOptions, make_demo


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the scenes."""
    defaults = DemoOptions()
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "smallobj_demo"
    parser = make_parser(__doc__)
    text = "folder to make (default: %(default)s)"
    parser.add_argument("--root", type=Path, default=root, help=text)
    for name, help_text in (
        ("seed", "seed of all scenes"),
        ("num_train", "number of training scenes"),
        ("num_val", "number of validation scenes"),
        ("size", "side of the scenes in pixels"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option,
            type=int,
            default=getattr(defaults, name),
            help=f"{help_text} (default: %(default)s)",
        )
    parser.add_argument(
        "--force", action="store_true", help="replace a demo folder made with other options"
    )
    args = parser.parse_args(arguments)
    make_demo(**vars(args))
    print(f"{args.num_train} + {args.num_val} scenes at {args.root}")
