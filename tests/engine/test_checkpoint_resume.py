"""Resuming: only one's own run, from the newest checkpoint that is whole."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_runs import ONLINE, saved
from torch import nn

from d2_smallobj.engine import SafeCheckpointer, TwoTaskTrainer
from d2_smallobj.engine.checkpoint import earlier_checkpoints
from d2_smallobj.engine.setup import config_changes, fingerprint, flatten

DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(flipped(path, "backbone.stem.conv1.weight")),
    "missing": lambda path: path.unlink(),
    "no run": lambda path: torch.save([1, 2], path),
}


def flipped(path, name):
    """The content with one bit of a tensor changed."""
    weights = torch.load(path, weights_only=True)["model"][name]
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 2] ^= 1
    return bytes(content)


@pytest.fixture
def run(undisturbed, tmp_path):
    """A copy of the folder of a run that nobody disturbed."""
    return shutil.copytree(undisturbed(ONLINE)[0], tmp_path / "run")


@pytest.fixture
def in_task_b(run):
    (run / "last_checkpoint").write_text("model_0000005.pth")
    return run


@pytest.fixture
def final(undisturbed):
    return saved(undisturbed(ONLINE)[0])


@pytest.fixture
def resumed(make_trainer):
    """Function: a trainer that has resumed in a folder."""
    return lambda folder, *options: make_trainer(ONLINE, *options, folder=folder, resume=True)


@pytest.fixture
def resume(train_server):
    """Function: resume a run to its end in another process; returns its log and last weights."""

    def finish(folder, *overrides):
        answer = train_server.finish(folder, ONLINE, *overrides, arguments=["--resume"])
        return answer.stdout.partition("Saving checkpoint")[0], saved(folder)

    return finish


# ---- Damage ------------------------------------------------------------------------------------


ONE_BEFORE = ("model_0000005", 6)
CASES = [
    *((damage, ["model_final"], ONE_BEFORE) for damage in DAMAGE),
    ("cut", ["model_final", "model_0000005"], ("model_task_a", 4)),
]


@pytest.mark.parametrize(("damage", "names", "expected"), CASES)
def test_the_run_goes_on_from_the_checkpoint_before(
    resume, run, final, assert_same, damage, names, expected
):
    for name in names:
        DAMAGE[damage](run / f"{name}.pth")
    log, ended = resume(run)
    assert f"{run}/model_final.pth" in log
    assert f"resumes from the checkpoint before: {run}/{expected[0]}.pth" in log
    assert f"Resumed at iteration {expected[1]}" in log
    assert_same(ended, final)


def test_no_whole_checkpoint_is_an_error(resumed, run):
    for path in run.glob("*.pth"):
        path.write_bytes(b"")
    told = r"model_final\.pth cannot be .*model_0000002\.pth cannot be .*no checkpoint is left"
    with pytest.raises(ValueError, match=told):
        resumed(run)


@pytest.mark.parametrize("content", ["", "nonsense", "../elsewhere.pth", "model_9999999.pth"])
def test_a_wrong_name_of_the_last_checkpoint(resumed, run, content):
    shutil.copy(run / "model_0000002.pth", run.parent / "elsewhere.pth")
    (run / "last_checkpoint").write_text(content)
    trainer = resumed(run)
    assert (trainer.start_iter, trainer.iter) == (8, 7)


def test_an_older_runs_later_checkpoints_do_not_count(resumed, make_config, in_task_b):
    path = in_task_b / "model_0000005.pth"
    DAMAGE["cut"](path)
    found = earlier_checkpoints(str(in_task_b), str(path), make_config(ONLINE, folder=in_task_b))
    assert [path.split("/")[-1] for path in found] == ["model_task_a.pth", "model_0000002.pth"]
    assert resumed(in_task_b).start_iter == 4


@pytest.mark.parametrize("name", ["backbone.stem.conv1.weight", "sem_seg_head.aspp.0.bias"])
def test_one_flipped_bit_is_found_wherever_weights_are(run, final, name):
    """torch itself would load other weights without a word."""
    path = run / "model_final.pth"
    path.write_bytes(flipped(path, name))
    assert not torch.equal(saved(run)["model"][name], final["model"][name])
    with pytest.raises(ValueError, match=r"model_final\.pth cannot be read.*data/\d+ does not h"):
        SafeCheckpointer(nn.Linear(1, 1)).load(str(path))


def test_two_processes_fall_back_together(train_server, run, final):
    DAMAGE["cut"](run / "model_final.pth")
    train_server.finish(run, ONLINE, arguments=["--resume"], world=2)
    for log in ("log.txt", "log.txt.rank1"):
        assert "Resumed at iteration 6" in (run / log).read_text()
    # Two processes share the batch: the same samples, the means taken over each half.
    ended = saved(run)
    assert ended["iteration"] == final["iteration"]
    assert ended["model"].keys() == final["model"].keys()


# ---- Another config ----------------------------------------------------------------------------


REFUSED = [
    ({"SOLVER.BASE_LR": 0.5}, "SOLVER.BASE_LR 0.02 there, 0.5 now"),
    ({"SOLVER.MAX_ITER": 9}, "SOLVER.MAX_ITER 8 there, 9 now"),
    ({"SOLVER.IMS_PER_BATCH": 4}, "SOLVER.IMS_PER_BATCH 2 there, 4 now"),
    ({"SEED": 3}, "SEED 0 there, 3 now"),
    ({"DATASETS.TRAIN": "('smallobj_demo_train_gt',)"}, r"TRAIN \['smallobj_demo_train'\]"),
    ({"MODEL.PIXEL_MEAN": "[1.0, 2.0, 3.0]"}, r"PIXEL_MEAN \[104.008, .* now"),
    ({"SMALLOBJ.TAU": 2.0}, "SMALLOBJ.TAU 5.0 there, 2.0 now"),
    ({"SMALLOBJ.CROP_SIZE": "[32, 48]"}, r"CROP_SIZE \[48, 48\] there, \[32, 48\] now"),
    ({"SMALLOBJ.TASK_B.LOSS": "cross_entropy"}, "TASK_B.LOSS 'size_weighted' there"),
    ({"SMALLOBJ.TASK_A.ITERS": 7}, "SMALLOBJ.TASK_A.ITERS 4 there, 7 now"),
    ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9}, "NUM_CLASSES 7 there, 9 now"),
    # All differences that are refused, and no other.
    (
        {"SOLVER.BASE_LR": 0.5, "SMALLOBJ.TAU": 2.0, "SMALLOBJ.EWC.LAMBDA": 0.5},
        r"BASE_LR 0\.02 there, 0\.5 now; SMALLOBJ\.TAU 5\.0 there, 2\.0 now\. (?!.*LAMBDA)",
    ),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_another_config_is_refused_with_the_difference(resumed, in_task_b, changes, told):
    told = rf"model_0000005\.pth was written by another config: .*{told}.*--resume"
    with pytest.raises(ValueError, match=told):
        resumed(in_task_b, changes)


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


def test_the_penalty_and_the_second_task_may_change_and_this_is_told(resumed, run, log):
    """The task before it begins: one task A serves several second tasks."""
    (run / "last_checkpoint").write_text("model_0000005.pth")
    resumed(run, {"SMALLOBJ.EWC.LAMBDA": 0.5})
    assert "the run continues with SMALLOBJ.EWC.LAMBDA 1.0 there, 0.5 now" in log.text
    (run / "last_checkpoint").write_text("model_task_a.pth")
    changes = {"SMALLOBJ.TASK_B.LOSS": "cross_entropy", "SMALLOBJ.EWC.STEP": "proximal"}
    assert resumed(run, changes).start_iter == 4
    assert "TASK_B.LOSS 'size_weighted' there, 'cross_entropy' now" in log.text


def test_a_checkpoint_without_a_config_resumes(resume, resumed, in_task_b, final, assert_same):
    """As an earlier version of the plugin wrote it."""
    content = saved(in_task_b, "model_0000005")
    del content["config"]
    torch.save(content, in_task_b / "model_0000005.pth")
    told = r"another config: SMALLOBJ\.TASK_A\.ITERS at most 5 there"
    with pytest.raises(ValueError, match=told):
        resumed(in_task_b, {"SMALLOBJ.TASK_A.ITERS": 7})
    assert_same(resume(in_task_b)[1], final)


def test_weights_alone_cannot_be_resumed(resumed, in_task_b):
    torch.save(saved(in_task_b, "model_0000005")["model"], in_task_b / "model_0000005.pth")
    with pytest.raises(ValueError, match=r"model_0000005\.pth holds weights, but not the state of"):
        resumed(in_task_b)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c: c["trainer"].update(iteration=10**9),
            "last iteration is 1000000000, .* 0 to 7",
        ),
        (lambda c: c["trainer"].update(iteration=-1), "iteration must be an integer >= 0.* got -1"),
        (lambda c: c["trainer"].update(iteration="x"), "iteration must be an integer .* got 'x'"),
        (lambda c: c["trainer"].update(iteration=True), "iteration must be an integer .* got True"),
        (lambda c: c["trainer"].pop("iteration"), "not the state of a training run"),
        (lambda c: c.update(trainer=3), "not the state of a training run"),
        (lambda c: c.update(ewc=[1]), "'ewc' a dict, got 5 and a list"),
        (lambda c: c["trainer"].pop("_trainer"), "state of training in it is malformed .KeyErr"),
        (lambda c: c["trainer"].update(hooks=[]), "state of training in it is malformed .Attr"),
        (lambda c: c["trainer"]["_trainer"].update(optimizer={}), "malformed .KeyError"),
    ],
)
def test_an_impossible_state_is_refused(resumed, in_task_b, change, told):
    content = saved(in_task_b, "model_0000005")
    change(content)
    torch.save(content, in_task_b / "model_0000005.pth")
    with pytest.raises(ValueError, match=rf"^\S+model_0000005\.pth .*{told}"):
        resumed(in_task_b)


def test_two_processes_refuse_together(train_server, in_task_b):
    other = {**ONLINE, "SMALLOBJ.TAU": 2.0}
    answer = train_server.train(in_task_b, other, arguments=["--resume"], world=2)
    assert answer.codes[0] == 1
    assert "SMALLOBJ.TAU 5.0 there, 2.0 now" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_evaluation_is_told_of_another_model_only(make_config, in_task_b, log):
    """Other schedules make no difference to it, another mean does."""
    changes = {"SOLVER.BASE_LR": 0.5, "MODEL.PIXEL_MEAN": "[1.0, 2.0, 3.0]"}
    cfg = make_config(ONLINE, changes, folder=in_task_b)
    checkpointer = SafeCheckpointer(TwoTaskTrainer.build_model(cfg), str(in_task_b), cfg=cfg)
    checkpointer.resume_or_load("", resume=True, complete=True)
    assert "was trained with another model or input: MODEL.PIXEL_MEAN [104.008" in log.text
    assert "BASE_LR" not in log.text


# ---- The fingerprint ---------------------------------------------------------------------------


def test_the_fingerprint_is_plain_and_leaves_out_what_has_no_effect(make_config, tmp_path):
    cfg = make_config()
    found = fingerprint(cfg)
    torch.save(found, tmp_path / "fingerprint.pth")
    assert saved(tmp_path, "fingerprint") == found
    assert {"MODEL.RESNETS.DEPTH", "SEED", "SOLVER.MAX_ITER", "SMALLOBJ.EWC.LAMBDA"} <= set(found)
    without_effect = {"OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "SMALLOBJ.TEST.FLIP"}
    assert without_effect <= dict(flatten(cfg)).keys() - found.keys()


def test_keys_that_one_side_does_not_know_say_nothing(make_config):
    cfg = make_config()
    checkpoint = {"config": {**fingerprint(cfg), "SMALLOBJ.FUTURE": 1}}
    del checkpoint["config"]["SMALLOBJ.TAU"]
    assert config_changes(checkpoint, cfg) == {}
    checkpoint["config"]["SEED"] = 7
    assert config_changes(checkpoint, cfg) == {"SEED": "SEED 7 there, 0 now"}
