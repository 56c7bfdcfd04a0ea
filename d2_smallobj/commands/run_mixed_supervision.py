r"""Compare mixed supervision (few masks, many boxes) with its baselines over several seeds.

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

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2_smallobj.utils.cli import make_parser, parse_with_overrides, readable_errors

with readable_errors():
    from d2_smallobj.engine import build_config
    from d2_smallobj.engine.setup import check_datasets
    from d2_smallobj.experiments import mixed_supervision as mixed
    from d2_smallobj.experiments.ablation import write_tables
    from d2_smallobj.experiments.sweep import add_run_arguments, run_and_report


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add_run_arguments(parser, config_file="demo_mixed.yaml", output="output/mixed")
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
    return mixed.MixedSupervision(
        config_file=args.config_file,
        output_dir=args.output,
        variants=variants,
        seeds=args.seeds,
        num_gpus=args.num_gpus,
        options=tuple(args.opts),
    )


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run all incomplete runs; write the tables of the complete ones."""
    args = parse_arguments(arguments)
    runs = [build_comparison(args)]
    run_and_report(args, runs, lambda: write_tables(runs, args.output, "mixed", mixed.COLUMNS))
