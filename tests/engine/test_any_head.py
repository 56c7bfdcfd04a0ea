"""detectron2's own heads by config alone: both tasks train, resume, predict; or a clear error."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import metrics_rows, saved

import d2_smallobj
from d2_smallobj.engine import TwoTaskTrainer, build_config
from d2_smallobj.modeling import detectron2_heads
from detectron2.utils.env import seed_all_rng

EMBEDDED = d2_smallobj.host().name == "embedded"
HEADS = {"semfpn": "SemSegFPNHead", "deeplabv3plus": "DeepLabV3PlusHead"}
needs_embedded_host = pytest.mark.skipif(not EMBEDDED, reason="about the embedded host")


def needs_real_host(test):
    skip = pytest.mark.skipif(EMBEDDED, reason="the stand-in has none of these heads")
    return pytest.mark.real_host(skip(test))


TINY = (
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "SMALLOBJ.CROP_SIZE", [64, 64]),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 3),
    *("SOLVER.WARMUP_ITERS", 0, "SMALLOBJ.TASK_A.ITERS", 2, "SMALLOBJ.EWC.NUM_IMAGES", 2),
)


@pytest.fixture
def configured(datasets, tiny, tmp_path):
    """Function: the config of a head's demo, a few iterations long."""

    def make(name, *options):
        options = map(str, (*TINY, "OUTPUT_DIR", tmp_path, *options))
        return build_config(f"{tiny.repository}/configs/demo_sbce_{name}.yaml", list(options))

    return make


@needs_real_host
@pytest.mark.parametrize("name", HEADS)
def test_both_tasks_train_and_resume(configured, tmp_path, name):
    cfg = configured(name)
    seed_all_rng(0)
    trainer = TwoTaskTrainer(cfg)
    trainer.resume_or_load(resume=False)
    head = trainer._trainer.model.sem_seg_head
    assert type(head).__name__ == HEADS[name]
    before = {key: value.clone() for key, value in head.state_dict().items()}
    results = trainer.train()
    assert set(trainer._results) == {"A", "B"}
    assert 0 <= results["small_objects"]["IA-mIoU"] <= 100
    moved = [key for key, value in head.named_parameters() if not torch.equal(value, before[key])]
    assert moved == [key for key, _ in head.named_parameters()]
    # The penalty holds the head's parameters too, and acted.
    assert trainer._trainer.ewc.anchored
    assert any(row.get("loss_ewc", 0) > 0 for row in metrics_rows(tmp_path))

    final = saved(tmp_path)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    resumed = TwoTaskTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    torch.testing.assert_close(saved(tmp_path)["model"], final["model"])


@needs_real_host
@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_the_size_weighted_one(configured, name):
    cfg = configured(name, "SMALLOBJ.TASK_A.LOSS", "size_weighted")
    model = TwoTaskTrainer.build_model(cfg)
    batch = next(iter(TwoTaskTrainer.build_train_loader(cfg)))
    state = torch.get_rng_state()
    weighted = model(batch)["loss_sem_seg"]
    model.loss.size_weighted = False
    torch.set_rng_state(state)
    assert model(batch)["loss_sem_seg"] != weighted


@needs_real_host
@pytest.mark.parametrize("name", HEADS)
def test_configs_for_voc_build(tiny, name):
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50"]
    cfg = build_config(f"{tiny.repository}/configs/voc_sbce_{name}.yaml", options)
    model = TwoTaskTrainer.build_model(cfg).eval()
    with torch.no_grad():
        output = model([{"image": torch.zeros(3, 97, 65)}])[0]["sem_seg"]
    assert output.shape == (21, 97, 65)


MOBILE = {
    "semfpn": {"MODEL.BACKBONE.NAME": "build_mobilenet_v2_fpn_backbone"},
    "deeplabv3plus": {"MODEL.BACKBONE.NAME": "build_mobilenet_v2_backbone"},
}
NARROW = {"SMALLOBJ.MOBILENET.WIDTH": 0.25}


