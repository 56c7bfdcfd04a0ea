"""One demo folder for all tests of the demo; nobody writes in it."""

from __future__ import annotations

import pytest

from d2_smallobj.demo.dataset import make_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "smallobj_demo"
    make_demo(root, num_train=45, num_val=1)
    return root
