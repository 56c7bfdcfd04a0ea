"""Print host, versions and devices, what is missing, and what is known not to work together.

Example:
    smallobj doctor
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

import d2_smallobj
from d2_smallobj.utils.cli import make_parser
from d2_smallobj.utils.installation import EXTRAS, install_command, missing_modules

PACKAGES = (
    *("numpy", "opencv-python", "opencv-python-headless", "Pillow", "pycocotools", "msgspec"),
    *("zlib-ng", "tabulate", "tqdm", "Jinja2", "matplotlib", "scipy", "lvis", "torch"),
    *("torchvision", "fvcore", "iopath", "tensorboard", "torchmetrics", "setuptools"),
)
CORE = ("numpy", "cv2", "PIL", "pycocotools", "msgspec", "zlib_ng", "tabulate", "tqdm", "jinja2")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; the exit status is 1 if something is known to fail."""
    parser = make_parser(__doc__)
    parser.parse_args(argv)
    rows, problems = describe_machine(), find_problems()
    for name in PACKAGES:
        rows.append((name, installed_version(name) or "not installed"))
    print(tabulate(rows, ["what", "found"]))
    for extra in EXTRAS:
        missing = missing_modules(extra)
        if missing:
            print(f"extra {extra}: missing {', '.join(missing)}; {install_command(extra)}")
        else:
            print(f"extra {extra}: complete")
    for what, repair in problems:
        print(f"problem: {what}\n  repair: {repair}")
    if problems:
        sys.exit(1)
    print("no problem found")


def describe_machine() -> list[tuple[str, str]]:
    """Return name and value of host, interpreter and devices."""
    rows = [
        ("d2_smallobj", f"{d2_smallobj.__version__} ({Path(d2_smallobj.__file__).parent})"),
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
    ]
    try:
        rows.append(("host", str(d2_smallobj.host())))
    except (ImportError, ValueError) as error:
        rows.append(("host", f"none: {error}"))
    if importlib.util.find_spec("torch") is None:
        rows.append(("device", "unknown without torch; scoring and reports need none"))
        return rows
    with contextlib.suppress(Exception):  # find_problems() tells why torch does not import
        import torch

        count = torch.cuda.device_count()
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
        rows.append(("device", names or f"CPU, {torch.get_num_threads()} threads"))
        rows.append(("CUDA of torch", str(torch.version.cuda or "none")))
    return rows


def find_problems() -> list[tuple[str, str]]:
    """Find what does not import, and pairs of versions that are known to fail: (what, repair)."""
    return [*_missing_core(), *_broken_imports(), *_known_pairs()]


def _missing_core() -> Iterator[tuple[str, str]]:
    missing = [name for name in CORE if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join({"cv2": "opencv-python", "PIL": "Pillow"}.get(n, n) for n in missing)
        yield f"missing: {', '.join(missing)}", f"pip install {names.replace('_', '-')}"


def _broken_imports() -> Iterator[tuple[str, str]]:
    """Import OpenCV, torch and detectron2; say what stops them."""
    for module, repair in (
        ("cv2", "apt-get install -y libgl1 libglib2.0-0  (or your system's packages of these)"),
        ("torch", install_command("train")),
    ):
        if importlib.util.find_spec(module) is not None:
            told = _import_error(module)
            if told:
                yield f"{module} does not import: {told}", repair
    try:
        host = d2_smallobj.host()
    except (ImportError, ValueError) as error:
        yield str(error), "unset D2_SMALLOBJ_HOST, or install what it asks for"
        return
    if host.name != "detectron2":
        return
    rebuild = "reinstall detectron2 for this torch: docs/detectron2.md"
    for module in ("detectron2", "detectron2._C"):
        told = _import_error(module)
        if told:
            use = "D2_SMALLOBJ_HOST=embedded runs d2_smallobj without it"
            yield f"{module} does not import: {told}", f"{rebuild}; {use}"
            return


def _import_error(module: str) -> str | None:
    """Import a module; return the error in one line, or ``None``."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text[:300]}"
    return None


def _known_pairs() -> Iterator[tuple[str, str]]:
    """Compare versions with the pairs that are known to fail."""
    numpy, torch = _version("numpy"), _version("torch")
    if torch and torch < (2, 3) and numpy >= (2,):
        yield (
            "torch before 2.3 was built for numpy 1: arrays and tensors do not convert",
            "pip install 'numpy<2'",
        )
    if () < _version("opencv-python") < (4, 10):
        yield (
            "OpenCV before 4.10 finds wrong components in maps a few pixels wide",
            "pip install 'opencv-python>=4.10'",
        )
    if all(installed_version(name) for name in ("opencv-python", "opencv-python-headless")):
        yield (
            "opencv-python and opencv-python-headless overwrite each other",
            "pip uninstall -y opencv-python-headless opencv-python && pip install opencv-python",
        )
    with contextlib.suppress(ImportError, ValueError):
        if d2_smallobj.host().name == "detectron2":
            if _version("setuptools") >= (82,):
                yield (
                    "detectron2's model_zoo needs pkg_resources, gone since setuptools 82",
                    "pip install 'setuptools<82'",
                )
            if _version("iopath") >= (0, 1, 10):
                yield "detectron2 asks for iopath below 0.1.10", "pip install 'iopath<0.1.10'"


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution; ``None`` if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(name: str) -> tuple[int, ...]:
    """Return the leading numbers of an installed version; ``()`` if there is none."""
    return tuple(int(part) for part in re.findall(r"\d+", (installed_version(name) or ""))[:3])
