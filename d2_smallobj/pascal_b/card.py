"""The data card: what somebody must know who uses the set, drawn from its manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2_smallobj.annotations.class_names import VOC_CLASS_NAMES
from d2_smallobj.metrics.sizes import COCO_SIZE_BINS
from d2_smallobj.pascal_b.accounting import STATUSES, by_status, total_outcomes
from d2_smallobj.pascal_b.manifest import short_cells

_INTRODUCTION = """\
# PASCAL-B, re-created

An evaluation set for semantic segmentation of the 20 PASCAL VOC classes in which classes and object
sizes are balanced, after *Small Objects Matters in Weakly-supervised Semantic Segmentation* (WACV
2024), section 3. **This is not the authors' set**: they have not published their list of images or
their mapping of categories. It was built by d2_smallobj from LVIS and COCO by the published recipe,
with automatic screening in place of weeks of work by hand; figures on it are not comparable with
those of the paper.

## What is in it

- `SegmentationClass`: 0 background, 1..20 classes, 255 void. `SegmentationObject`: 0 none, instance
  ids, 255 void. `annotations/instances_val.json`: the same in COCO's format, instances as the parts
  of them that are visible, void as crowd regions of the class that it could be.
- Of overlapping objects the smaller one lies on top; sizes are visible pixels: S under 32², M under
  96², L the rest.
- Void are: COCO's crowd regions; what COCO labels as one of the classes and LVIS does not (LVIS is
  federated: it labels each image for some categories only); LVIS categories that may or may not be
  one of the classes ({ambiguous});
  instances on whose class LVIS and COCO differ; instances of fewer than {min_area} visible pixels.
- Instances of {from_coco} come from COCO, all others from LVIS.
"""
_TERMS = """\
## Terms

Annotations: LVIS (Gupta, Dollár and Girshick, CVPR 2019) and COCO (Lin et al., ECCV 2014), both CC
BY 4.0; the label maps derive from both. Images: COCO's, from Flickr, each under its own licence;
COCO's terms of use hold. For evaluation only: the images are in COCO's and LVIS's training sets, so
models that were trained on these have seen them.
"""


def format_card(manifest: Mapping[str, Any]) -> str:
    """The data card as Markdown.

    Args:
        manifest: see :mod:`.manifest`; nothing else is looked at, so that a rebuilt set has the
            same card.
    """
    screening = manifest["screening"]
    sections = [
        _INTRODUCTION.format(
            ambiguous="table, thermos bottle, raft, pickup truck, police cruiser, sofa bed",
            min_area=screening["min_area"],
            from_coco=", ".join(screening["from_coco"]) or "no class",
        ),
        _balance(manifest),
        _screening(manifest),
        _accounting(manifest["accounting"]),
        _TERMS,
        _rebuilding(manifest),
    ]
    return "\n".join(sections)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table as lines."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _balance(manifest: Mapping[str, Any]) -> str:
    """The section on balance."""
    sampling, balance = manifest["sampling"], manifest["balance"]
    random, source = balance["random"], balance["source"]
    number = len(manifest["image_ids"])
    rows = [
        (
            label,
            *(
                f"{figures[name]:.3f}" + (f" ± {figures[f'{name}_std']:.3f}" if spread else "")
                for name in ("normalized_entropy", "coefficient_of_variation")
            ),
        )
        for label, figures, spread in (
            (f"all {source['images']:,} fit images", source, False),
            (f"{number:,} of them at random (mean ± sd of {random['draws']})", random, True),
            (f"this set, {number:,} images", balance["achieved"], False),
        )
    ]
    head = ("instances over class × size", "normalised entropy", "coefficient of variation")
    proof = "so it is the best" if sampling["proven_optimal"] else "a better one may exist"
    lines = [
        "## Balance",
        "",
        *table(head, rows),
        "",
        "Images were chosen so that Σ |instances − target| over the 60 cells is least; the target "
        f"is {sampling['per_cell']} for each cell, or what there is. Reached: "
        f"{sampling['distance']}; no choice of {number:,} images has less than "
        f"{sampling['bound']} ({proof}).",
        "",
    ]
    cells = {(cell["class"], cell["size"]): cell for cell in sampling["cells"]}
    lines += table(
        ("class", *COCO_SIZE_BINS),
        [
            (name, *(cells[name, size]["chosen"] for size in COCO_SIZE_BINS))
            for name in VOC_CLASS_NAMES[1:]
        ],
    )
    short = short_cells(sampling)
    if short:
        lines += ["", f"Short of {sampling['per_cell']}:", "", *format_short_cells(sampling)]
    return "\n".join(lines) + "\n"


def format_short_cells(sampling: Mapping[str, Any]) -> list[str]:
    """The cells that fall short, by how much and why: a line each."""
    return [
        f"- {cell['class']} {cell['size']}: {cell['chosen']}, "
        f"{sampling['per_cell'] - cell['chosen']} short "
        + (
            f"(all fit images together have {cell['available']})"
            if cell["available"] < sampling["per_cell"]
            else f"(all fit images together have {cell['available']}; more would cost other cells)"
        )
        for cell in short_cells(sampling)
    ]


def _screening(manifest: Mapping[str, Any]) -> str:
    """The section on what happened to the images."""
    options = manifest["screening"]
    lines = [
        "## Images",
        "",
        *table(("what became of an image", "images"), list(manifest["images"].items())),
        "",
        f"Dropped are images with two instances of an intersection over union above "
        f"{options['max_overlap']}, on which LVIS and COCO differ in more than "
        f"{options['max_disagreement']:.0%} of the pixels that either labels as a class that both "
        f"looked for, and with more than {options['max_void']:.0%} void.",
    ]
    if manifest["near_duplicates"] is None:
        lines += ["", "Not checked for near-duplicates of VOC images."]
    else:
        count = len(manifest["near_duplicates"])
        lines += ["", f"{count} near-duplicate(s) of VOC images were found and left out (pHash)."]
    if manifest["missing_categories"]:
        lines += ["", "Categories that the LVIS files lack:", ""]
        lines += [f"- {line}" for line in manifest["missing_categories"]]
    return "\n".join(lines) + "\n"


def _accounting(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section on what happened to the annotations."""
    total = sum(row["annotations"] for row in rows)
    mapped = [row for row in rows if row["class"]]
    others = [row for row in rows if not row["class"]]
    lines = [
        "## Annotations",
        "",
        f"Every one of the {total:,} annotations of the inputs (all outcomes of every category: "
        "`accounting.csv`):",
        "",
        *table(("outcome", "annotations"), list(total_outcomes(rows).items())),
        "",
        *table(
            ("source", "category", "class", "annotations", *STATUSES),
            [
                (
                    row["source"],
                    row["category"],
                    row["class"],
                    row["annotations"],
                    *by_status(row).values(),
                )
                for row in mapped
            ],
        ),
        "",
        f"{len(others)} other categories are background: "
        f"{sum(row['annotations'] for row in others):,} annotations.",
    ]
    return "\n".join(lines) + "\n"


def _rebuilding(manifest: Mapping[str, Any]) -> str:
    """The section on how to get the same set."""
    lines = [
        "## Building it again",
        "",
        "    python datasets/prepare_pascal_b.py --manifest manifest.json",
        "",
        "with these files:",
        "",
        *table(
            ("file", "kind", "SHA-256"),
            [(entry["name"], entry["kind"], entry["sha256"]) for entry in manifest["inputs"]],
        ),
        "",
        "Made with " + ", ".join(f"{n} {v}" for n, v in manifest["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"
