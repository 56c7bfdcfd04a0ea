"""Run the paper's ablation over seeds, and over the pseudo labels of several methods.

Every variant is kept apart: CE, the size-weighted loss from the start, CE then size-weighted
(no penalty), CE then size-balanced with either Fisher estimate. Task A is trained once a seed.
Run it again after an interruption: complete runs are kept, the others resume. As many runs at
once as there are GPUs (--num-gpus of them each), or as --jobs says.

Writes into --output: ablation.csv and ablation.md (all figures), paper_tables.md with
table1.csv, table3.csv, table4.csv, fig8.csv and fig8.png (the layout of the paper).

Examples:
    smallobj ablation --config-file demo_sbce.yaml --seeds 0 1 2 --jobs 2
    smallobj ablation --config-file pascalb_sbce.yaml --methods irn amn rca gt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2_smallobj.utils.cli import make_parser, parse_with_overrides, readable_errors

with readable_errors():
    from d2_smallobj.engine import build_config
    from d2_smallobj.engine.setup import check_datasets
    from d2_smallobj.experiments import sweep
    from d2_smallobj.experiments.ablation import KINDS, Ablation, build_variants


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    sweep.add_run_arguments(parser, config_file="demo_sbce.yaml", output="output/ablation")
    text = "whose labels to train on; a name alone takes the place of the last part of the "
    text += "config's training set; default: the config's training set"
    add = parser.add_argument
    add("--methods", nargs="+", metavar="NAME[=DATA_SET]", help=text)
    add("--variants", nargs="+", choices=KINDS, default=list(KINDS))
    text = "one variant each; default: EWC.LAMBDA"
    add("--lambda-online", type=float, nargs="+", help=text)
    add("--lambda-empirical", type=float, nargs="+", help="one variant each")
    return parse_with_overrides(parser, arguments)


def build_ablations(args: argparse.Namespace) -> list[Ablation]:
    """Build one ablation for each method; check their configs and data sets."""
    cfg = build_config(args.config_file, args.opts)
    if not 0 < cfg.SMALLOBJ.TASK_A.ITERS < cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"{args.config_file}: the ablation needs two tasks; SMALLOBJ.TASK_A.ITERS must be "
            f"between 1 and {cfg.SOLVER.MAX_ITER - 1}, got {cfg.SMALLOBJ.TASK_A.ITERS}"
        )
    default = [cfg.SMALLOBJ.EWC.LAMBDA]
    ablation = Ablation(
        config_file=args.config_file,
        output_dir=args.output,
        variants=build_variants(
            args.lambda_online or default, args.lambda_empirical or default, args.variants
        ),
        seeds=args.seeds,
        num_gpus=args.num_gpus,
        options=tuple(args.opts),
    )
    ablations = sweep.split_by_method(ablation, args.methods) if args.methods else [ablation]
    for each in ablations:
        check_datasets(build_config(each.config_file, each.options))
    return ablations


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run all incomplete runs; write the tables of the complete ones."""
    args = parse_arguments(arguments)
    ablations, folder = build_ablations(args), args.output
    sweep.run_and_report(args, ablations, lambda: sweep.write_all_tables(ablations, folder))
