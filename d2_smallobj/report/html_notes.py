"""What the figures rest on, in words: conventions, options, warnings, and the summary on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from d2_smallobj.report.html_markup import Child, Markup, count, percent, tag
from d2_smallobj.report.html_sections import named, section
from d2_smallobj.report.methods import Method, outcome_shares, size_word
from d2_smallobj.statistics.comparison import Comparison
from d2_smallobj.statistics.intervals import MINIMUM_INSTANCES, cell_warnings

_MAX_CELLS = 24
_LONG = 300


def summary(methods: Sequence[Method], *, paired: bool) -> Markup:
    """The report in a few sentences; ``paired``: it holds paired differences as well."""
    first = methods[0]
    size = next(iter(first.bins))
    sentences = [
        f"{count(first.num_images)} images, {count(first.num_instances)} objects of"
        f" {_classes_present(first)} classes, {count(first.figure(f'instances_{size}'))} of them"
        f" {size_word(size)}."
    ]
    if len(methods) == 1:
        sentences += _one(first, size)
    else:
        sentences += _several(methods, size, paired=paired)
    return tag("p", " ".join(sentences), class_="summary")


def _one(method: Method, size: str) -> list[str]:
    small = method.figure(f"IA-mIoU_{size}")
    missed = outcome_shares(method.outcomes["sizes"][size])["missed"]
    if math.isnan(small):
        return [f"mIoU is {percent(method.figure('mIoU'))}."]
    return [
        f"mIoU is {percent(method.figure('mIoU'))}; on {size_word(size)} objects, IA-mIoU is"
        f" {percent(small)} and {percent(missed, 0)} % of them are missed altogether."
    ]


def _several(methods: Sequence[Method], size: str, *, paired: bool) -> list[str]:
    best = {key: _best(methods, key) for key in ("mIoU", f"IA-mIoU_{size}")}
    by_pixels, by_small = best["mIoU"], best[f"IA-mIoU_{size}"]
    if by_pixels is None or by_small is None:
        return []
    values = [
        f"{method.name} ({percent(method.figure(key))})"
        for key, method in (("mIoU", by_pixels), (f"IA-mIoU_{size}", by_small))
    ]
    if by_pixels is by_small:
        told = f"{values[0]} has the highest mIoU and also the highest IA-mIoU_{size}"
        told += f" ({percent(by_small.figure(f'IA-mIoU_{size}'))})."
    else:
        told = f"Highest mIoU: {values[0]}. Highest IA-mIoU_{size}: {values[1]}."
    if not paired and _overlapped(by_small, methods, f"IA-mIoU_{size}"):
        told += (
            f" But intervals of IA-mIoU_{size} overlap: compare the methods in pairs"
            " (tools/evaluate.py --compare) before calling one better."
        )
    return [told]


def _overlapped(best: Method, methods: Sequence[Method], key: str) -> bool:
    """Whether the best method's interval reaches down into another one's."""
    own = best.intervals.get(key)
    others = [method.intervals.get(key) for method in methods if method is not best]
    return own is not None and any(other is not None and other[1] >= own[0] for other in others)


def _best(methods: Sequence[Method], key: str) -> Method | None:
    defined = [method for method in methods if not math.isnan(method.figure(key))]
    return max(defined, key=lambda method: method.figure(key), default=None)


def _classes_present(method: Method) -> int:
    return sum(method.figure(f"instances-{name}") > 0 for name in method.thing_names)


def warnings(methods: Sequence[Method], comparison: Comparison | None) -> list[Child]:
    """What a reader should know before trusting the figures; plain texts."""
    found: list[Child] = []
    for method in methods:
        remarks = [str(remark) for remark in getattr(method.run, "remarks", ())]
        who = f"{method.name}: " if len(methods) > 1 else ""
        found += [f"{who}{remark}" for remark in remarks]
    found += _mismatches(methods)
    few, none = _nearly_empty(methods[0])
    if few:
        found.append(
            f"Fewer than {MINIMUM_INSTANCES} instances, too few to mean anything, yet a class"
            f" with few weighs as much in a mean as one with many: {few}."
        )
    if none:
        found.append(
            f"Without any instance, and so in no mean (figures of two sizes are then means over"
            f" different classes): {none}."
        )
    if not any(method.intervals for method in methods):
        found.append(
            "No intervals were computed: differences of a point or two may be chance"
            " (tools/evaluate.py --bootstrap 1000 computes them)."
        )
    if comparison is not None:
        found += [remark for remark in comparison.remarks if remark not in found]
    return found


def _mismatches(methods: Sequence[Method]) -> list[str]:
    """Why methods may not be comparable."""
    found = []
    first, options = methods[0], methods[0].run.options
    images = frozenset(map(str, first.run.images))
    for method in methods[1:]:
        seen = frozenset(map(str, method.run.images))
        if seen != images:
            found.append(
                f"{first.name} and {method.name} were not scored on the same images"
                f" ({count(len(images))} and {count(len(seen))}, {count(len(images & seen))} in"
                " common): their figures cannot be compared."
            )
        found += [
            f"{first.name} and {method.name} were scored with different settings of {key}:"
            f" {options.get(key)!r} and {method.run.options.get(key)!r}."
            for key in ("mode", "ignore_label")
            if options.get(key) != method.run.options.get(key)
        ]
    return found


def _nearly_empty(method: Method) -> tuple[str, str]:
    """Cells of class and size with few instances, and those without, listed."""
    cells = cell_warnings(method.run.table, method.class_names, method.bins, stuff=method.stuff)
    # Classes that the data set does not have at all are no news size by size.
    present = {name for name in method.class_names if method.figure(f"instances-{name}") > 0}
    few = [f"{one.category} {one.size} ({one.instances})" for one in cells if one.instances]
    none = [
        f"{one.category} {one.size}"
        for one in cells
        if not one.instances and one.category in present
    ]
    return _listed(few), _listed(none)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_CELLS} more" if len(names) > _MAX_CELLS else ""
    return ", ".join(names[:_MAX_CELLS]) + more


def notes(methods: Sequence[Method], level: float) -> Markup:
    """Conventions and options."""
    options = methods[0].run.options
    items = [
        tag("li", tag("b", title), " ", text) for title, text in _conventions(methods[0], level)
    ]
    table = (
        [
            tag("h3", "Options"),
            tag(
                "div",
                _options(methods),
                class_="scroll",
                tabindex="0",
                role="region",
                aria_label="Options",
            ),
        ]
        if options
        else None
    )
    return section(
        "notes",
        "How to read this, and how it was counted",
        None,
        tag("ul", items, class_="notes"),
        table,
    )


def _conventions(method: Method, level: float) -> list[tuple[str, str]]:
    options = method.run.options
    ignore = options.get("ignore_label", 255)
    official = options.get("mode") == "official"
    return [
        (
            "mIoU",
            "is taken from one confusion matrix over the whole data set (not per image),"
            " the mean over the classes in the ground truth, background included.",
        ),
        (
            "IA-mIoU",
            "gives every instance its own IoU: predicted components (8-connected, of one"
            " class) are charged to the instances that they overlap, in proportion to the overlap."
            " Mean over the instances of a class, then over classes. Background counts as one more"
            " class with one instance per image; IA-mIoU_fg leaves it out.",
        ),
        (
            "Sizes",
            "are decided by an instance's pixels in the ground truth at full resolution."
            " Background has none.",
        ),
        (
            "Ignored pixels",
            f"(label {ignore}, and 255 in instance maps) count for nothing;"
            " components are found before they are taken out.",
        ),
        (
            "Mode",
            "official: as the authors' code counts, with truncated shares and filled"
            " contours. Figures may differ from exact ones in the digits shown."
            if official
            else "exact: shares are exact numbers and components are 8-connected pixels."
            " The authors' released code truncates and fills holes (mode official).",
        ),
        (
            "Blobs",
            "that overlap no object of their class cost nothing in IA-mIoU. They are listed"
            " on their own above.",
        ),
        (
            "Undefined",
            "figures (no instance to rest on) are dashes, never 0, and are left out of means.",
        ),
        (
            "Intervals",
            f"are {100 * level:g} % bootstrap intervals over images: what other images"
            " of the same kind would give. Overlapping intervals of two methods do not mean that"
            " the methods are equal: on the same images, a paired comparison is sharper.",
        ),
    ]


def _options(methods: Sequence[Method]) -> Markup:
    keys = list(dict.fromkeys(key for method in methods for key in method.run.options))
    head = [tag("th", "option", scope="col"), *(tag("th", named(m), scope="col") for m in methods)]
    rows = [
        tag(
            "tr",
            tag("th", key, scope="row"),
            [tag("td", _plain(method.run.options.get(key))) for method in methods],
        )
        for key in keys
    ]
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="options")


def _plain(value: Any) -> str:
    """An option's value as text, shortened."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(_plain(part) for part in value)
    else:
        text = str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
