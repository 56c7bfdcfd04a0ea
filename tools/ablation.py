#!/usr/bin/env python
"""Run the paper's ablation (Table 4) over several seeds and write it as CSV and Markdown.

Every variant is kept apart: CE, the size-weighted loss from the start, CE then size-weighted
(no penalty), CE then size-balanced with either Fisher estimate. Task A is trained once a seed.
Run it again after an interruption: complete runs are kept, the others resume.

Example:
    python tools/ablation.py --config-file configs/demo_sbce.yaml --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from d2_smallobj.config import EWC_STEPS
    from d2_smallobj.engine import build_config
    from d2_smallobj.engine.ablation import KINDS, Ablation, build_variants
    from d2_smallobj.engine.setup import check_datasets
except (ValueError, ImportError) as error:
    # D2_SMALLOBJ_HOST is wrong or cannot be had, or a package is missing.
    sys.exit(f"error: {error}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="configs/demo_sbce.yaml", metavar="FILE")
    parser.add_argument("--output-dir", type=Path, default=Path("output/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--lambda-online", type=float, nargs="+", help="one variant each; default: EWC.LAMBDA"
    )
    parser.add_argument("--lambda-empirical", type=float, nargs="+", help="one variant each")
    parser.add_argument("--ewc-step", choices=EWC_STEPS, help="default: SMALLOBJ.EWC.STEP")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of one run")
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at once")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides, last"
    )
    return parser.parse_args()


def main() -> None:
    """Check the config, run what is missing, write the tables."""
    args = parse_arguments()
    try:
        cfg = build_config(args.config_file, args.opts)
        if not 0 < cfg.SMALLOBJ.TASK_A.ITERS < cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"{args.config_file}: the ablation needs two tasks; SMALLOBJ.TASK_A.ITERS must be "
                f"between 1 and {cfg.SOLVER.MAX_ITER - 1}, got {cfg.SMALLOBJ.TASK_A.ITERS}"
            )
        if args.jobs < 1:
            raise ValueError(f"--jobs must be >= 1, got {args.jobs}")
        check_datasets(cfg)
        node = cfg.SMALLOBJ.EWC
        variants = build_variants(
            args.lambda_online or [node.LAMBDA],
            args.lambda_empirical or [node.LAMBDA],
            args.ewc_step or node.STEP,
            args.variants,
        )
        ablation = Ablation(
            train_net=Path(__file__).with_name("train_net.py"),
            config_file=args.config_file,
            output_dir=args.output_dir,
            variants=variants,
            seeds=args.seeds,
            num_gpus=args.num_gpus,
            options=tuple(args.opts),
        )
        ablation.run(args.jobs)
        print(ablation.write_tables())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
