"""CfgNode and ``configurable``, on whichever host is installed."""

import pytest

from detectron2.config import CfgNode, configurable, get_cfg


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_file_overrides_its_bases(tmp_path):
    write(tmp_path / "base.yaml", "VERSION: 2\nSEED: 1\nSOLVER: {MAX_ITER: 10, STEPS: [3, 5]}\n")
    (tmp_path / "sub").mkdir()
    child = "_BASE_: ../base.yaml\nSOLVER: {MAX_ITER: 20}\n"
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path / "sub" / "child.yaml", child))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (1, 20, (3, 5))


def test_an_unknown_key_is_an_error_that_names_it(tmp_path):
    cfg = get_cfg()
    with pytest.raises(KeyError, match=r"SOLVER\.MAX_ITR"):
        cfg.merge_from_file(write(tmp_path / "a.yaml", "VERSION: 2\nSOLVER: {MAX_ITR: 1}\n"))
    with pytest.raises((KeyError, AssertionError), match=r"SOLVER\.MAX_ITR"):
        cfg.merge_from_list(["SOLVER.MAX_ITR", "1"])


def test_other_versions_missing_files_and_code_are_refused(tmp_path, embedded_only):
    with pytest.raises(ValueError, match=r"old\.yaml: VERSION must be 2, got 1"):
        get_cfg().merge_from_file(write(tmp_path / "old.yaml", "VERSION: 1"))
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "missing.yaml"))
    target = tmp_path / "executed"
    text = f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{target}']\n"
    config = write(tmp_path / "evil.yaml", text)
    for options in ({}, {"allow_unsafe": True}):
        with pytest.raises(ValueError, match=r"evil\.yaml: not plain YAML"):
            get_cfg().merge_from_file(config, **options)
    assert not target.exists()


def test_dump_is_read_back_and_frozen_nodes_refuse(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('a', 'b')"])
    again = get_cfg()
    again.merge_from_file(write(tmp_path / "dump.yaml", cfg.dump()))
    assert (again.SOLVER, again.DATASETS) == (cfg.SOLVER, cfg.DATASETS)
    assert again.DATASETS.TRAIN == ("a", "b")
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SOLVER.BASE_LR = 1.0
    clone = cfg.clone()
    clone.defrost()
    clone.SOLVER.BASE_LR = 1.0
    assert cfg.SOLVER.BASE_LR == 0.5


class Configured:
    @configurable
    def __init__(self, a, b=2, c=3):
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.A * scale, "b": cfg.B}


class Inherited(Configured):
    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "c": 9}


def test_configurable_constructor():
    cfg = CfgNode({"A": 10, "B": 20})
    assert Configured(1, c=5).values == (1, 2, 5)
    assert Configured(cfg).values == (10, 20, 3)
    assert Configured(cfg=cfg, b=7, c=8).values == (10, 7, 8)
    assert Configured(cfg, scale=2).values == (20, 20, 3)
    assert Inherited(cfg).values == (10, 20, 9)
