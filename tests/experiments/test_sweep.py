"""Methods x losses x seeds with a stand-in for ``train_net.py`` that invents its figures."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import os
import re
import sys
from types import SimpleNamespace

import pytest

from d2_smallobj.engine import build_config
from d2_smallobj.engine.trainer import HEADLINE
from d2_smallobj.experiments import sweep as module
from d2_smallobj.experiments.ablation import Ablation, build_variants, run_all
from d2_smallobj.experiments.seed_gains import SHOWN, SeedGain, write_seed_gains
from d2_smallobj.experiments.sweep import split_by_method, write_all_tables

# Task A takes a moment, so that runs which should be side by side are; figures follow from the
# options, so that every cell of the tables can be foretold.
FAKE = """
import json, os, sys, time
arguments = sys.argv[1:]
options = dict(zip(arguments[7:-1:2], arguments[8::2]))
folder = options["OUTPUT_DIR"]
note = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
note.update(start=time.time(), arguments=arguments[:7])
if os.path.exists(folder + "/../../break"):
    sys.exit("error: told to break")
time.sleep(0.15)
seed, sw = int(options["SEED"]), options.get("SMALLOBJ.TASK_B.LOSS") != "cross_entropy"
base = 10 * len(options.get("DATASETS.TRAIN", "('voc_2012_trainaug_irn',)")) + seed
figures = {"mIoU": base, "IA-mIoU": base + 5 * sw, "IA-mIoU_S": base + 8 * sw}
sets = {"voc_2012_seg_val": figures, "pascal_b_val": {k: v / 2 for k, v in figures.items()}}
open(folder + "/results.json", "w").write(json.dumps({"B": sets}))
open(folder + "/model_final.pth", "w").close()
open(folder + "/config.yaml", "w").write("VERSION: 2")
open(folder + "/note.json", "w").write(json.dumps({**note, "end": time.time()}))
"""


@pytest.fixture
def ablation(tmp_path, tiny, monkeypatch):
    """Three variants and two seeds on VOC's pseudo labels of irn."""
    fake = tmp_path / "fake_train_net.py"
    fake.write_text(FAKE)
    monkeypatch.setattr("d2_smallobj.experiments.ablation.TRAIN_COMMAND", (sys.executable, fake))
    return Ablation(
        config_file=str(tiny.repository / "configs" / "pascalb_sbce.yaml"),
        output_dir=tmp_path / "sweep",
        variants=build_variants([500.0], [], ["ce", "ce_sw", "ce_sb_online"]),
        seeds=[0, 1],
        options=("MODEL.DEVICE", "cpu"),
    )


def notes(ablations):
    """What every run found around it, by folder below the sweep's."""
    return {
        f"{ablation.method}/{path.parent.name}": SimpleNamespace(**json.loads(path.read_text()))
        for ablation in ablations
        for path in ablation.output_dir.glob("*/note.json")
    }


def test_methods_are_training_sets(ablation):
    sets = {name: f"voc_2012_trainaug_{name}" for name in ("amn", "gt")}
    sets.update(mine="voc_2012_trainaug_rca", pascal_b_val="pascal_b_val")
    split = split_by_method(ablation, ["amn", "gt", f"mine={sets['mine']}", "pascal_b_val"])
    assert [x.method for x in split] == [x.output_dir.name for x in split] == list(sets)
    trained = [build_config(x.config_file, x.options).DATASETS.TRAIN for x in split]
    assert trained == [(name,) for name in sets.values()]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["amm"], r"--methods: unknown value 'voc_2012_trainaug_amm'.*'voc_2012_trainaug_amn'\?"),
        (["a=nowhere"], "--methods: unknown value 'nowhere'"),
        (["../x=pascal_b_val"], r"--methods takes different names .* got '\.\./x'"),
        (["..=pascal_b_val"], r"got '\.\.' in"),
        (["amn", "amn"], r"got 'amn' in \['amn', 'amn'\]"),
        (["=pascal_b_val"], "got '' in"),
    ],
)
def test_bad_methods(ablation, methods, message):
    with pytest.raises(ValueError, match=message):
        split_by_method(ablation, methods)


