"""The invented vocabulary, and the languages that a dataset draws from it.

All words are two syllables of consonant and vowel. None ends in e, which spares most of English; the rest of it is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from leverplus.random_order import derive_seed

Column = Literal["colour", "shape", "joined colour", "joined shape"]
COLUMNS: tuple[Column, ...] = ("colour", "shape", "joined colour", "joined shape")
"""What a language has words for. A colour and a shape that are named together have forms of their own."""

COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
VALUES: dict[Column, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "joined colour": COLOURS, "joined shape": SHAPES}

ENGLISH = "English"
WORD_COUNT = 128
NAME_COUNT = 24

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aiou"
_ENGLISH = """
    baba bali bobo bola bono bozo dada data dido diva dodo fado fido gaga gala gigi kiki kilo kudu lama lava lima limo
    lira lisa logo lulu mali mama mari mimi mini miso mono nana nato nina papa pita polo popo puma pupu radi rosa rota
    saga sara sari silo soda sofa solo sumo tapa taro tata tina titi tito tofu togo tuna tutu visa viva zaza ziti zulu
"""

T = TypeVar("T")


def pick(random: Random, options: Sequence[T]) -> T:
    """One of the options. Rests on `random()` alone, the only stream that Python promises to keep."""
    return options[int(random.random() * len(options))]


def shuffled(random: Random, options: Sequence[T]) -> list[T]:
    """The options in a random order, resting on `random()` alone."""
    return [option for _, option in sorted(((random.random(), option) for option in options), key=lambda pair: pair[0])]


def _invent() -> tuple[tuple[str, ...], tuple[str, ...]]:
    english = frozenset(_ENGLISH.split())
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    candidates = [first + second for first in syllables for second in syllables if first != second]
    drawn = shuffled(Random(derive_seed("invented words")), [word for word in candidates if word not in english])
    return tuple(sorted(drawn[:WORD_COUNT])), tuple(
        sorted(word.capitalize() for word in drawn[WORD_COUNT : WORD_COUNT + NAME_COUNT])
    )


WORDS, LANGUAGE_NAMES = _invent()
"""All words there are, and all names of languages; a VLM meets them in training with ever changing meanings."""


@dataclass(frozen=True)
class Language:
    """A name, and for each column a word a value, in the order of VALUES."""

    name: str
    words: dict[Column, tuple[str, ...]]

    def word(self, column: Column, value: str) -> str:
        return self.words[column][VALUES[column].index(value)]


ENGLISH_LANGUAGE = Language(ENGLISH, {column: VALUES[column] for column in COLUMNS})


def draw_languages(count: int, seed: int) -> tuple[Language, ...]:
    """`count` languages without a word in common; at most 6, then the vocabulary is used up."""
    needed = sum(len(VALUES[column]) for column in COLUMNS)
    if not 1 <= count <= WORD_COUNT // needed:
        raise ValueError(f"{count} languages of {needed} words cannot be drawn from {WORD_COUNT} words")
    random = Random(derive_seed("languages", seed))
    names, words = shuffled(random, LANGUAGE_NAMES), shuffled(random, WORDS)
    languages: list[Language] = []
    for number in range(count):
        table: dict[Column, tuple[str, ...]] = {}
        for column in COLUMNS:
            size = len(VALUES[column])
            table[column], words = tuple(words[:size]), words[size:]
        languages.append(Language(names[number], table))
    return tuple(languages)
