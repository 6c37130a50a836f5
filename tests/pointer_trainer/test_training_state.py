"""What a training job leaves after every epoch, and that a later run of it ends as if there had been one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from trainer_processes import RL_DATA, write_training_data

from leverplus.checkpoints import load_checkpoint, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.errors import Cancelled, Conflict, TrainingDiverged
from leverplus.files import unfenced
from leverplus.store import LeaseLost
from pointer_trainer.context import JobContext
from pointer_trainer.jobs.train import train_selector
from pointer_trainer.training_state import StateFolder, TrainingState

EPOCHS, STEPS = 4, 10
CONFIG: dict[str, Any] = {
    "rce_epochs": EPOCHS, "hidden_dim": 8, "batch_size": 8, "rce_lr": 1e-2, "dropout": 0.3, "state_update": "gate",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """76 queries to train on (10 steps an epoch), 20 held out."""
    root = DataRoot(tmp_path / "data")
    write_training_data(root)
    return root


def train(
    root: DataRoot,
    job: str = "1",
    *,
    run: int = 1,
    stop_after: int | None = None,
    fence: Callable[[], None] = unfenced,
    **config: Any,
) -> Any:
    """Run `run` of job-<job>; with `stop_after` it is cancelled when it has reported so many steps."""
    steps: list[int] = []
    folder = root.run(f"job-{job}")
    folder.mkdir(parents=True, exist_ok=True)
    context = JobContext(
        job_id=f"job-{job}",
        config={"rl_data": [RL_DATA], "config": {**CONFIG, **config}},
        data_root=root,
        run_folder=folder,
        scorer_urls=(),
        threads=1,
        progress=lambda _phase, step, _total, _extra: steps.append(step),
        should_stop=lambda: stop_after is not None and len(steps) >= stop_after,
        logger=logging.getLogger("test"),
        run=run,
        fence=fence,
    )
    return train_selector(context)


def left(root: DataRoot, job: str, suffix: str = "") -> tuple[str, bytes, dict[str, Any]]:
    _, info = load_checkpoint(root.checkpoint(f"ckpt-{job}{suffix}"))
    return info.model_sha256, (root.run(f"job-{job}") / "metrics.jsonl").read_bytes(), info.metrics


def rows_of(root: DataRoot, job: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (root.run(f"job-{job}") / "metrics.jsonl").read_bytes().splitlines()]


def states(root: DataRoot, job: str = "1") -> list[str]:
    return sorted(path.name for path in root.run(f"job-{job}").glob("state-*"))


def test_a_run_goes_on_after_any_epoch_to_the_same_bits(root: DataRoot, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    train(root, "whole")
    assert states(root, "whole") == []
    for stop_after in (0, 3, STEPS, STEPS + 5, 2 * STEPS, 3 * STEPS + 9):
        job = f"cut-{stop_after}"
        with pytest.raises(Cancelled):
            train(root, job, stop_after=stop_after)
        # Cancelled before anything was judged there is no state, cancelled at the first step that of epoch 0.
        is_left = states(root, job) == ["state-1.safetensors"]
        assert is_left == (stop_after > 0)
        caplog.clear()
        torch.manual_seed(stop_after)
        train(root, job, run=2)
        assert left(root, job) == left(root, "whole")
        assert states(root, job) == []
        assert ("goes on after epoch" in caplog.text) == is_left


def require_the_same_bits(
    root: DataRoot, cuts: dict[int, str], suffixes: tuple[str, ...], config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled after so many steps, a run goes on from the state that is told and ends as the run `whole` did."""
    whole = train(root, "whole", **config)
    for stop_after, told in cuts.items():
        job = f"cut-{stop_after}"
        with pytest.raises(Cancelled):
            train(root, job, stop_after=stop_after, **config)
        caplog.clear()
        torch.manual_seed(stop_after)
        result = train(root, job, run=2, **config)
        assert f"goes on after epoch {told}" in caplog.text
        assert result["metrics"] == whole["metrics"]
        for suffix in suffixes:
            assert left(root, job, suffix) == left(root, "whole", suffix)
        assert states(root, job) == []


