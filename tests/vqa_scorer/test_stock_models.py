"""Families without a decoder of ours, against transformers' own processor, generate and logits, one prompt at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from leverplus.errors import GenerationFailed, InvalidCheckpoint, InvalidConfig, InvalidInput
from leverplus.prompts import CHAT, SHORT_ANSWER, PromptTemplate, Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.packed import PackedQwen
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.stock import StockModel
from vqa_scorer.engines.transformers import TransformersEngine

StockVlm = Callable[[str], Path]
families = pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "idefics3", "gemma3"])


@pytest.fixture
def prompts(tmp_path: Path) -> list[ScoringPrompt]:
    """Pointers of length 0 to 3 over pictures of several sizes."""
    shots: list[Shot] = []
    for number, (colour, size) in enumerate([("red", (64, 64)), ("green", (90, 60)), ("blue", (64, 64)), ("brown", (60, 120))]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, colour).save(path)
        shots.append(Shot(path, f"{'which ' * number}colour?", colour))
    query = Shot(shots[0].image, "and this one?")
    return [ScoringPrompt(tuple(shots[1 : 1 + count]), query) for count in (2, 0, 3, 1)]


def loaded(folder: Path, **options: Any) -> TransformersEngine:
    engine = TransformersEngine(folder, device="cpu", dtype="float32", **options)
    engine.load()
    return engine


def stock_inputs(folder: Path, prompt: ScoringPrompt, template: PromptTemplate = SHORT_ANSWER) -> tuple[Any, Any, Any]:
    """Processor, model and inputs of one prompt, unpadded; none of these tokenizers begins a text with a token of its own."""
    processor = load_processor(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    messages = template.messages(prompt.demonstrations, prompt.query)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.open(shot.image).convert("RGB") for shot in (*prompt.demonstrations, prompt.query)]
    return processor, model, processor(text=[text], images=[images], return_tensors="pt")


def stock_answer(folder: Path, prompt: ScoringPrompt, template: PromptTemplate = SHORT_ANSWER, **arguments: Any) -> str:
    processor, model, inputs = stock_inputs(folder, prompt, template)
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False, **arguments)
    return processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def probability_by_hand(folder: Path, prompt: ScoringPrompt, answer: str) -> float:
    """From the logits of one pass over the prompt with the answer behind it."""
    processor, model, inputs = stock_inputs(folder, prompt)
    found: list[float] = []
    for spelling in (answer, f" {answer}"):
        reply = torch.tensor(processor.tokenizer(spelling, add_special_tokens=False)["input_ids"])
        whole = dict(inputs)
        whole["input_ids"] = torch.cat([inputs["input_ids"], reply[None]], dim=1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        for name in {"mm_token_type_ids", "token_type_ids"} & set(whole):
            whole[name] = torch.nn.functional.pad(whole[name], (0, len(reply)))
        with torch.inference_mode():
            logits = model(**whole).logits[0, -len(reply) - 1 : -1]
        chosen = logits.log_softmax(-1)[torch.arange(len(reply)), reply]
        found.append(math.exp(chosen.mean().item()))
    return max(found)


@families
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_batch_answers_as_stock_generate_does_one_at_a_time(
    family: str, num_beams: int, stock_vlm: StockVlm, prompts: list[ScoringPrompt]
) -> None:
    folder = stock_vlm(family)
    wanted: dict[str, Any] = {"num_beams": num_beams, "length_penalty": 0.0} if num_beams > 1 else {}
    for template in (SHORT_ANSWER, CHAT):
        engine = loaded(folder, template=template, arguments=GenerationArguments(num_beams=num_beams), batch_size=3)
        answers = engine.generate(prompts)
        assert answers == [stock_answer(folder, prompt, template, **wanted) for prompt in prompts]
        assert len(set(answers)) > 1, "answers that are all alike would show nothing"


@families
def test_probabilities_are_those_of_the_models_logits(family: str, stock_vlm: StockVlm, prompts: list[ScoringPrompt]) -> None:
    folder = stock_vlm(family)
    answers = [["red", "a longer answer"], [], ["blue"], ["no", "red bus", "7"]]
    found = loaded(folder, batch_size=3).answer_probabilities(prompts, answers)
    for prompt, own, ours in zip(prompts, answers, found, strict=True):
        assert ours == pytest.approx([probability_by_hand(folder, prompt, answer) for answer in own], rel=1e-4)
    assert len({value for own in found for value in own}) == 6
    with pytest.raises(ValueError, match="no token"):
        loaded(folder).answer_probabilities(prompts[:1], [[""]])


def test_the_family_decides_the_path(stock_vlm: StockVlm, random_vlm: Path) -> None:
    fast, stock = loaded(random_vlm), loaded(stock_vlm("llava"))
    assert isinstance(fast._packed, PackedQwen)  # pyright: ignore[reportPrivateUsage]
    assert isinstance(stock._stock, StockModel)  # pyright: ignore[reportPrivateUsage]
    assert (fast._stock, stock._packed) == (None, None)  # pyright: ignore[reportPrivateUsage]
    assert stock.has_probabilities


def test_fingerprint_and_reserved_texts_have_the_same_form(stock_vlm: StockVlm, random_vlm: Path) -> None:
    found, other = loaded(stock_vlm("llava")), loaded(random_vlm)
    ours, known = found.generation_fingerprint(), other.generation_fingerprint()
    assert {name: set(part) for name, part in ours.items()} == {name: set(part) for name, part in known.items()}
    assert (ours["vlm"]["model_type"], ours["vlm"]["processor"]) == ("llava", "CLIPImageProcessorPil")
    assert {"<image>", "<|im_end|>"} <= found.reserved_texts()


@families
def test_a_directorys_generation_settings_do_not_count(
    family: str, stock_vlm: StockVlm, prompts: list[ScoringPrompt], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stock_vlm(family), folder)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "min_new_tokens": 5, "num_beams": 4}
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": ends}))
    engine, plain = loaded(folder), loaded(stock_vlm(family))
    assert engine.generate(prompts) == plain.generate(prompts)
    assert engine.answer_probabilities(prompts[:1], [["red"]]) == plain.answer_probabilities(prompts[:1], [["red"]])
    assert engine.generation_fingerprint() == plain.generation_fingerprint()


def test_what_ends_an_answer_is_no_part_of_it(stock_vlm: StockVlm, prompts: list[ScoringPrompt], tmp_path: Path) -> None:
    """Also where it is an ordinary token: the second one of an answer, made to end it, leaves the first."""
    folder = tmp_path / "model"
    shutil.copytree(stock_vlm("llava"), folder)
    processor, model, inputs = stock_inputs(folder, prompts[0])
    first, second = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, -2:].tolist()
    assert second not in processor.tokenizer.all_special_ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [second, processor.tokenizer.eos_token_id]}))
    assert loaded(folder).generate(prompts[:1]) == [processor.tokenizer.decode([first], skip_special_tokens=True)]


def test_a_first_token_is_written_once(stock_vlm: StockVlm, prompts: list[ScoringPrompt], tmp_path: Path) -> None:
    """By the tokenizer, or by the chat template where that writes it."""
    source, first = stock_vlm("llava"), "<|endoftext|>"
    template = (source / "chat_template.jinja").read_text()
    for name, written in (("tokenizer", template), ("template", first + template)):
        shutil.copytree(source, tmp_path / name)
        described = json.loads((tmp_path / name / "tokenizer.json").read_text())
        number = next(token["id"] for token in described["added_tokens"] if token["content"] == first)
        begun = [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        tokens = {first: {"id": first, "ids": [number], "tokens": [first]}}
        described["post_processor"] = {"type": "TemplateProcessing", "single": begun, "pair": begun, "special_tokens": tokens}
        described["post_processor"]["pair"] = [*begun, {"Sequence": {"id": "B", "type_id": 1}}]
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(described))
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        config |= {"bos_token": first, "tokenizer_class": "PreTrainedTokenizerFast"}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / name / "chat_template.jinja").write_text(written)
    made = [loaded(tmp_path / name) for name in ("tokenizer", "template")]
    ids: list[list[int]] = []
    for engine in made:
        stock = engine._stock  # pyright: ignore[reportPrivateUsage]
        assert stock is not None
        text = stock._text(prompts[1])  # pyright: ignore[reportPrivateUsage]
        ids.append(stock._inputs([text], prompts[1:2])["input_ids"][0].tolist())  # pyright: ignore[reportPrivateUsage]
    assert ids[0] == ids[1]
    assert ids[0].count(ids[0][0]) == 1
    assert made[0].generate(prompts) == made[1].generate(prompts)


def test_what_cannot_be_asked_is_refused(stock_vlm: StockVlm, tmp_path: Path) -> None:
    for name in ("no-system", "imageless", "encoder", "partial"):
        shutil.copytree(stock_vlm("llava"), tmp_path / name)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    (tmp_path / "no-system" / "chat_template.jinja").write_text(refusing)
    with pytest.raises(InvalidConfig, match=r"LEVERPLUS_PROMPT: .*cannot lay out prompts of 'short-answer': no system turn"):
        loaded(tmp_path / "no-system")
    (tmp_path / "imageless" / "chat_template.jinja").write_text("{{ messages[-1]['content'][-1]['text'] }}")
    with pytest.raises(InvalidConfig, match=r"LEVERPLUS_PROMPT: .*cannot read a prompt of 'short-answer' with two images"):
        loaded(tmp_path / "imageless")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    with pytest.raises(InvalidConfig, match="is an encoder-decoder"):
        loaded(tmp_path / "encoder")
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "partial" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidCheckpoint, match=r"not readable: .*layer_types"):
        loaded(tmp_path / "partial")
    config["text_config"]["layer_types"] *= 2
    config["text_config"]["num_hidden_layers"] = 4
    (tmp_path / "partial" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidCheckpoint, match="missing keys"):
        loaded(tmp_path / "partial")


def test_a_template_that_gathers_images_is_warned_about(
    stock_vlm: StockVlm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stock_vlm("llava"), tmp_path / "model")
    gathering = (
        "{% for turn in messages %}{% for part in turn['content'] if part['type'] == 'image' %}<image>{% endfor %}"
        "{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endfor %}"
    )
    (tmp_path / "model" / "chat_template.jinja").write_text(gathering)
    loaded(tmp_path / "model", template=CHAT)
    assert not caplog.records
    loaded(tmp_path / "model")
    assert "LEVERPLUS_PROMPT=chat" in caplog.text


def test_a_batch_that_is_too_large_for_the_memory_is_cut(
    stock_vlm: StockVlm, prompts: list[ScoringPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(stock_vlm("llava"))
    whole = engine.generate(prompts)
    stock = engine._stock  # pyright: ignore[reportPrivateUsage]
    assert stock is not None
    real = stock._model.generate  # pyright: ignore[reportPrivateUsage]
    sizes: list[int] = []
    room = [1]

    def generate(**inputs: Any) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > room[0]:
            raise torch.OutOfMemoryError("no room")
        return real(**inputs)

    monkeypatch.setattr(stock._model, "generate", generate)  # pyright: ignore[reportPrivateUsage]
    assert engine.generate(prompts) == whole
    assert sizes == [4, 2, 1, 1, 1, 1]
    room[0] = 0
    with pytest.raises(GenerationFailed, match="does not fit the device's memory"):
        engine.generate(prompts)


def test_an_unreadable_image_is_named(stock_vlm: StockVlm, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InvalidInput, match=r"broken\.png cannot be read"):
        loaded(stock_vlm("llava")).generate([ScoringPrompt((), Shot(tmp_path / "broken.png", "colour?"))])
