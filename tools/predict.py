#!/usr/bin/env python
r"""Write the label maps that a checkpoint predicts as PNGs, one per image, named by image id.

They are what `tools/evaluate.py --predictions` and `tools/sensitivity.py conventions` read.

Example:
    python tools/predict.py --config-file configs/demo_sbce.yaml --output output/predictions \
        MODEL.WEIGHTS output/demo_sbce/model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

try:
    from d2_smallobj import TwoTaskTrainer
    from d2_smallobj.annotations.label_maps import write_label_map
    from d2_smallobj.data import build_test_loader
    from d2_smallobj.engine import SafeCheckpointer, build_config
    from d2_smallobj.engine.setup import check_datasets
except (ValueError, ImportError) as error:
    # D2_SMALLOBJ_HOST is wrong or cannot be had, or a package is missing.
    sys.exit(f"error: {error}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides, last")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Predict every image of the config's first test set."""
    args = parse_arguments()
    try:
        cfg = build_config(args.config_file, args.opts)
        check_datasets(cfg, True)
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS must name a checkpoint, got ''")
        model = TwoTaskTrainer.build_model(cfg).eval()
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
        for batch in tqdm(loader, unit="image", disable=None):
            for x, output in zip(batch, model(batch)):
                labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
                write_label_map(args.output / f"{x['image_id']}.png", labels)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {len(loader.dataset)} label maps to {args.output}")


if __name__ == "__main__":
    main()