@needs_real_host
@pytest.mark.parametrize("name", HEADS)
def test_a_mobilenet_in_their_configs_by_one_key(configured, tiny, name):
    options = tiny.as_options(MOBILE[name], NARROW)
    model = TwoTaskTrainer.build_model(configured(name, *options))
    assert any("features.13.project.weight" in key for key in model.state_dict())
    losses = model(next(iter(TwoTaskTrainer.build_train_loader(configured(name, *options)))))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    # The plain head on the plain features.
    features = "['res2', 'res3', 'res4', 'res5']"
    plain = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", features, "MODEL.RESNETS.OUT_FEATURES", features)
    if name == "semfpn":
        options += tiny.as_options(MOBILE["deeplabv3plus"])
        cfg = configured(name, *options, *plain)
        model = TwoTaskTrainer.build_model(cfg)
    with torch.no_grad():
        output = model.eval()([{"image": torch.zeros(3, 97, 65)}])[0]["sem_seg"]
    assert output.shape == (7, 97, 65)


@pytest.mark.parametrize(("fisher", "step"), [("online", "gradient"), ("empirical", "proximal")])
def test_a_mobilenet_trains_two_clipped_tasks(make_trainer, tiny, monkeypatch, fisher, step):
    """The config for training without a GPU, but for a few narrow blocks of random weights."""
    monkeypatch.setattr(tiny, "config_file", "Base-MobileNetV2.yaml")
    features = {
        f"MODEL.{key}": "['res3']" for key in ("RESNETS.OUT_FEATURES", "SEM_SEG_HEAD.IN_FEATURES")
    }
    sets = {"DATASETS.TRAIN": "('smallobj_demo_train',)", "DATASETS.TEST": "('smallobj_demo_val',)"}
    net = {"MODEL.WEIGHTS": "''", "MODEL.RESNETS.NORM": "BN", "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7}
    ewc = {"SMALLOBJ.EWC.FISHER": fisher, "SMALLOBJ.EWC.STEP": step}
    trainer = make_trainer(features, sets, net, NARROW, ewc)
    before = {key: p.clone() for key, p in trainer.model.named_parameters()}
    assert type(trainer.optimizer).__name__ == "FullModelClipping"
    results = trainer.train()
    assert set(trainer._results) == {"A", "B"}
    assert 0 <= results["small_objects"]["IA-mIoU"] <= 100
    assert not any(torch.equal(p, before[key]) for key, p in trainer.model.named_parameters())
    penalties = [value for value, _ in trainer.storage.history("loss_ewc").values()]
    assert penalties[0] == 0 < penalties[-1]


@needs_real_host
def test_deeplabs_keys_are_there_only_when_it_is_named(configured):
    assert "PROJECT_CHANNELS" in configured("deeplabv3plus").MODEL.SEM_SEG_HEAD
    assert "PROJECT_CHANNELS" not in configured("semfpn").MODEL.SEM_SEG_HEAD
    named = ["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead"]
    cfg = build_config("", [*named, "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[8]"])
    assert cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS == [8]


@needs_real_host
def test_an_installation_without_the_project_is_named(monkeypatch):
    projects = {"MyHead": "detectron2.projects.nothing"}
    monkeypatch.setattr(detectron2_heads, "PROJECT_PARTS", projects)
    with pytest.raises(ValueError, match=r"\['MyHead'\] need detectron2\.projects\.nothing, which"):
        build_config("", ["MODEL.SEM_SEG_HEAD.NAME", "MyHead"])


MISSING = {
    "semfpn": r"BACKBONE\.NAME 'build_resnet_fpn_backbone'",
    "deeplabv3plus": r"SEM_SEG_HEAD\.NAME 'DeepLabV3PlusHead'",
}


@needs_embedded_host
@pytest.mark.parametrize("config", ["demo_sbce", "voc_sbce"])
@pytest.mark.parametrize("name", HEADS)
def test_the_embedded_host_says_what_is_missing(tiny, config, name):
    told = (
        rf"{MISSING[name]} needs the real detectron2 \(https://.*\); the embedded host that "
        r"runs here has (build_dilated_resnet_backbone|DeepLabV2Head)"
    )
    with pytest.raises(ValueError, match=told):
        build_config(f"{tiny.repository}/configs/{config}_{name}.yaml")
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD\.NAME 'SemSegFPNHead' needs the real"):
        build_config("", ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"])


def test_unknown_names_get_a_hint(tmp_path):
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD\.NAME: unknown.*mean 'DeepLabV2Head'\?"):
        build_config("", ["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV2Hed"])
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL:\n  BACKBONE:\n    NAME: build_dilated_resnet\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.NAME: unknown.*_resnet_backbone'\?"):
        build_config(str(path))
