"""Run many trainings: the ablation, and mixed supervision with its baselines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2_smallobj.utils.cli import make_parser, parse_with_overrides, readable_errors

with readable_errors():
    from d2_smallobj.engine import build_config
    from d2_smallobj.engine.checkpoint import fetch_weights
    from d2_smallobj.engine.setup import check_datasets
    from d2_smallobj.experiments import mixed_supervision as mixed
    from d2_smallobj.experiments import sweep
    from d2_smallobj.experiments.ablation import KINDS, Ablation, build_variants, write_tables

ABLATION_HELP = """Run the paper's ablation over seeds and pseudo labels of several methods.

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

MIXED_HELP = r"""Compare mixed supervision (few masks, many boxes) with its baselines.

Full supervision; the masks only; boxes taken for masks; boxes with label uncertainty, without and
with bootstrapping; and the latter with size weights, throughout or as the size-balanced loss in
the second half. Run it again after an interruption: complete runs are kept, the others resume.
Writes mixed.csv and mixed.md into --output.

Examples:
    smallobj mixed --config-file demo_mixed.yaml --seeds 0 1 2
    smallobj mixed --config-file demo_mixed.yaml --variants full \
        --vary SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD=1.0 \
        --vary SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD=3.0
"""


def parse_ablation(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(ABLATION_HELP)
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
    fetch_weights(cfg.MODEL.WEIGHTS)
    return ablations


@readable_errors()
def ablation(arguments: Sequence[str] | None = None) -> None:
    """Run all incomplete runs; write the tables of the complete ones."""
    args = parse_ablation(arguments)
    ablations, folder = build_ablations(args), args.output
    sweep.run_and_report(args, ablations, lambda: sweep.write_all_tables(ablations, folder))


def parse_mixed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(MIXED_HELP)
    sweep.add_run_arguments(parser, config_file="demo_mixed.yaml", output="output/mixed")
    parser.add_argument("--variants", nargs="*", choices=mixed.KINDS, default=list(mixed.KINDS))
    text = "one more bootstrapped variant with this value of a config key; can be repeated"
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=VALUE", help=text)
    return parse_with_overrides(parser, arguments)


def build_comparison(args: argparse.Namespace) -> mixed.MixedSupervision:
    """Build the runs; check config, data sets and every variant."""
    cfg = build_config(args.config_file, args.opts)
    fraction = cfg.SMALLOBJ.SUPERVISION.MASK_FRACTION
    if fraction == 1:
        raise ValueError(
            f"{args.config_file}: SMALLOBJ.SUPERVISION.MASK_FRACTION must be below 1 to compare "
            "masks with boxes, got 1"
        )
    varied: dict[str, list[str]] = {}
    for text in args.vary:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--vary {text}: expected KEY=VALUE")
        varied.setdefault(key, []).append(value)
    variants = mixed.build_variants(fraction, cfg.SOLVER.MAX_ITER, args.variants, varied)
    for variant in variants:
        build_config(args.config_file, [*args.opts, *variant.options])
    check_datasets(cfg)
    fetch_weights(cfg.MODEL.WEIGHTS)
    return mixed.MixedSupervision(
        config_file=args.config_file,
        output_dir=args.output,
        variants=variants,
        seeds=args.seeds,
        num_gpus=args.num_gpus,
        options=tuple(args.opts),
    )


@readable_errors()
def mixed_supervision(arguments: Sequence[str] | None = None) -> None:
    """Run all incomplete runs; write the tables of the complete ones."""
    args = parse_mixed(arguments)
    runs = [build_comparison(args)]
    sweep.run_and_report(
        args, runs, lambda: write_tables(runs, args.output, "mixed", mixed.COLUMNS)
    )
