"""LoRA adapters that the tests make themselves, against peft's own generate."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from leverplus.errors import InvalidCheckpoint, NotFound, Unavailable
from leverplus.files import file_sha256
from leverplus.prompts import SHORT_ANSWER, Shot
from leverplus.web import read_settings
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.transformers import TransformersEngine
from vqa_scorer.settings import ScorerSettings

StockVlm = Callable[[str], Path]

# peft asks this transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def prompts(tmp_path: Path) -> list[ScoringPrompt]:
    shots: list[Shot] = []
    for number, colour in enumerate(["red", "green", "blue", "brown"]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 64), colour).save(path)
        shots.append(Shot(path, f"{'which ' * number}colour?", colour))
    return [ScoringPrompt(tuple(shots[:count]), Shot(shots[3].image, "and this one?")) for count in (0, 1, 2)]


def make_adapter(vlm: Path, folder: Path) -> Path:
    """An adapter of rank 4 to the attention of the language model, large enough to change answers."""
    model: Any = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def loaded(vlm: Path, lora: Path | None) -> TransformersEngine:
    engine = TransformersEngine(vlm, lora=lora, device="cpu", dtype="float32")
    engine.load()
    return engine


def peft_answer(vlm: Path, lora: Path, prompt: ScoringPrompt) -> str:
    processor = load_processor(vlm)
    base: Any = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, lora).eval()
    messages = SHORT_ANSWER.messages(prompt.demonstrations, prompt.query)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.open(shot.image).convert("RGB") for shot in (*prompt.demonstrations, prompt.query)]
    inputs = processor(text=[text], images=[images], return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    return processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_answers_are_those_of_pefts_generate(
    family: str, random_vlm: Path, stock_vlm: StockVlm, prompts: list[ScoringPrompt], tmp_path: Path
) -> None:
    vlm = random_vlm if family == "qwen2_5_vl" else stock_vlm(family)
    lora = make_adapter(vlm, tmp_path / "lora")
    plain, adapted = loaded(vlm, None), loaded(vlm, lora)
    answers = adapted.generate(prompts)
    assert answers == [peft_answer(vlm, lora, prompt) for prompt in prompts]
    assert answers != plain.generate(prompts)
    without, found = plain.generation_fingerprint(), adapted.generation_fingerprint()
    assert found["vlm"].pop("lora") == {
        "weights_sha256": file_sha256(lora / "adapter_model.safetensors"),
        "config_sha256": file_sha256(lora / "adapter_config.json"),
        "r": 4,
        "alpha": 16,
    }
    assert found == without, "the adapter is all that tells them apart"


def test_adapters_that_do_not_fit_are_refused(random_vlm: Path, stock_vlm: StockVlm, tmp_path: Path) -> None:
    lora = make_adapter(random_vlm, tmp_path / "lora")

    def changed(name: str) -> Path:
        shutil.copytree(lora, tmp_path / name)
        return tmp_path / name

    with pytest.raises(NotFound, match=r"adapter_config\.json"):
        loaded(random_vlm, tmp_path / "absent")
    pickled = changed("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(NotFound, match="pickles are not read"):
        loaded(random_vlm, pickled)
    (changed("broken") / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(InvalidCheckpoint, match="does not fit the model"):
        loaded(random_vlm, tmp_path / "broken")
    (changed("nothing") / "adapter_config.json").write_text("[]")
    with pytest.raises(InvalidCheckpoint, match="no configuration of a LoRA adapter"):
        loaded(random_vlm, tmp_path / "nothing")
    config = json.loads((lora / "adapter_config.json").read_text())
    (changed("other") / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(InvalidCheckpoint, match="peft_type is 'IA3'"):
        loaded(random_vlm, tmp_path / "other")
    (changed("rank") / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(InvalidCheckpoint, match=r"does not fit the model .*size mismatch"):
        loaded(random_vlm, tmp_path / "rank")
    (changed("modules") / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["nothing_there"]}))
    with pytest.raises(InvalidCheckpoint, match="does not fit the model"):
        loaded(random_vlm, tmp_path / "modules")
    tensors = load_file(lora / "adapter_model.safetensors")
    lost = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != lost}, changed("half") / "adapter_model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="1 missing: "):
        loaded(random_vlm, tmp_path / "half")
    more = {**tensors, lost.replace("layers.0", "layers.7"): tensors[lost].clone()}
    save_file(more, changed("more") / "adapter_model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="1 unexpected: "):
        loaded(random_vlm, tmp_path / "more")


def test_an_adapter_among_the_models_files_is_refused(random_vlm: Path, tmp_path: Path) -> None:
    """transformers would add it where peft is installed, and not where it isn't."""
    shutil.copytree(random_vlm, tmp_path / "model")
    make_adapter(random_vlm, tmp_path / "model")
    with pytest.raises(InvalidCheckpoint, match="an adapter lies among the model's files"):
        loaded(tmp_path / "model", None)


def test_without_peft_it_says_how_to_get_it(random_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = make_adapter(random_vlm, tmp_path / "lora")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable, match=r"pip install leverplus-vqa-scorer\[lora\]"):
        loaded(random_vlm, lora)


def test_a_server_takes_no_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    server = {"LEVERPLUS_OPENAI_URL": "http://host", "LEVERPLUS_OPENAI_MODEL": "m", "LEVERPLUS_OPENAI_REVISION": "r"}
    with pytest.raises(SystemExit):
        read_settings(ScorerSettings, {**server, "LEVERPLUS_LORA": "/lora"})
    assert "LEVERPLUS_LORA adds to the model directory" in capsys.readouterr().err
    assert read_settings(ScorerSettings, {"LEVERPLUS_VLM": "/vlm", "LEVERPLUS_LORA": ""}).lora is None
