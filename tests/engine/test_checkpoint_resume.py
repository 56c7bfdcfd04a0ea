"""Resuming: only one's own run, from the newest checkpoint that is whole."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from d2_smallobj.engine import SafeCheckpointer, TwoTaskTrainer
from d2_smallobj.engine.checkpoint import earlier_checkpoints
from d2_smallobj.engine.setup import config_changes, fingerprint, flatten

DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": lambda path: flip(path),
    "missing": lambda path: path.unlink(),
    "no run": lambda path: torch.save([1, 2], path),
}


def flip(path):
    """Change one bit of the first convolution's weights."""
    weights = torch.load(path, weights_only=True)["model"]["backbone.stem.conv1.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes())] ^= 1
    path.write_bytes(bytes(content))


def copy_run(folder, target):
    shutil.copytree(folder, target)
    return target


@pytest.fixture(scope="module")
def finished(train_server, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train_server.train(folder, {"SMALLOBJ.EWC.FISHER": "online"}).code == 0
    return folder


@pytest.fixture
def final(finished):
    return torch.load(finished / "model_final.pth", weights_only=True)


@pytest.fixture
def resume(train_server, tiny):
    """Function: resume a run to its end in another process; returns its log and last weights."""

    def run(folder, *overrides):
        answer = train_server.train(folder, tiny.ONLINE, *overrides, arguments=["--resume"])
        assert answer.code == 0, answer.stderr
        log = answer.stdout.partition("Saving checkpoint")[0]
        return log, torch.load(folder / "model_final.pth", weights_only=True)

    return run


# ---- Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_run_goes_on_from_the_checkpoint_before(
    resume, finished, final, tmp_path, assert_same, damage
):
    folder = copy_run(finished, tmp_path / "run")
    DAMAGE[damage](folder / "model_final.pth")
    log, ended = resume(folder)
    assert f"{folder}/model_final.pth" in log
    assert f"resumes from the checkpoint before: {folder}/model_0000005.pth" in log
    assert "Resumed at iteration 6" in log
    assert_same(ended, final)


def test_several_damaged_checkpoints_are_passed_over(
    resume, finished, final, tmp_path, assert_same
):
    folder = copy_run(finished, tmp_path / "run")
    for name in ("model_final", "model_0000005"):
        DAMAGE["cut"](folder / f"{name}.pth")
    log, ended = resume(folder)
    assert f"checkpoint before: {folder}/model_task_a.pth" in log
    assert "Resumed at iteration 4" in log
    assert_same(ended, final)


def test_no_whole_checkpoint_is_an_error(make_trainer, tiny, finished, tmp_path):
    folder = copy_run(finished, tmp_path / "run")
    for path in folder.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"model_final\.pth cannot be .*model_0000002\.pth cannot be .*no checkpoint is left",
    ):
        make_trainer(tiny.ONLINE, folder=folder, resume=True)


@pytest.mark.parametrize("content", ["", "nonsense", "../elsewhere.pth", "model_9999999.pth"])
def test_a_wrong_name_of_the_last_checkpoint(make_trainer, tiny, finished, tmp_path, content):
    folder = copy_run(finished, tmp_path / "run")
    shutil.copy(folder / "model_0000002.pth", tmp_path / "elsewhere.pth")
    (folder / "last_checkpoint").write_text(content)
    trainer = make_trainer(tiny.ONLINE, folder=folder, resume=True)
    assert trainer.start_iter == 8
    assert trainer.iter == 7


def test_an_older_runs_later_checkpoints_do_not_count(
    make_trainer, make_config, tiny, finished, tmp_path
):
    folder = copy_run(finished, tmp_path / "run")
    cfg = make_config(tiny.ONLINE, folder=folder)
    (folder / "last_checkpoint").write_text("model_0000005.pth")
    DAMAGE["cut"](folder / "model_0000005.pth")
    found = earlier_checkpoints(str(folder), str(folder / "model_0000005.pth"), cfg)
    assert [path.split("/")[-1] for path in found] == ["model_task_a.pth", "model_0000002.pth"]
    assert make_trainer(tiny.ONLINE, folder=folder, resume=True).start_iter == 4


