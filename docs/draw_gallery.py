#!/usr/bin/env python
r"""Draw predictions of several checkpoints side by side, with the IoU of every small instance.

The images are those with the most small instances of at least --min-area pixels. With --credits,
only images that a COCO JSON puts under CC BY are drawn, each with its id and Flickr number.

Example:
    python docs/draw_gallery.py --config-file configs/demo_sbce.yaml --output docs/demo.png \
        --weights CE=output/demo_ce/model_final.pth SBCE=output/demo_sbce/model_final.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from d2_smallobj.utils.cli import make_parser, parse_with_overrides, positive_int, readable_errors

with readable_errors():
    from d2_smallobj import TwoTaskTrainer
    from d2_smallobj.annotations.dataset_files import decode_json
    from d2_smallobj.annotations.label_maps import read_label_map
    from d2_smallobj.data import build_test_loader, dataset_dicts
    from d2_smallobj.engine import SafeCheckpointer, build_config
    from d2_smallobj.metrics import COCO_SIZE_BINS, match_image
    from d2_smallobj.report.drawing import GalleryRow, draw_gallery
    from detectron2.config import CfgNode
    from detectron2.data import MetadataCatalog

# The number of "Attribution License" in COCO's list of licenses.
_CC_BY = (4, "CC BY 2.0")
_EXPECTED = "expected COCO's list of images, each with id, license and flickr_url"


class _Image(msgspec.Struct):
    id: int
    license: int = 0
    flickr_url: str = ""


class _Images(msgspec.Struct):
    images: list[_Image]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--output", required=True, metavar="PNG")
    parser.add_argument("--num-images", type=positive_int, default=4)
    parser.add_argument("--min-area", type=int, default=100, help="pixels")
    parser.add_argument("--credits", metavar="JSON", help="COCO JSON with the images' licenses")
    return parse_with_overrides(parser, None)


@readable_errors()
def main() -> None:
    """Draw the gallery."""
    args = parse_arguments()
    cfg = build_config(args.config_file, args.opts)
    dataset = cfg.DATASETS.TEST[0]
    dicts, titles = dataset_dicts([dataset]), {}
    if args.credits:
        titles = read_credits(args.credits)
        dicts = [x for x in dicts if x["image_id"] in titles]
        if not dicts:
            raise ValueError(f"{args.credits} puts no image of {dataset} under CC BY")
    chosen = most_small_instances(dicts, args.num_images, args.min_area)
    models = {}
    for entry in args.weights:
        name, separator, path = entry.partition("=")
        if not separator:
            raise ValueError(f"--weights takes NAME=FILE, got {entry!r}")
        models[name] = TwoTaskTrainer.build_model(cfg).eval()
        SafeCheckpointer(models[name]).load(path, complete=True)
    inputs = [x[0] for x in build_test_loader(cfg, dataset) if x[0]["file_name"] in chosen]
    rows = [make_row(cfg, x, models, titles.get(x["image_id"], "")) for x in inputs]
    draw_gallery(args.output, rows, MetadataCatalog.get(dataset).stuff_colors)
    print(f"wrote {args.output}")


def most_small_instances(dicts: Sequence[dict[str, Any]], count: int, min_area: int) -> set[str]:
    """File names of the images with the most small instances; ties in list order."""

    def small(x: dict[str, Any]) -> int:
        instances = read_label_map(x["ins_seg_file_name"])
        areas = np.unique(instances[(instances != 0) & (instances != 255)], return_counts=True)[1]
        return int(((areas >= min_area) & (areas < COCO_SIZE_BINS["S"])).sum())

    ranked = sorted(dicts, key=small, reverse=True)
    return {x["file_name"] for x in ranked[:count]}


def read_credits(path: str) -> dict[int, str]:
    """Map the ids of a COCO JSON's images under CC BY 2.0 to what names their source."""
    number, name = _CC_BY
    images = decode_json(path, _Images, _EXPECTED).images
    return {
        x.id: f"COCO {x.id}, {name},\nFlickr photo {Path(x.flickr_url).name.partition('_')[0]}"
        for x in images
        if x.license == number and x.flickr_url
    }


@torch.no_grad()
def make_row(
    cfg: CfgNode, x: dict[str, Any], models: dict[str, torch.nn.Module], title: str
) -> GalleryRow:
    """Predict one image with every model and match the predictions."""
    semantic = read_label_map(x["sem_seg_file_name"])
    instances = read_label_map(x["ins_seg_file_name"])
    predictions, ious = {}, {}
    for name, model in models.items():
        scores = model([x])[0]["sem_seg"]
        predictions[name] = scores.argmax(dim=0).cpu().numpy().astype(np.uint8)
        table = match_image(
            predictions[name], semantic, instances, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        ).table
        ious[name] = dict(zip(table.instance_id.tolist(), table.iou.tolist()))
    image = x["image"].numpy().transpose(1, 2, 0).astype(np.uint8)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    return GalleryRow(image, semantic, instances, predictions, ious, title)


if __name__ == "__main__":
    main()
