"""Packaging of d2_smallobj."""

import pathlib
import re
import shutil

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "d2_smallobj" / "__init__.py").read_text(), re.MULTILINE
).group(1)

PLOTS = ["matplotlib>=3.7"]
# SciPy's solver samples PASCAL-B; detectron2 reads LVIS through its own package.
DATA = ["scipy>=1.9", "lvis>=0.5.3", *PLOTS]
TRAIN = ["torch>=2.1", "fvcore>=0.1.5", "iopath>=0.1.9", "tensorboard>=2.8", *DATA]
TORCHMETRICS = ["torch>=2.1", "torchmetrics>=1.0"]
TEST = ["pytest>=7", "pytest-cov", "pytest-xdist>=3", "hypothesis>=6", "argcomplete>=2"]
DOCS = ["mkdocs-material>=9", "mkdocstrings[python]>=0.24"]
NOTEBOOKS = ["nbclient>=0.8", "nbformat>=5", "ipykernel>=6"]
LINT = ["ruff", "mypy>=1.10", "pre-commit"]


class BuildWithConfigs(build_py):
    """Put configs/ into the package, so that an installed one finds them by name."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / "d2_smallobj" / "configs"
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True)


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
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["smallobj = d2_smallobj.commands.smallobj:main"]},
    # Scoring, comparing and the HTML report; no torch.
    install_requires=[
        "jinja2>=3.0",
        # Annotation files are gigabytes: a fraction of json's time and memory.
        "msgspec>=0.18.6",
        "numpy>=1.22",
        # Before 4.10 components of maps a few pixels wide are wrong. Not the headless build: lvis
        # installs this one, and the two overwrite each other.
        "opencv-python>=4.10",
        "Pillow>=9.1",
        "pycocotools>=2.0.7",
        "tabulate",
        "tqdm",
        # Decodes PNGs in a fraction of zlib's time.
        "zlib-ng>=0.5",
    ],
    extras_require={
        "plots": PLOTS,
        "data": DATA,
        "train": TRAIN,
        "torchmetrics": TORCHMETRICS,
        "docs": DOCS,
        "dev": [*TEST, *TRAIN, *TORCHMETRICS, *DOCS, *NOTEBOOKS, *LINT],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
