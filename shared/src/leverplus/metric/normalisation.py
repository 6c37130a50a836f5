"""How the VQA v2 evaluation (Antol et al. 2015; Goyal et al. 2017) makes two answers comparable, its quirks included.

Results are only comparable with published ones if every quirk is kept, so each is kept on purpose and named here:
a mark is deleted or replaced by a space depending on the *whole* text as it came in; a misspelt lookbehind makes
"10." lose its period; a flag given in place of a count stops the deletion of periods after the 32nd; one
contraction is the wrong way round.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, get_args

Flavour = Literal["official", "lever_plus"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ANY_MARK = re.compile(f"[{re.escape(_MARKS)}]")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The published pattern begins with (?!<=\d), a misspelt lookbehind that never forbids anything: only what follows counts.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_DELETED_AT_MOST = int(re.UNICODE)  # 32: the flag stands where the number of substitutions is expected

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})

# Each is reached from every spelling that lacks exactly one of its apostrophes. The published table also lists forms of
# "I" with a capital, which cannot match after lowering, and two that map to themselves; they would change nothing.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _spellings(contractions: str) -> dict[str, str]:
    table = {
        word[:place] + word[place + 1 :]: word
        for word in contractions.split()
        for place, character in enumerate(word)
        if character == "'"
    }
    table["somebody'd"] = "somebodyd"
    return table


_CONTRACTION_OF = _spellings(_CONTRACTIONS)


def clean_whitespace(text: str) -> str:
    """First step for every answer and prediction: newline and tab become a space, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise_answer(text: str) -> str:
    """Punctuation, then digits, articles and contractions, of a text that `clean_whitespace` has seen."""
    return _normalise_words(_strip_punctuation(text))


def _strip_punctuation(text: str) -> str:
    stripped = text
    if _ANY_MARK.search(text):
        thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
        for mark in _MARKS:
            deleted = thousands or f"{mark} " in text or f" {mark}" in text
            stripped = stripped.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", stripped, count=_PERIODS_DELETED_AT_MOST)


def _normalise_words(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTION_OF.get(word, word) for word in words if word not in _ARTICLES)