def test_everything_is_run_once_and_tabled(ablation, tmp_path, monkeypatch, caplog):
    sweep = tmp_path / "sweep"
    methods, variants = ("irn", "nsrom"), ("ce", "ce_sw", "ce_sb_online_500")
    ablations = split_by_method(ablation, methods)
    run_all(ablations, None, ["0", "1", "2"])
    found = notes(ablations)
    runs = itertools.product(methods, variants, (0, 1))
    assert set(found) == {f"{method}/{variant}_seed{seed}" for method, variant, seed in runs}
    # Each on a GPU of its own, all GPUs in use, never two runs on one at the same time.
    by_device = {}
    for note in found.values():
        by_device.setdefault(note.CUDA_VISIBLE_DEVICES, []).append((note.start, note.end))
        assert str(max(1, os.cpu_count() // 3)) == note.OMP_NUM_THREADS
        assert note.arguments[2:4] == ["--num-gpus", "1"]
    assert set(by_device) == {"0", "1", "2"}
    for spans in by_device.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))
    # The maker of task A is first among those that share it.
    for method, variant, seed in itertools.product(methods, ("ce", "ce_sw"), (0, 1)):
        maker = found[f"{method}/ce_sb_online_500_seed{seed}"]
        assert found[f"{method}/{variant}_seed{seed}"].start >= maker.end

    table = write_all_tables(ablations, sweep)
    assert table == (sweep / "ablation.md").read_text("utf-8")
    # Figures follow from the length of the name.
    base = 10 * len("('voc_2012_trainaug_irn',)") + 0.5
    assert f"| voc_2012_seg_val | irn | CE | {base:.1f} ± 0.7 |" in table
    rows = list(csv.DictReader((sweep / "ablation.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 2 * 3 * 2 * 2
    assert list(rows[0])[:4] == ["method", "variant", "seed", "data set"]
    text = (sweep / "paper_tables.md").read_text("utf-8")
    titles = ["1: PASCAL VOC 2012 val, CE", "3: PASCAL-B, CE"]
    titles += ["4: ablation on PASCAL VOC 2012 val", "4: ablation on PASCAL-B"]
    assert re.findall("^## Table (.*)$", text, re.MULTILINE) == titles
    table1 = text.split("## ")[1]
    assert re.search(rf"\| IRN +\| image +\| {base:.1f} ± 0.7 \|", table1)
    assert re.search(rf"\| NS-ROM +\| image \+ saliency +\| {base + 20:.1f} ± 0.7 \|", table1)
    assert (sweep / "fig8.png").stat().st_size > 10_000
    gains = list(csv.DictReader((sweep / "fig8.csv").read_text("utf-8").splitlines()))
    assert len(gains) == 2 * 2 * 2 * 3
    small = [x for x in gains if x["data_set"].startswith("voc") and x["figure"] == "IA-mIoU_S"]
    assert {float(x["gain"]) for x in small} == {8.0}

    # Nothing is repeated.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("note.json")}
    run_all(split_by_method(ablation, methods), None, ["0"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("note.json")} == before

    # Without matplotlib; without --methods, the config's training set tells whose labels they are.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    module.logger.addHandler(caplog.handler)
    write_all_tables([dataclasses.replace(ablation, output_dir=sweep / "irn")], tmp_path)
    module.logger.removeHandler(caplog.handler)
    assert "fig8.png is left out: matplotlib: not installed" in caplog.text
    assert not (tmp_path / "fig8.png").exists()
    assert re.search(r"\| IRN +\| image", (tmp_path / "paper_tables.md").read_text("utf-8"))


def test_failures_leave_the_rest(ablation, tmp_path):
    sweep = tmp_path / "sweep"
    ablations = split_by_method(dataclasses.replace(ablation, seeds=[0]), ["irn", "amn"])
    # The stand-in looks for this file two folders above its own.
    sweep.mkdir()
    (sweep / "break").touch()
    told = (
        r"2 run\(s\) failed:\n  irn, variant ce_sb_online_500, seed 0 ended with code 1: "
        r"error: told to break \(log: .*console\.txt\)(.|\n)*\n4 more depend on them"
    )
    with pytest.raises(RuntimeError, match=told):
        run_all(ablations)
    assert write_all_tables(ablations, sweep).count("\n") == 2
    (sweep / "break").unlink()
    run_all(ablations, 2)
    found = notes(ablations)
    assert len(found) == 6
    assert {x.CUDA_VISIBLE_DEVICES for x in found.values()} == {os.getenv("CUDA_VISIBLE_DEVICES")}
    with pytest.raises(ValueError, match=r"--jobs must be >= 1, got 0"):
        run_all(ablations, 0, ["0"])


def test_figures_of_no_instance(tmp_path):
    """A set without small instances has NaN for them, with every seed."""
    values = {name: [50.0, 60.0] for name in (*HEADLINE, *SHOWN)} | {
        "IA-mIoU_S": [math.nan, math.nan]
    }
    row = SeedGain("some", "", "CE", (0, 1), values, {}, 0.5)
    write_seed_gains(tmp_path, "gains", [row])
    with open(tmp_path / "gains.csv", encoding="utf-8") as file:
        written = {line["figure"]: line for line in csv.DictReader(file)}
    assert (written["mIoU"]["mean"], written["mIoU"]["sd"]) == ("55.0000", "7.0711")
    assert written["IA-mIoU_S"]["mean"] == written["IA-mIoU_S"]["sd"] == ""
