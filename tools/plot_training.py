#!/usr/bin/env python
r"""Draw the curves of trainings into one PNG: loss, EWC penalty, learning rate, mIoU, IA-mIoU.

Reads metrics.json and results.json of every run's folder, of runs that are still going, were
killed or resumed too. Needs neither torch nor detectron2.

Example:
    python tools/plot_training.py output/demo_ce SBCE=output/demo_sbce --output output/curves.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from d2_smallobj.report.training_curves import draw_training_curves
from d2_smallobj.report.training_runs import read_runs


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]FOLDER", help="OUTPUT_DIR of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    return parser.parse_args()


def main() -> None:
    """Read, draw, say what was left out."""
    args = parse_arguments()
    try:
        runs = read_runs(args.runs)
        draw_training_curves(args.output, runs)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    for run in runs:
        if run.broken_lines:
            print(f"{run.name}: {run.broken_lines} torn line(s) of metrics.json left out")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
