"""What the tools that start many trainings have in common: their options, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from d2_smallobj.engine.setup import build_config
from d2_smallobj.experiments.ablation import Ablation, run_all
from d2_smallobj.experiments.scheduling import visible_devices


def add_run_arguments(
    parser: argparse.ArgumentParser, *, config_file: str, output_dir: str
) -> None:
    """Add what to train, with which seeds, where to, and how much at once.

    Args:
        parser: of the tool.
        config_file: default of ``--config-file``.
        output_dir: default of ``--output-dir``.
    """
    parser.add_argument("--config-file", default=config_file, metavar="FILE")
    parser.add_argument("--output-dir", type=Path, default=Path(output_dir))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of one run")
    parser.add_argument(
        "--jobs", type=int, help="runs at once; default: as the GPUs allow, 1 without one"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides, last"
    )


def run_and_report(
    args: argparse.Namespace,
    build: Callable[[argparse.Namespace], Sequence[Ablation]],
    write: Callable[[Sequence[Ablation]], str],
) -> None:
    """Run what is missing; write the tables of what is complete, also when a run failed.

    Args:
        args: with the arguments of :func:`add_run_arguments`.
        build: makes the runs, all checked.
        write: writes the tables and returns what is printed.

    Raises:
        SystemExit: with one line for the user, where something is wrong or a run failed.
    """
    failure = None
    try:
        ablations = build(args)
        cpu = build_config(args.config_file, args.opts).MODEL.DEVICE == "cpu"
        try:
            run_all(ablations, args.jobs, [] if cpu else visible_devices())
        except RuntimeError as error:
            failure = str(error)
        sys.stdout.write(write(ablations) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if failure:
        sys.exit(f"error: {failure}")
