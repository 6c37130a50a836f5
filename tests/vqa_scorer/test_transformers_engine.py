from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from leverplus.errors import InvalidCheckpoint, InvalidConfig, InvalidInput, NotFound
from leverplus.files import file_sha256
from leverplus.prompts import CHAT, SHORT_ANSWER, PromptTemplate, Shot
from vqa_scorer.engines import ScoringPrompt, all_texts
from vqa_scorer.engines.decoding import GenerationArguments, greedy_search
from vqa_scorer.engines.prefixes import ImageShape
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.qwen2_5_vl import Decoder, encode
from vqa_scorer.engines.transformers import TransformersEngine

DEFAULT_VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"


@pytest.fixture
def prompts(tmp_path: Path) -> list[ScoringPrompt]:
    """Pointers of length 0 to 4 over pictures of two sizes."""
    shots: list[Shot] = []
    for number, (colour, size) in enumerate(
        [("red", (64, 64)), ("green", (90, 60)), ("blue", (64, 64)), ("white", (64, 64)), ("brown", (60, 120))]
    ):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, colour).save(path)
        shots.append(Shot(path, f"{'which ' * number}colour?", colour))
    query = Shot(shots[0].image, "and this one?")
    return [ScoringPrompt(tuple(shots[1 : 1 + count]), query) for count in (2, 0, 4, 1, 3)]


def loaded(folder: Path, **options: Any) -> TransformersEngine:
    engine = TransformersEngine(folder, device="cpu", dtype="float32", **options)
    engine.load()
    return engine


def stock_answer(folder: Path, prompt: ScoringPrompt, *, template: PromptTemplate = SHORT_ANSWER, **arguments: Any) -> str:
    """One prompt through transformers' own processor and generate, without padding."""
    processor = load_processor(folder)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    messages = template.messages(prompt.demonstrations, prompt.query)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.open(shot.image).convert("RGB") for shot in (*prompt.demonstrations, prompt.query)]
    inputs = processor(text=[text], images=images, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False, **arguments)
    return processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_batch_answers_as_one_at_a_time(random_vlm: Path, prompts: list[ScoringPrompt], num_beams: int) -> None:
    engine = loaded(random_vlm, arguments=GenerationArguments(num_beams=num_beams), batch_size=3)
    together = engine.generate(prompts)
    assert together == [engine.generate([prompt])[0] for prompt in prompts]
    assert len(set(together)) > 1, "answers that are all alike would show nothing"


def test_answers_are_those_of_the_stock_processor_and_generate(random_vlm: Path, prompts: list[ScoringPrompt]) -> None:
    assert loaded(random_vlm).generate(prompts) == [stock_answer(random_vlm, prompt) for prompt in prompts]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beams_end_where_stock_generates_do(
    random_vlm: Path, prompts: list[ScoringPrompt], num_beams: int, length_penalty: float
) -> None:
    arguments = GenerationArguments(num_beams=num_beams, length_penalty=length_penalty)
    ours = loaded(random_vlm, arguments=arguments).generate(prompts)
    wanted = {"num_beams": num_beams, "length_penalty": length_penalty}
    assert ours == [stock_answer(random_vlm, prompt, **wanted) for prompt in prompts]


def test_the_default_vlm_answers_as_stock_generate(prompts: list[ScoringPrompt]) -> None:
    assert loaded(DEFAULT_VLM, batch_size=2).generate(prompts) == [stock_answer(DEFAULT_VLM, prompt) for prompt in prompts]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_one_turn_a_shot_is_answered_as_stock_generate_does(
    random_vlm: Path, prompts: list[ScoringPrompt], num_beams: int
) -> None:
    for folder in (DEFAULT_VLM, random_vlm):
        engine = loaded(folder, template=CHAT, arguments=GenerationArguments(num_beams=num_beams), batch_size=2)
        wanted: dict[str, Any] = {"num_beams": num_beams, "length_penalty": 0.0} if num_beams > 1 else {}
        assert engine.generate(prompts) == [stock_answer(folder, prompt, template=CHAT, **wanted) for prompt in prompts]
        assert engine.generation_fingerprint()["prompt"] == CHAT.fingerprint()


def test_positions_are_those_of_get_rope_index(random_vlm: Path) -> None:
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_vlm)
    token = int(model.config.image_token_id)
    images = [ImageShape(None, rows, columns) for rows, columns in ((2, 3), (4, 1), (1, 1))]
    short = [7, 8, token, 9, token, token, 5, 6]
    found = encode(short, images, token)
    ids = [7, 8, *[token] * 6, 9, *[token] * 4, *[token], 5, 6]
    assert found.token_ids.tolist() == ids
    assert found.image_starts == (2, 9, 13)
    tokens = torch.tensor([ids])
    grid = torch.tensor([[1, one.rows * 2, one.columns * 2] for one in images])
    # get_rope_index tells images apart by what stands between them, so each gets one call of its own start here
    expected, _ = model.model.get_rope_index(
        tokens[:, :9], mm_token_type_ids=(tokens[:, :9] == token).int(), image_grid_thw=grid[:1]
    )
    assert encode(short[:4], images[:1], token).positions.tolist() == expected[:, 0].tolist()
    assert found.positions[:, 8:].tolist() == [
        [5, 6, 6, 6, 6, 10, 11, 12],
        [5, 6, 7, 8, 9, 10, 11, 12],
        [5, 6, 6, 6, 6, 10, 11, 12],
    ]
    with pytest.raises(ValueError, match="3 placeholders for 2 images"):
        encode(short, images[:2], token)


