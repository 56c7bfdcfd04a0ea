r"""Write the label maps that a checkpoint predicts as PNGs with the VOC palette, named by image.

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

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.utils.cli import make_parser, parse_with_overrides, readable_errors
from d2_smallobj.utils.messages import itemized

with readable_errors():
    from d2_smallobj import TwoTaskTrainer
    from d2_smallobj.data import dataset_dicts
    from d2_smallobj.engine import SafeCheckpointer, build_config, prediction
    from d2_smallobj.modeling.inference import build_inference


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--input", nargs="+", metavar="PATH", help="images and folders")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--overlay", action="store_true", help="also the images under the colours")
    parser.add_argument("--uncertainty", action="store_true", help="also sigma: .npy and grey .png")
    parser.add_argument("--crf", action="store_true", help="refine with a fully connected CRF")
    return parse_with_overrides(parser, arguments)


@readable_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Predict every image; those that cannot be read are named at the end."""
    args = parse_arguments(arguments)
    crf = ["SMALLOBJ.TEST.CRF.ENABLED", "True"] if args.crf else []
    cfg = build_config(args.config_file, [*args.opts, *crf])
    if args.input:
        dicts = prediction.find_images(args.input, args.output)
    else:
        dicts = dataset_dicts(cfg.DATASETS.TEST[:1])
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS must name a checkpoint, got ''")
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