def test_one_flipped_bit_is_found_wherever_weights_are(finished, final, tmp_path):
    """torch itself would load other weights without a word."""
    path = tmp_path / "model.pth"
    content = (finished / "model_final.pth").read_bytes()
    for name in ("backbone.stem.conv1.weight", "sem_seg_head.aspp.0.bias"):
        damaged = bytearray(content)
        damaged[content.index(final["model"][name].numpy().tobytes()) + 2] ^= 1
        path.write_bytes(bytes(damaged))
        assert not torch.equal(
            torch.load(path, weights_only=True)["model"][name], final["model"][name]
        )
        with pytest.raises(ValueError, match=r"model\.pth cannot be read.*data/\d+ does not have"):
            SafeCheckpointer(nn.Linear(1, 1)).load(str(path))


def test_two_processes_fall_back_together(train_server, tiny, finished, final, tmp_path):
    folder = copy_run(finished, tmp_path / "run")
    DAMAGE["cut"](folder / "model_final.pth")
    answer = train_server.train(folder, tiny.ONLINE, arguments=["--resume"], world=2)
    assert answer.codes == [0, 0], answer.stderr
    for log in ("log.txt", "log.txt.rank1"):
        assert "Resumed at iteration 6" in (folder / log).read_text()
    resumed = torch.load(folder / "model_final.pth", weights_only=True)
    # Two processes share the batch: the same samples, the means taken over each half.
    assert resumed["iteration"] == final["iteration"]
    assert resumed["model"].keys() == final["model"].keys()


# ---- Another config ----------------------------------------------------------------------------


REFUSED = {
    "SOLVER.BASE_LR": (0.5, "SOLVER.BASE_LR 0.02 there, 0.5 now"),
    "SOLVER.MAX_ITER": (9, "SOLVER.MAX_ITER 8 there, 9 now"),
    "SOLVER.IMS_PER_BATCH": (4, "SOLVER.IMS_PER_BATCH 2 there, 4 now"),
    "SEED": (3, "SEED 0 there, 3 now"),
    "DATASETS.TRAIN": ("('smallobj_demo_train_gt',)", r"DATASETS.TRAIN \['smallobj_demo_train'\]"),
    "MODEL.PIXEL_MEAN": ("[1.0, 2.0, 3.0]", r"PIXEL_MEAN \[104.008, .* now"),
    "SMALLOBJ.TAU": (2.0, "SMALLOBJ.TAU 5.0 there, 2.0 now"),
    "SMALLOBJ.CROP_SIZE": ("[32, 48]", r"CROP_SIZE \[48, 48\] there, \[32, 48\] now"),
    "SMALLOBJ.TASK_B.LOSS": ("cross_entropy", "TASK_B.LOSS 'size_weighted' there"),
    "SMALLOBJ.TASK_A.ITERS": (7, "SMALLOBJ.TASK_A.ITERS 4 there, 7 now"),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (9, "NUM_CLASSES 7 there, 9 now"),
}


@pytest.fixture
def in_task_b(finished, tmp_path):
    folder = copy_run(finished, tmp_path / "run")
    (folder / "last_checkpoint").write_text("model_0000005.pth")
    return folder


@pytest.mark.parametrize("key", REFUSED)
def test_another_config_is_refused_with_the_difference(make_trainer, tiny, in_task_b, key):
    value, told = REFUSED[key]
    with pytest.raises(
        ValueError, match=rf"model_0000005\.pth was written by another config: .*{told}.*--resume"
    ):
        make_trainer(tiny.ONLINE, {key: value}, folder=in_task_b, resume=True)


def test_all_differences_are_listed(make_trainer, tiny, in_task_b):
    changes = {"SOLVER.BASE_LR": 0.5, "SMALLOBJ.TAU": 2.0, "SMALLOBJ.EWC.LAMBDA": 0.5}
    with pytest.raises(
        ValueError, match=r"BASE_LR 0\.02 there, 0\.5 now; SMALLOBJ\.TAU 5"
    ) as caught:
        make_trainer(tiny.ONLINE, changes, folder=in_task_b, resume=True)
    assert "LAMBDA" not in str(caught.value)


def test_keys_without_effect_may_change(resume, in_task_b, final, assert_same):
    changes = {
        "MODEL.WEIGHTS": "/elsewhere.pth",
        "SOLVER.CHECKPOINT_PERIOD": 100,
        "DATALOADER.NUM_WORKERS": 1,
        "TEST.EVAL_PERIOD": 0,
        "SMALLOBJ.EVAL_TASK_A": False,
        "DATASETS.TEST": "('smallobj_demo_train_gt',)",
    }
    log, ended = resume(in_task_b, changes)
    assert_same(ended, final)
    assert "the run continues with" not in log


