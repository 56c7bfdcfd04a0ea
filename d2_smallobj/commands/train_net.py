"""Train a network, and predict with it."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from collections.abc import Sequence

from d2_smallobj.utils.cli import (
    add_shared,
    make_parser,
    natural_int,
    parse_with_overrides,
    positive_int,
    readable_errors,
)
from d2_smallobj.utils.messages import itemized

# What trains imports torch, which takes seconds: after the command line has been read.

TRAIN_HELP = r"""Train or evaluate, with detectron2's arguments.

Processes that torchrun or SLURM's srun have started are joined; otherwise --num-gpus,
--num-machines, --machine-rank and --dist-url say which to start.

Examples:
    smallobj train --config-file demo_sbce.yaml
    smallobj train --config-file pascalb_sbce.yaml --num-gpus 2
    smallobj train --config-file voc_sbce.yaml --eval-only \
        MODEL.WEIGHTS output/voc_sbce/model_final.pth
    torchrun --nproc_per_node 8 tools/train_net.py --config-file coco_sbce.yaml
    srun --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit=1 \
        smallobj train --config-file coco_sbce.yaml
"""

PREDICT_HELP = r"""Write predicted label maps as PNGs with the VOC palette, named by image.

Without --input: of all images of the config's first test set, as `smallobj evaluate --predictions`
and `smallobj sensitivity` read them. With --input: of any image files and folders.
--overlay and --uncertainty write into folders of these names below --output. Scales, flips and the
CRF are set by the keys SMALLOBJ.TEST; --crf switches the CRF on.

Examples:
    smallobj predict --config-file demo_sbce.yaml --output output/predictions \
        MODEL.WEIGHTS output/demo_sbce/model_final.pth
    smallobj predict --config-file voc_sbce.yaml --input photo.jpg holidays \
        --output output/holidays --overlay --crf MODEL.WEIGHTS output/voc_sbce/model_final.pth \
        SMALLOBJ.TEST.SCALES "[0.75, 1, 1.25]" SMALLOBJ.TEST.FLIP True
"""


def check(args: argparse.Namespace, processes: int) -> None:
    """Check config and files before any process starts, so that an error is one line."""
    from d2_smallobj.engine import TwoTaskTrainer
    from d2_smallobj.engine.checkpoint import LAST, fetch_weights
    from d2_smallobj.engine.distributed import check_batch_size
    from d2_smallobj.engine.setup import (
        build_config,
        check_architecture,
        check_datasets,
        check_unused,
        make_writable,
    )

    cfg = build_config(args.config_file, args.opts)
    check_architecture(cfg)
    if not args.eval_only:
        check_batch_size(TwoTaskTrainer.auto_scale_workers(cfg, processes), processes)
        if not args.resume:
            check_unused(cfg.OUTPUT_DIR)
    elif not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError(
            "--eval-only has no weights to evaluate: give MODEL.WEIGHTS FILE, or --resume for "
            f"the last checkpoint in {cfg.OUTPUT_DIR}"
        )
    check_datasets(cfg, args.eval_only)
    if not (args.resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, LAST))):
        fetch_weights(cfg.MODEL.WEIGHTS)
    make_writable(cfg.OUTPUT_DIR)


def train(args: argparse.Namespace) -> OrderedDict | None:
    """Run one process."""
    from d2_smallobj.engine import SafeCheckpointer, TwoTaskTrainer, setup
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    cfg = setup(args)
    if args.eval_only:
        model = TwoTaskTrainer.build_model(cfg)
        SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR, cfg=cfg).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume, complete=True
        )
        results = TwoTaskTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = TwoTaskTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def parse_train(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line: the names of ``detectron2.engine.default_argument_parser``."""
    parser = make_parser(TRAIN_HELP)
    add_shared(parser, "--config-file", default="")
    add = parser.add_argument
    add("--resume", action="store_true", help="continue from OUTPUT_DIR's last checkpoint")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add_shared(parser, "--num-gpus")
    add("--num-machines", type=positive_int, default=1, metavar="N", help="machines")
    text = "number of this machine, from 0"
    add("--machine-rank", type=natural_int, default=0, metavar="N", help=text)
    text = "tcp://HOST:PORT where the processes meet, or auto: any free port"
    add("--dist-url", default="auto", metavar="URL", help=text)
    args = parse_with_overrides(parser, arguments)
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--num-machines needs --dist-url tcp://HOST:PORT, where all of them meet")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the command line, then run every process."""
    with readable_errors():
        args = parse_train(arguments)
        from d2_smallobj.engine.distributed import run

        run(train, args, lambda processes: check(args, processes))


def parse_predict(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(PREDICT_HELP)
    add_shared(parser, "--config-file", required=True)
    parser.add_argument("--input", nargs="+", metavar="PATH", help="images and folders")
    add_shared(parser, "--output")
    parser.add_argument("--overlay", action="store_true", help="also the images under the colours")
    parser.add_argument("--uncertainty", action="store_true", help="also sigma: .npy and grey .png")
    parser.add_argument("--crf", action="store_true", help="refine with a fully connected CRF")
    return parse_with_overrides(parser, arguments)


@readable_errors()
def predict(arguments: Sequence[str] | None = None) -> None:
    """Predict every image; those that cannot be read are named at the end."""
    args = parse_predict(arguments)
    from d2_smallobj.data import dataset_dicts
    from d2_smallobj.engine import SafeCheckpointer, TwoTaskTrainer, build_config, prediction
    from d2_smallobj.engine.checkpoint import fetch_weights
    from d2_smallobj.engine.setup import check_architecture
    from d2_smallobj.modeling.inference import build_inference

    crf = ["SMALLOBJ.TEST.CRF.ENABLED", "True"] if args.crf else []
    cfg = build_config(args.config_file, [*args.opts, *crf])
    check_architecture(cfg)
    if args.input:
        dicts = prediction.find_images(args.input, args.output)
    else:
        dicts = dataset_dicts(cfg.DATASETS.TEST[:1])
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS must name a checkpoint, got ''")
    fetch_weights(cfg.MODEL.WEIGHTS)
    model = TwoTaskTrainer.build_model(cfg).eval()
    SafeCheckpointer(model, cfg=cfg).load(cfg.MODEL.WEIGHTS, complete=True)
    problems = prediction.predict(
        build_inference(cfg, model, always=True),
        prediction.build_prediction_loader(cfg, dicts),
        prediction.PredictionWriter(
            args.output, cfg.INPUT.FORMAT, overlay=args.overlay, uncertainty=args.uncertainty
        ),
    )
    print(f"wrote {len(dicts) - len(problems)} label maps to {args.output}")
    if problems:
        raise ValueError(itemized(f"of {len(dicts)} images could not be read", problems))


if __name__ == "__main__":
    main()