GRPO: dict[str, Any] = {"rce_epochs": 2, "grpo_epochs": 3, "rce_lr": 3e-3, "grpo_lr": 3e-4}


@pytest.mark.parametrize("form", ["safe", "reference"])
def test_grpo_goes_on_after_any_epoch_to_the_same_bits(root: DataRoot, form: str, caplog: pytest.LogCaptureFixture):
    """The reference's form adapts the KL's weight, which goes on from where it was; RCE's best epoch stays what it was."""
    config = {**GRPO, "grpo_form": form}
    caplog.set_level(logging.INFO)
    cuts = {19: "1 of phase rce", 21: "0 of phase grpo", 35: "1 of phase grpo", 41: "2 of phase grpo"}
    require_the_same_bits(root, cuts, ("", "-grpo"), config, caplog)
    phases = [(row["phase"], row["epoch"]) for row in rows_of(root, "whole")]
    assert phases == [("rce", 0), ("rce", 1), ("rce", 2), ("grpo", 0), ("grpo", 1), ("grpo", 2), ("grpo", 3)]
    assert (rows_of(root, "whole")[4]["kl_beta"] != 0.1) == (form == "reference")


ANSWERS: dict[str, Any] = {
    "answer_epochs": 3, "rce_epochs": 2, "state_update": "residual", "query_mlp": True, "num_layers": 0, "lr_schedule": "cosine",
}  # fmt: skip


def test_the_answers_phase_goes_on_to_the_same_bits(root: DataRoot, caplog: pytest.LogCaptureFixture):
    """Pools, and the demonstrations that its steps go on from, are drawn as in an undisturbed run."""
    caplog.set_level(logging.INFO)
    train(root, "steps", **ANSWERS)
    steps = next(row["step"] for row in rows_of(root, "steps") if row["phase"] == "answers" and row["epoch"] == 1)
    cuts = {steps + 1: "1 of phase answers", 3 * steps + 1: "0 of phase rce"}
    require_the_same_bits(root, cuts, ("-answers", ""), ANSWERS, caplog)


ALL_PHASES: dict[str, Any] = {"supervised_epochs": 2, "rce_epochs": 2, "grpo_epochs": 2, "supervised_lr": 3e-3, "grpo_lr": 3e-4}


def call_all_candidates_beams(root: DataRoot) -> None:
    path = root.rl_data(RL_DATA)
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"gen_method":"random"', b'"gen_method":"beam"'))
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("selector", "cuts"),
    [
        ({}, {15: "1 of phase supervised", 21: "0 of phase rce", 41: "0 of phase grpo"}),
        ({"num_layers": 0}, {35: "1 of phase rce"}),
        ({"architecture": "autoregressive", "state_update": "none"}, {15: "1 of phase supervised", 55: "1 of phase grpo"}),
    ],
    ids=["pointer", "bi-encoder", "autoregressive"],
)
def test_every_phase_of_every_selector_goes_on_to_the_same_bits(
    root: DataRoot, selector: dict[str, Any], cuts: dict[int, str], caplog: pytest.LogCaptureFixture
):
    """Where all candidates are beams, supervision takes the same ten steps an epoch as RCE."""
    call_all_candidates_beams(root)
    config = {**ALL_PHASES, **selector}
    caplog.set_level(logging.INFO)
    require_the_same_bits(root, cuts, ("-supervised", "", "-grpo"), config, caplog)


