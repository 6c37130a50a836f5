"""A byte-level BPE tokenizer of few words that speaks Qwen2.5-VL's protocol: its pre-tokenizer, special tokens, chat layout."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from in_context_vlm.easy_questions import EasyQuestions
from leverplus.dataset.invented_words.families import QUESTIONS
from leverplus.dataset.invented_words.words import COLOURS, ENGLISH, LANGUAGE_NAMES, SHAPES, WORDS
from leverplus.prompts import SHORT_ANSWER

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

# Turns as Qwen2.5-VL writes them. Content is a string, or a list of texts and images.
CHAT_TEMPLATE = (
    "{%- for turn in messages -%}"
    "{{ '<|im_start|>' + turn['role'] + '\\n' }}"
    "{%- if turn['content'] is string -%}{{ turn['content'] }}"
    "{%- else -%}{%- for part in turn['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- elif part['type'] in ('image', 'image_url') -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ raise_exception('this model takes texts and images, not ' + part['type']) }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


VOCABULARY_SIZE = 2048
"""More than the words need: every one of them gets its token."""


def build_tokenizer(easy: EasyQuestions) -> Qwen2Tokenizer:
    """A tokenizer in which every word of a prompt is one token, the invented ones included, with their leading space.

    Any other text falls to bytes.
    """
    turns = ["system\n", "user\n", "assistant\n", SHORT_ANSWER.system]
    own = [text.format(language=name, first=8, second=3) for text in QUESTIONS.values() for name in (*LANGUAGE_NAMES, ENGLISH)]
    answers = [*WORDS, *COLOURS, *SHAPES, *easy.answers]
    solved = [SHORT_ANSWER.answered.format(question=question, answer="") for question in (*own, *easy.questions)]
    return _trained([*turns, *solved, *(f" {answer}" for answer in answers)])


def one_token(tokenizer: Any, text: str) -> int:
    """The token of a text that is one."""
    ids = tokenizer(text)["input_ids"]
    if len(ids) != 1:
        raise AssertionError(f"{text!r} is {len(ids)} tokens, expected one")
    return int(ids[0])


def _trained(texts: list[str]) -> Qwen2Tokenizer:
    trained = Tokenizer(BPE())
    words = Split(Regex(PRETOKENIZE_REGEX), "isolated")
    trained.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(sorted(set(texts)), trainer)
    model = json.loads(trained.to_str())["model"]

    merges: Any = [tuple(pair) for pair in model["merges"]]  # declared as strings, wanted as pairs
    special: Any = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_tokens(special)
    tokenizer.eos_token, tokenizer.pad_token = TURN_END, END_OF_TEXT
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 4096
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
