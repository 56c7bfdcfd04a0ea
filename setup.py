"""Packaging of d2_smallobj."""

import pathlib
import re

from setuptools import find_namespace_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "d2_smallobj" / "__init__.py").read_text(), re.MULTILINE
).group(1)

TEST = ["pytest>=7", "pytest-cov", "pytest-xdist>=3", "hypothesis>=6", "torchmetrics>=1.0"]
REPORT = ["matplotlib>=3.5"]
# The solver that samples PASCAL-B.
DATA = ["scipy>=1.9"]

setup(
    name="d2_smallobj",
    version=VERSION,
    description=(
        "Small objects in semantic segmentation: IA-mIoU, PASCAL-B and size-balanced "
        "cross-entropy as a detectron2 plugin"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.9",
    # Namespace packages too: the embedded host lies in a folder that cannot be imported itself.
    packages=find_namespace_packages(include=["d2_smallobj", "d2_smallobj.*"]),
    package_data={
        "d2_smallobj": [
            "py.typed",
            "_embedded/README.md",
            "pascal_b/*.j2",
            "report/html_assets/*",
            "experiments/*.csv",
        ],
    },
    install_requires=[
        "torch>=2.1",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "jinja2>=3.0",
        "pycocotools>=2.0.5",
        "numpy>=1.22",
        # Not the headless build: lvis installs this one in any case, and the two overwrite
        # each other.
        "opencv-python>=4.5",
        "lvis>=0.5.3",
        # Annotation files are gigabytes: a fraction of json's time and memory.
        "msgspec>=0.18",
        "Pillow>=9.1",
        "tabulate",
        "tensorboard>=2.8",
        "tqdm",
        # Decodes PNGs in a fraction of zlib's time.
        "zlib-ng>=0.5",
    ],
    extras_require={
        "report": REPORT,
        "data": DATA + REPORT,
        "torchmetrics": ["torchmetrics>=1.0"],
        "test": TEST + REPORT + DATA,
        "dev": TEST + REPORT + DATA + ["ruff"],
    },
)
