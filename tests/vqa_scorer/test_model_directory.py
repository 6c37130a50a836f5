"""Devices by name, on machines with any number of GPUs."""

from __future__ import annotations

import pytest
import torch

from leverplus.errors import InvalidConfig
from leverplus.web import read_settings
from vqa_scorer.engines.model_directory import choose_device
from vqa_scorer.settings import ScorerSettings


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def with_gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_gpu_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch, made_current: list[torch.device]) -> None:
    with_gpus(2, monkeypatch)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:0", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:0", "cuda:1"]
    assert [device.index for device in made_current] == [0, 0, 0, 1]
    assert str(choose_device("cpu")) == "cpu"
    with pytest.raises(InvalidConfig, match=r"LEVERPLUS_DEVICE: 'cuda:2' was asked for and torch sees 2 GPUs, cuda:0 to cuda:1"):
        choose_device("cuda:2")
    with_gpus(1, monkeypatch)
    with pytest.raises(InvalidConfig, match=r"'cuda:1' was asked for and torch sees cuda:0 alone"):
        choose_device("cuda:1")
    with_gpus(0, monkeypatch)
    assert str(choose_device("auto")) == "cpu"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InvalidConfig, match=f"'{name}' was asked for and torch sees no GPU"):
            choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps"])
def test_other_names_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidConfig, match="is none of auto, cpu, cuda"):
        choose_device(name)
    with pytest.raises(SystemExit):
        read_settings(ScorerSettings, {"LEVERPLUS_VLM": "/vlm", "LEVERPLUS_DEVICE": name})
    assert "LEVERPLUS_DEVICE" in capsys.readouterr().err
