r"""Train or evaluate, with detectron2's arguments.

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

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from collections.abc import Sequence

# Before torch loads its OpenMP: threads that wait actively for a core that another program has
# make training on a busy CPU many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from d2_smallobj.utils.cli import make_parser, readable_errors

with readable_errors():
    from d2_smallobj import TwoTaskTrainer
    from d2_smallobj.engine import SafeCheckpointer, build_config, setup
    from d2_smallobj.engine.distributed import check_batch_size, run
    from d2_smallobj.engine.setup import check_architecture, check_datasets
    from detectron2.engine import default_argument_parser
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm


def check(args: argparse.Namespace, processes: int) -> None:
    """Check config and files before any process starts, so that an error is one line."""
    cfg = build_config(args.config_file, args.opts)
    check_architecture(cfg)
    if not args.eval_only:
        check_batch_size(TwoTaskTrainer.auto_scale_workers(cfg, processes), processes)
    check_datasets(cfg, args.eval_only)


def train(args: argparse.Namespace) -> OrderedDict | None:
    """Run one process."""
    cfg = setup(args)
    if args.eval_only:
        if not (cfg.MODEL.WEIGHTS or args.resume):
            raise ValueError(
                "--eval-only has no weights to evaluate: give MODEL.WEIGHTS FILE, or --resume for "
                f"the last checkpoint in {cfg.OUTPUT_DIR}"
            )
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the command line, then run every process."""
    with readable_errors():
        theirs = default_argument_parser()
        parser = make_parser(__doc__, parents=[theirs], conflict_handler="resolve")
        args = parser.parse_args(arguments)
        run(train, args, lambda processes: check(args, processes))


if __name__ == "__main__":
    main()
