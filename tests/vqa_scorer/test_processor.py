"""The processor of the shipped model directory, and of a directory laid out as Qwen publishes its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leverplus.dataset.invented_words.words import LANGUAGE_NAMES, WORDS
from leverplus.errors import InvalidConfig, NotFound, Unavailable
from leverplus.prompts import SHORT_ANSWER, Shot
from vqa_scorer.engines.processor import load_processor, torchvision_works

DEFAULT_VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"
NOWHERE = Path("unused.png")


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(DEFAULT_VLM)


def picture(side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), (10, 200, 30))


def prompt(processor: Any, shots: int) -> str:
    shown = [Shot(NOWHERE, "what color is the shape?", "green")] * shots
    messages = SHORT_ANSWER.messages(shown, Shot(NOWHERE, "is there a circle?"))
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_chat_template_writes_turns_and_images_as_qwen_does(processor: Any) -> None:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt(processor, 1) == (
        f"<|im_start|>system\n{SHORT_ANSWER.system}<|im_end|>\n"
        f"<|im_start|>user\n{image}Question: what color is the shape? Short answer: green\n"
        f"{image}Question: is there a circle? Short answer:<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("shots", [0, 1, 2, 4])
def test_an_easy_vqa_picture_is_four_tokens(processor: Any, shots: int) -> None:
    pictures = [picture() for _ in range(shots + 1)]
    inputs = processor(text=[prompt(processor, shots)], images=pictures, return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 4 * (shots + 1)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]] * (shots + 1)
    assert tuple(inputs["pixel_values"].shape) == (16 * (shots + 1), 3 * 2 * 14 * 14)


@pytest.mark.parametrize("side", [30, 56, 500])
def test_square_pictures_of_any_size_are_four_tokens(processor: Any, side: int) -> None:
    inputs = processor(text=[prompt(processor, 0)], images=[picture(side)], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]


def test_prompt_survives_the_tokenizer(processor: Any) -> None:
    text = prompt(processor, 2)
    ids = processor(text=[text], images=[picture() for _ in range(3)], return_tensors="pt")["input_ids"][0]
    assert processor.tokenizer.decode(ids).replace("<|image_pad|>" * 4, "<|image_pad|>") == text


def test_any_text_survives_the_tokenizer(processor: Any) -> None:
    text = "Où est l'œuf? 図 🙂\t<tag>"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("answer", ["yes", "circle", "teal", "purple", "7", WORDS[0], WORDS[-1], LANGUAGE_NAMES[0]])
def test_a_word_of_an_answer_is_one_token(processor: Any, answer: str) -> None:
    text = f" {answer}" if answer.isalpha() else answer  # a digit stands apart from the space before it
    assert len(processor.tokenizer(text)["input_ids"]) == 1


def test_batches_are_padded_left(processor: Any) -> None:
    inputs = processor(
        text=[prompt(processor, 0), prompt(processor, 2)], images=[picture() for _ in range(4)], padding=True, return_tensors="pt"
    )
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]


def test_directory_as_qwen_publishes_it(tmp_path: Path) -> None:
    """Qwen2.5-VL-3B: chat_template.json, pixel limits instead of sizes, vocab.json and merges.txt beside tokenizer.json."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEFAULT_VLM / name, tmp_path / name)
    described = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": (DEFAULT_VLM / "chat_template.jinja").read_text()}))
    model = json.loads((DEFAULT_VLM / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    processor = load_processor(tmp_path)
    # 640×480 → 644×476, which is 23×17 tokens of 28×28 pixels
    inputs = processor(text=[prompt(processor, 0)], images=[Image.new("RGB", (640, 480))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 34, 46]]
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 17 * 23


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing-here"):
        load_processor(tmp_path / "nothing-here")


def test_directory_without_processor_files(tmp_path: Path) -> None:
    shutil.copy(DEFAULT_VLM / "config.json", tmp_path)
    with pytest.raises(InvalidConfig, match="processor files"):
        load_processor(tmp_path)


@pytest.mark.skipif(torchvision_works(), reason="with torchvision every family is transformers' own business")
def test_families_that_need_torchvision_say_so(tmp_path: Path) -> None:
    for family in ("mistral3", "gemma3n", "fast_vlm"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(Unavailable, match=f"'{family}' model needs torchvision"):
            load_processor(tmp_path)
