"""Runs the host's interface with fixed seeds and saves what comes out.

    python host_parity.py OUTPUT_FOLDER [FOLDER_TO_RESUME_FROM]

``test_host_parity.py`` runs it under both hosts and compares.
"""

import logging
import os
import shutil
import sys

import host_toy
import numpy as np
import torch
from PIL import Image
from torch import nn

import d2_smallobj
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from detectron2.utils.env import seed_all_rng

RESNETS = [
    {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN"},
    {"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "NORM": "GN", "OUT_FEATURES": ["stem", "res3"]},
    {"DEPTH": 50},
    {"DEPTH": 50, "RES5_DILATION": 2, "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res2", "res5"]},
    {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "NORM": "BN"},
]


def flat(node, prefix=""):
    out = {}
    for key, value in node.items():
        out.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return out


def resnets():
    out = []
    for options in RESNETS:
        cfg = get_cfg()
        cfg.MODEL.RESNETS.update(options)
        seed_all_rng(1)
        net = build_backbone(cfg)
        x = torch.randn(2, 3, 64, 64, requires_grad=True)
        features = net(x)
        sum(f.square().mean() for f in features.values()).backward()
        shapes = {k: (s.channels, s.stride) for k, s in net.output_shape().items()}
        trained = [n for n, p in net.named_parameters() if p.grad is not None]
        out.append((net.state_dict(), features, x.grad, shapes, trained))
    return out


def loaders():
    out = {}
    for workers in (0, 2):
        seed_all_rng(2)
        loader = build_detection_train_loader(
            host_toy.samples(),
            mapper=host_toy.mapper,
            sampler=TrainingSampler(host_toy.SIZE, seed=4),
            total_batch_size=3,
            aspect_ratio_grouping=False,
            num_workers=workers,
        )
        iterator = iter(loader)
        out[workers] = [next(iterator) for _ in range(6)]
    return out


def transforms():
    random = np.random.default_rng(0)
    np.random.seed(3)
    out = []
    for shape in ((37, 23, 3), (20, 31, 3), (20, 31)):
        image = random.random(shape, dtype=np.float32)
        for _ in range(5):
            given = T.AugInput(image, sem_seg=random.integers(0, 9, shape[:2]))
            flips = [T.RandomFlip(prob=0.5), T.RandomFlip(prob=0.7)]
            transform = T.AugmentationList(flips)(given)
            coords = transform.apply_coords(np.array([[3.0, 5.0], [0.5, 9.0]]))
            out.append([np.ascontiguousarray(a) for a in (given.image, given.sem_seg, coords)])
    return out


def images(folder):
    out = []
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for orientation in range(9):
        exif = Image.Exif()
        exif[274] = orientation
        path = os.path.join(folder, f"{orientation}.png")
        Image.fromarray(pixels).quantize(16).save(path, exif=exif)
        out += [np.array(read_image(path, mode)) for mode in ("BGR", "RGB")]
    return out


def solver():
    out = []
    for clip in (None, "value", "norm"):
        cfg = host_toy.config("unused")
        if clip:
            cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE=clip, CLIP_VALUE=0.1)
        seed_all_rng(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        optimizer = host_toy.HostToyTrainer.build_optimizer(cfg, net)
        scheduler = host_toy.HostToyTrainer.build_lr_scheduler(cfg, optimizer)
        rates = []
        for _ in range(8):
            optimizer.zero_grad()
            net(torch.randn(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            scheduler.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
        out.append((rates, optimizer.state_dict(), scheduler.state_dict(), net.state_dict()))
    return out


def training(folder, resume_from=None, max_iter=8, **options):
    os.makedirs(folder)
    if resume_from is not None:
        for name in ("last_checkpoint", "model_0000003.pth"):
            shutil.copy(os.path.join(resume_from, name), folder)
        with open(os.path.join(folder, "last_checkpoint"), "w") as stream:
            stream.write("model_0000003.pth")
    cfg = host_toy.config(folder)
    cfg.merge_from_list([part for option in options.items() for part in option])
    seed_all_rng(7)
    trainer = host_toy.EveryIteration(cfg)
    trainer.resume_or_load(resume=resume_from is not None)
    trainer.train()
    rows = host_toy.metrics(folder)
    timings = ("time", "data_time", "rank_data_time", "eta_seconds")
    return {
        "start": trainer.start_iter,
        "names": sorted({name for row in rows for name in row}),
        "rows": [{k: v for k, v in row.items() if k not in timings} for row in rows],
        "weights": trainer.model.state_dict(),
        "files": sorted(f for f in os.listdir(folder) if f.endswith((".pth", "last_checkpoint"))),
        "checkpoint": torch.load(os.path.join(folder, "model_final.pth"), weights_only=True),
    }


def main(folder, resume_from=None):
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.makedirs(folder, exist_ok=True)
    if resume_from is not None:
        results = {"resumed": training(os.path.join(folder, "resumed"), resume_from)}
    else:
        parser = default_argument_parser()
        tensors = [torch.rand(3, 5, 7), torch.rand(3, 8, 2)]
        batch = ImageList.from_tensors(tensors, 4, 0.5)
        results = {
            "host": d2_smallobj.host().name,
            "config": flat(get_cfg()),
            "arguments": {a.dest: (a.default, a.option_strings) for a in parser._actions},
            "resnets": resnets(),
            "loaders": loaders(),
            "transforms": transforms(),
            "images": images(folder),
            "solver": solver(),
            "image_list": (batch.tensor.shape, batch.image_sizes),
            "training": training(os.path.join(folder, "training")),
            "evaluated": training(
                os.path.join(folder, "evaluated"),
                **{"TEST.EVAL_PERIOD": 3, "DATALOADER.NUM_WORKERS": 2, "SEED": -1},
            ),
        }
    with open(os.path.join(folder, "results.pt"), "wb") as stream:
        torch.save(results, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
