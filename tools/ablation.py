#!/usr/bin/env python
"""Run the paper's ablation over seeds, and over the pseudo labels of several methods.

Every variant is kept apart: CE, the size-weighted loss from the start, CE then size-weighted
(no penalty), CE then size-balanced with either Fisher estimate. Task A is trained once a seed.
Run it again after an interruption: complete runs are kept, the others resume. As many runs at
once as there are GPUs (--num-gpus of them each), or as --jobs says.

Writes into --output-dir: ablation.csv and ablation.md (all figures), paper_tables.md with
table1.csv, table3.csv, table4.csv, fig8.csv and fig8.png (the layout of the paper).

Examples:
    python tools/ablation.py --config-file configs/demo_sbce.yaml --seeds 0 1 2 --jobs 2
    python tools/ablation.py --config-file configs/pascalb_sbce.yaml --methods irn amn rca gt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from d2_smallobj.utils.cli import readable_errors

with readable_errors():
    from d2_smallobj.engine import build_config
    from d2_smallobj.engine.setup import check_datasets
    from d2_smallobj.experiments.ablation import KINDS, Ablation, build_variants
    from d2_smallobj.experiments.sweep import (
        add_run_arguments,
        run_and_report,
        split_by_method,
        write_all_tables,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser, config_file="configs/demo_sbce.yaml", output_dir="output/ablation")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME[=DATA_SET]",
        help="whose labels to train on; a name alone takes the place of the last part of the "
        "config's training set; default: the config's training set",
    )
    parser.add_argument("--variants", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--lambda-online", type=float, nargs="+", help="one variant each; default: EWC.LAMBDA"
    )
    parser.add_argument("--lambda-empirical", type=float, nargs="+", help="one variant each")
    return parser.parse_args()


def build_ablations(args: argparse.Namespace) -> list[Ablation]:
    """Build one ablation for each method; check their configs and data sets."""
    cfg = build_config(args.config_file, args.opts)
    if not 0 < cfg.SMALLOBJ.TASK_A.ITERS < cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"{args.config_file}: the ablation needs two tasks; SMALLOBJ.TASK_A.ITERS must be "
            f"between 1 and {cfg.SOLVER.MAX_ITER - 1}, got {cfg.SMALLOBJ.TASK_A.ITERS}"
        )
    ablation = Ablation(
        train_net=Path(__file__).with_name("train_net.py"),
        config_file=args.config_file,
        output_dir=args.output_dir,
        variants=build_variants(
            args.lambda_online or [cfg.SMALLOBJ.EWC.LAMBDA],
            args.lambda_empirical or [cfg.SMALLOBJ.EWC.LAMBDA],
            args.variants,
        ),
        seeds=args.seeds,
        num_gpus=args.num_gpus,
        options=tuple(args.opts),
    )
    ablations = split_by_method(ablation, args.methods) if args.methods else [ablation]
    for each in ablations:
        check_datasets(build_config(each.config_file, each.options))
    return ablations


def main() -> None:
    """Run all incomplete runs; write the tables of the complete ones."""
    args = parse_arguments()
    ablations = build_ablations(args)
    run_and_report(args, ablations, lambda: write_all_tables(ablations, args.output_dir))


if __name__ == "__main__":
    with readable_errors():
        main()
