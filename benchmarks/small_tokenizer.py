"""A small byte-level BPE tokenizer that speaks Qwen2.5-VL's protocol: its pre-tokenizer, special tokens and chat layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

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


def build_tokenizer(texts: Iterable[str], vocabulary_size: int = 1024) -> Qwen2Tokenizer:
    """Tokenizer whose merges make every word of `texts` one token while the vocabulary lasts; any other text falls to bytes."""
    trained = Tokenizer(BPE())
    words = Split(Regex(PRETOKENIZE_REGEX), "isolated")
    trained.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
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