def test_the_strength_may_change_and_is_told(make_trainer, tiny, in_task_b, log):
    make_trainer(tiny.ONLINE, {"SMALLOBJ.EWC.LAMBDA": 0.5}, folder=in_task_b, resume=True)
    assert "the run continues with SMALLOBJ.EWC.LAMBDA 1.0 there, 0.5 now" in log.text


def test_the_second_task_may_change_before_it_begins(make_trainer, tiny, finished, tmp_path, log):
    """One task A serves several second tasks."""
    folder = copy_run(finished, tmp_path / "run")
    (folder / "last_checkpoint").write_text("model_task_a.pth")
    changes = {"SMALLOBJ.TASK_B.LOSS": "cross_entropy", "SMALLOBJ.EWC.STEP": "proximal"}
    assert make_trainer(tiny.ONLINE, changes, folder=folder, resume=True).start_iter == 4
    assert "TASK_B.LOSS 'size_weighted' there, 'cross_entropy' now" in log.text


def strip_config(path):
    """As an earlier version of the plugin wrote it."""
    content = torch.load(path, weights_only=True)
    del content["config"]
    torch.save(content, path)


def test_a_checkpoint_without_a_config_resumes(resume, in_task_b, final, assert_same):
    strip_config(in_task_b / "model_0000005.pth")
    assert_same(resume(in_task_b)[1], final)


def test_a_longer_task_a_inside_task_b_is_refused_without_a_config_too(
    make_trainer, tiny, in_task_b
):
    strip_config(in_task_b / "model_0000005.pth")
    with pytest.raises(
        ValueError, match=r"another config: SMALLOBJ\.TASK_A\.ITERS at most 5 there"
    ):
        make_trainer(tiny.ONLINE, {"SMALLOBJ.TASK_A.ITERS": 7}, folder=in_task_b, resume=True)


def test_weights_alone_cannot_be_resumed(make_trainer, tiny, in_task_b):
    path = in_task_b / "model_0000005.pth"
    torch.save(torch.load(path, weights_only=True)["model"], path)
    with pytest.raises(ValueError, match=r"model_0000005\.pth holds weights, but not the state of"):
        make_trainer(tiny.ONLINE, folder=in_task_b, resume=True)


def test_two_processes_refuse_together(train_server, tiny, in_task_b):
    other = {**tiny.ONLINE, "SMALLOBJ.TAU": 2.0}
    answer = train_server.train(in_task_b, other, arguments=["--resume"], world=2)
    assert answer.codes[0] == 1
    assert "SMALLOBJ.TAU 5.0 there, 2.0 now" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_evaluation_is_told_of_another_model_only(make_config, in_task_b, tiny, log):
    """Other schedules make no difference to it, another mean does."""
    changes = {"SOLVER.BASE_LR": 0.5, "MODEL.PIXEL_MEAN": "[1.0, 2.0, 3.0]"}
    cfg = make_config(tiny.ONLINE, changes, folder=in_task_b)
    checkpointer = SafeCheckpointer(TwoTaskTrainer.build_model(cfg), str(in_task_b), cfg=cfg)
    checkpointer.resume_or_load("", resume=True, complete=True)
    assert "was trained with another model or input: MODEL.PIXEL_MEAN [104.008" in log.text
    assert "BASE_LR" not in log.text


# ---- The fingerprint ---------------------------------------------------------------------------


def test_the_fingerprint_is_plain_and_leaves_out_what_has_no_effect(make_config, tmp_path):
    cfg = make_config()
    found = fingerprint(cfg)
    torch.save(found, tmp_path / "fingerprint.pth")
    assert torch.load(tmp_path / "fingerprint.pth", weights_only=True) == found
    assert {"MODEL.RESNETS.DEPTH", "SEED", "SOLVER.MAX_ITER", "SMALLOBJ.EWC.LAMBDA"} <= set(found)
    for key in ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "SMALLOBJ.TEST.FLIP"):
        assert key in dict(flatten(cfg))
        assert key not in found


def test_keys_that_one_side_does_not_know_say_nothing(make_config):
    cfg = make_config()
    saved = {**fingerprint(cfg), "SMALLOBJ.FUTURE": 1}
    del saved["SMALLOBJ.TAU"]
    assert config_changes({"config": saved}, cfg) == {}
    saved["SEED"] = 7
    assert config_changes({"config": saved}, cfg) == {"SEED": "SEED 7 there, 0 now"}