def test_prompts_that_begin_otherwise_cost_the_full_price_and_answer_alike(random_vlm: Path) -> None:
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_vlm, dtype=torch.float32).eval()
    asked = [[11, 12, 13, 14], [11, 12, 15], [21, 22]]

    def answers(shared: list[int], prompts: list[list[int]]) -> list[list[int]]:
        decoder = Decoder(model, shared=shared)
        logits, advance = decoder.read([encode(ids, (), decoder.image_token) for ids in prompts], {}, rows=1, steps=3)
        return greedy_search(logits, advance, stop_tokens=torch.tensor([3]), max_new_tokens=4)

    whole = answers([], asked)
    assert answers([11, 12], asked) == whole
    assert answers([11, 12], asked[:2]) == whole[:2]
    stock = model.generate(torch.tensor([asked[0]]), max_new_tokens=4, do_sample=False, eos_token_id=3, pad_token_id=0)
    assert whole[0] == [token for token in stock[0, 4:].tolist() if token not in (0, 3)]


def test_a_directorys_own_generation_settings_do_not_count(
    random_vlm: Path, prompts: list[ScoringPrompt], tmp_path: Path
) -> None:
    sampling = tmp_path / "sampling"
    shutil.copytree(random_vlm, sampling)
    (sampling / "generation_config.json").write_text('{"do_sample": true, "temperature": 5.0, "repetition_penalty": 3.0}')
    engine, plain = loaded(sampling), loaded(random_vlm)
    assert engine.generate(prompts) == plain.generate(prompts)
    assert engine.generation_fingerprint() == plain.generation_fingerprint()


def test_the_fingerprint_names_weights_prompt_arguments_and_dtype(random_vlm: Path) -> None:
    found = loaded(random_vlm).generation_fingerprint()
    assert found["vlm"]["model_type"] == "qwen2_5_vl"
    assert found["vlm"]["weights_sha256"] == file_sha256(random_vlm / "model.safetensors")
    assert found["prompt"] == SHORT_ANSWER.fingerprint()
    assert found["arguments"] == {"max_new_tokens": 5, "num_beams": 1, "length_penalty": None}
    assert found["dtype"] == "float32"
    beams = loaded(random_vlm, arguments=GenerationArguments(num_beams=3)).generation_fingerprint()
    assert beams["arguments"] == {"max_new_tokens": 5, "num_beams": 3, "length_penalty": 0.0}


def test_the_tokenizers_special_tokens_are_reserved(random_vlm: Path) -> None:
    found = loaded(random_vlm).reserved_texts()
    assert {"<|image_pad|>", "<|im_end|>", "<|vision_start|>"} <= found
    assert all(text.startswith("<|") for text in found)


def test_directories_that_are_no_vlm_are_refused(random_vlm: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        loaded(tmp_path / "absent")
    for name in ("weightless", "truncated", "partial", "foreign"):
        shutil.copytree(random_vlm, tmp_path / name)
    (tmp_path / "weightless" / "model.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"no \*\.safetensors"):
        loaded(tmp_path / "weightless")
    (tmp_path / "truncated" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InvalidCheckpoint, match="not readable"):
        loaded(tmp_path / "truncated")
    tensors = load_file(random_vlm / "model.safetensors")
    lost = next(name for name in tensors if "layers.1." in name)
    save_file(
        {name: value for name, value in tensors.items() if name != lost},
        tmp_path / "partial" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(InvalidCheckpoint, match="1 missing keys"):
        loaded(tmp_path / "partial")
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InvalidCheckpoint, match="'bert'"):
        loaded(tmp_path / "foreign")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_refused(random_vlm: Path) -> None:
    with pytest.raises(InvalidConfig, match="no GPU"):
        TransformersEngine(random_vlm, device="cuda").load()


def test_what_cannot_be_a_prompt_is_refused(random_vlm: Path, prompts: list[ScoringPrompt], tmp_path: Path) -> None:
    engine = loaded(random_vlm)
    (tmp_path / "cut.png").write_bytes(prompts[0].query.image.read_bytes()[:60])
    cut = ScoringPrompt((), Shot(tmp_path / "cut.png", "colour?"))
    marked = ScoringPrompt((), Shot(prompts[0].query.image, "<|image_pad|>?"))
    for prompt, said in ((cut, r"cut\.png"), (marked, "image placeholder")):
        with pytest.raises(InvalidInput, match=said):
            all_texts(engine.generate([prompt]))
