"""Run many trainings: the ablation, and mixed supervision with its baselines."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2_smallobj.experiments import ABLATION_VARIANTS, MIXED_VARIANTS
from d2_smallobj.utils.cli import (
    add_shared,
    checked,
    finite,
    make_parser,
    parse_with_overrides,
    positive_int,
    readable_errors,
)

if TYPE_CHECKING:
    from d2_smallobj.experiments.ablation import Ablation
    from d2_smallobj.experiments.mixed_supervision import MixedSupervision

# What trains imports torch, which takes seconds: after the command line has been read.

ABLATION_HELP = """Run the paper's ablation over seeds and pseudo labels of several methods.

Every variant is kept apart: ce; sw, the size-weighted loss from the start; ce_sw, CE then
size-weighted (no penalty); ce_sb_online and ce_sb_empirical, CE then size-balanced with either
Fisher estimate. Task A is trained once a seed. --methods names whose labels to train on: NAME
alone takes the place of the last part of the config's training set. Run it again after an
interruption: complete runs are kept, the others resume. As many runs at once as there are GPUs
(--num-gpus of them each), or as --jobs says.

Writes into --output: ablation.csv and ablation.md (all figures), gains.csv and gains.md (gains
over ce, with intervals over images and seeds), paper_tables.md with table1.csv, table3.csv,
table4.csv, fig8.csv and fig8.png (the layout of the paper).

Examples:
    smallobj ablation --config-file demo_sbce.yaml --seeds 0 1 2 --jobs 2
    smallobj ablation --config-file pascalb_sbce.yaml --methods irn amn rca gt
"""

MIXED_HELP = r"""Compare mixed supervision (few masks, many boxes) with its baselines.

The variants: full supervision; masks, only those; boxes, taken for masks; uncertainty, boxes with
label uncertainty; bootstrap, the same with bootstrapping; and that with size weights throughout,
bootstrap_sw, or with the size-balanced loss in the second half, bootstrap_sb. Run it again after
an interruption: complete runs are kept, the others resume.
Writes into --output: mixed.csv and mixed.md (all figures), gains.csv and gains.md (gains over
bootstrap, where it is among the variants, with intervals over images and seeds).

Examples:
    smallobj mixed --config-file demo_mixed.yaml --seeds 0 1 2
    smallobj mixed --config-file demo_mixed.yaml --variants full \
        --vary SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD=1.0 \
        --vary SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD=3.0
"""


def parse_ablation(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(ABLATION_HELP)
    _add_runs(parser, "demo_sbce.yaml", "output/ablation", ABLATION_VARIANTS)
    add = parser.add_argument
    text = "labels to train on (default: the config's)"
    add("--methods", nargs="+", metavar="NAME[=DATA_SET]", help=text)
    text = "of the penalty, a variant each (default: EWC.LAMBDA)"
    for flag in ("--lambda-online", "--lambda-empirical"):
        add(flag, type=finite, nargs="+", metavar="NUMBER", help=text)
    return parse_with_overrides(parser, arguments)


def _add_runs(
    parser: argparse.ArgumentParser, config: str, output: str, variants: Sequence[str]
) -> None:
    """Add the options of both commands, with their defaults."""
    add_shared(parser, "--config-file", default=config)
    add_shared(parser, "--output", required=False, default=Path(output))
    add_shared(parser, "--variants", nargs="+", choices=variants, default=list(variants))
    add_shared(parser, "--seeds", "--num-gpus")
    text = "processes at once; the result is the same (default: by the GPUs)"
    add_shared(parser, "--jobs", default=None, help=text)
    text = "end after this time; called again, it goes on (default: no limit)"
    parser.add_argument("--seconds", type=positive_int, default=math.inf, metavar="N", help=text)


def build_ablations(args: argparse.Namespace) -> list[Ablation]:
    """Build one ablation for each method; check their configs and data sets."""
    from d2_smallobj.engine.checkpoint import fetch_weights
    from d2_smallobj.engine.setup import build_config, check_datasets
    from d2_smallobj.experiments import sweep
    from d2_smallobj.experiments.ablation import Ablation, build_variants

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
        deadline=time.monotonic() + args.seconds,
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
    from d2_smallobj.experiments import sweep

    ablations, folder = build_ablations(args), args.output
    sweep.run_and_report(args, ablations, lambda: sweep.write_all_tables(ablations, folder))


def parse_mixed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(MIXED_HELP)
    _add_runs(parser, "demo_mixed.yaml", "output/mixed", MIXED_VARIANTS)
    text = "one more bootstrap with this value of a key; may be repeated"
    kind = checked(_key_and_value)
    add = parser.add_argument
    add("--vary", action="append", default=[], type=kind, metavar="KEY=VALUE", help=text)
    return parse_with_overrides(parser, arguments)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def build_comparison(args: argparse.Namespace) -> MixedSupervision:
    """Build the runs; check config, data sets and every variant."""
    from d2_smallobj.engine.checkpoint import fetch_weights
    from d2_smallobj.engine.setup import build_config, check_datasets
    from d2_smallobj.experiments import mixed_supervision as mixed

    cfg = build_config(args.config_file, args.opts)
    fraction = cfg.SMALLOBJ.SUPERVISION.MASK_FRACTION
    if fraction == 1:
        raise ValueError(
            f"{args.config_file}: SMALLOBJ.SUPERVISION.MASK_FRACTION must be below 1 to compare "
            "masks with boxes, got 1"
        )
    varied: dict[str, list[str]] = {}
    for key, value in args.vary:
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
        deadline=time.monotonic() + args.seconds,
    )


@readable_errors()
def mixed_supervision(arguments: Sequence[str] | None = None) -> None:
    """Run all incomplete runs; write the tables of the complete ones."""
    args = parse_mixed(arguments)
    from d2_smallobj.experiments import mixed_supervision as mixed
    from d2_smallobj.experiments import sweep

    runs = [build_comparison(args)]
    sweep.run_and_report(args, runs, lambda: mixed.write_all_tables(runs, args.output))