def test_what_a_run_left_between_its_checkpoints_is_made_anew(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    from pointer_trainer import results

    call_all_candidates_beams(root)
    train(root, "whole", **ALL_PHASES)
    saved: list[str] = []
    true_save = results.save_checkpoint

    def killed(folder: Path, *arguments: Any, **named: Any) -> Any:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(folder.name)
        return true_save(folder, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(root, "cut", **ALL_PHASES)
    assert saved == ["ckpt-cut-supervised", "ckpt-cut-grpo"]
    result = train(root, "cut", run=2, **ALL_PHASES)
    assert set(result["checkpoints"]) == {"supervised", "rce", "grpo"}
    for suffix in ("-supervised", "", "-grpo"):
        assert left(root, "cut", suffix) == left(root, "whole", suffix)


def test_rce_that_diverges_at_once_keeps_what_supervision_reached(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    from pointer_trainer import losses

    call_all_candidates_beams(root)
    true_loss = losses.rce_loss

    def spoiled(*arguments: Any) -> losses.LossOutputs:
        outputs = true_loss(*arguments)
        broken = torch.is_grad_enabled()
        return losses.LossOutputs(outputs.loss * float("nan"), outputs.metrics) if broken else outputs

    monkeypatch.setattr(losses, "rce_loss", spoiled)
    with pytest.raises(TrainingDiverged, match=r"is kept as checkpoint ckpt-1-supervised-epoch-\d") as raised:
        train(root, **ALL_PHASES)
    _, info = load_checkpoint(root.checkpoint(raised.value.context["kept"]))
    assert info.metrics["phase"] == "supervised"
    assert not root.checkpoint("ckpt-1").exists()


def test_grpo_that_stopped_stays_stopped(root: DataRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A run that ended between GRPO's last epoch and its checkpoints trains no further epoch."""
    from pointer_trainer import training

    config = {**GRPO, "rce_lr": 1e-2, "grpo_lr": 1.0}
    train(root, "whole", **config)
    assert [row["epoch"] for row in rows_of(root, "whole")] == [0, 1, 2, 0, 1]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_result", killed)
        with pytest.raises(KeyboardInterrupt):
            train(root, "cut", **config)
    caplog.clear()
    train(root, "cut", run=2, **config)
    assert "grpo stops after epoch 1" in caplog.text
    assert left(root, "cut") == left(root, "whole")
    assert left(root, "cut", "-grpo") == left(root, "whole", "-grpo")


def test_a_run_that_is_cut_off_again_and_again_comes_to_the_same_end(root: DataRoot):
    train(root, "whole")
    for run in range(1, EPOCHS + 1):
        with pytest.raises(Cancelled):
            train(root, "cut", run=run, stop_after=STEPS + 1)
        assert states(root, "cut") == [f"state-{run}.safetensors"]
        if run == EPOCHS - 1:
            break
    train(root, "cut", run=EPOCHS)
    assert left(root, "cut") == left(root, "whole")


def test_the_state_of_another_run_is_told_and_left_alone(root: DataRoot, caplog: pytest.LogCaptureFixture):
    train(root, "other", seed=1)
    with pytest.raises(Cancelled):
        train(root, stop_after=2 * STEPS + 1)
    train(root, run=2, seed=1)
    assert "starts anew: state-1.safetensors was left by a run with another training" in caplog.text
    assert left(root, "1") == left(root, "other")


def test_a_damaged_state_is_told_and_passed_over(root: DataRoot, caplog: pytest.LogCaptureFixture):
    train(root, "whole")
    with pytest.raises(Cancelled):
        train(root, stop_after=2 * STEPS + 1)
    path = root.run("job-1") / "state-1.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    train(root, run=2)
    assert "state-1.safetensors cannot be read and is passed over" in caplog.text
    assert left(root, "1") == left(root, "whole")


def test_a_run_without_the_lease_writes_nothing(root: DataRoot):
    with pytest.raises(Cancelled):
        train(root, run=2, stop_after=STEPS + 1)
    folder = root.run("job-1")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = files()

    def refuse() -> None:
        raise LeaseLost(job_id="job-1", version=1)

    with pytest.raises(LeaseLost):
        train(root, run=1, fence=refuse)
    assert files() == before
    assert not root.checkpoint("ckpt-1").exists()


def test_not_even_a_late_write_touches_the_state_of_a_later_run(tmp_path: Path):
    """What comes between the fence and the rename no check can see: runs write files of different names."""
    first, second = (StateFolder(tmp_path, run, {}, fence=unfenced, logger=logging.getLogger()) for run in (1, 2))
    second.save(TrainingState(phase="rce", epoch=5))
    first.save(TrainingState(phase="rce", epoch=1))
    found = StateFolder(tmp_path, 3, {}, fence=unfenced, logger=logging.getLogger()).newest()
    assert found is not None
    assert found.epoch == 5
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_state_comes_back_whole(tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = TrainingState(phase="grpo", epoch=2, step=7, values={"kl_beta": 0.1}, tensors={"reference": {"w": torch.ones(2)}})
    state.rows = [{"phase": "grpo", "epoch": 2, "loss": 0.1}]
    state.capture(model, optimizer)
    state.keep_best()
    folder = StateFolder(tmp_path, 1, {"seed": (1, 2)}, fence=unfenced, logger=logging.getLogger())
    folder.save(state)
    drawn = torch.rand(4)
    found = folder.newest()
    assert found is not None
    assert (found.phase, found.epoch, found.step, found.rows, found.best) == ("grpo", 2, 7, state.rows, {"grpo": state.rows[0]})
    assert found.values["kl_beta"] == 0.1
    assert torch.equal(found.tensors["reference"]["w"], torch.ones(2))
    other = torch.nn.Linear(3, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    found.restore(other)
    found.restore_optimizer(other_optimizer)
    assert torch.equal(torch.rand(4), drawn)
    for one, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        its_optimizer.zero_grad()
        one(torch.full((1, 3), 0.5)).square().sum().backward()
        its_optimizer.step()
    assert torch.equal(model.weight, other.weight)


def test_divergence_keeps_the_best_epoch_before_and_says_where(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    from pointer_trainer import losses

    train(root, "good", rce_epochs=2)
    calls = 0
    true_loss = losses.rce_loss

    def spoiled(*arguments: Any) -> losses.LossOutputs:
        nonlocal calls
        calls += torch.is_grad_enabled()
        outputs = true_loss(*arguments)
        return losses.LossOutputs(outputs.loss * float("nan"), outputs.metrics) if calls > 2 * STEPS + 3 else outputs

    monkeypatch.setattr(losses, "rce_loss", spoiled)
    with pytest.raises(TrainingDiverged, match=r"in epoch 3, step 23;.*is kept as checkpoint ckpt-bad-epoch-\d") as raised:
        train(root, "bad", temperature_start=1.0, temperature_end=1.0)
    kept = raised.value.context["kept"]
    tensors, info = load_checkpoint(root.checkpoint(kept))
    assert kept == f"ckpt-bad-epoch-{info.metrics['epoch']}"
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    rows = rows_of(root, "bad")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert info.metrics == max(rows[1:], key=lambda row: row["held_out_expected_reward"])
    assert not root.checkpoint("ckpt-bad").exists()
    # Resumed by hand it goes on after epoch 2, and here diverges at once; what is kept stays.
    with pytest.raises(TrainingDiverged, match="is kept as checkpoint"):
        train(root, "bad", run=2, temperature_start=1.0, temperature_end=1.0)
    calls = 2 * STEPS + 3
    with pytest.raises(TrainingDiverged, match="no epoch was finished before, so nothing is kept"):
        train(root, "first", rce_lr=1e-3)


def test_a_checkpoint_that_is_there_already_is_no_ones_to_overwrite(root: DataRoot):
    train(root)
    tensors, info = load_checkpoint(root.checkpoint("ckpt-1"))
    with pytest.raises(Conflict, match="exists already"):
        save_checkpoint(root.checkpoint("ckpt-1"), tensors, info)
    assert train(root, run=2)["checkpoint_id"] == "ckpt-1"
