"""Training episodes: languages, words and operations are drawn anew for every prompt.

So what a word or a frame means can only be read off the demonstrations. Some of the demonstrations bear on the query, others are
its likes: the same language and question with another value, or the same value in another language or under another question.
A label counts only where what stands before it in the prompt makes it knowable; English and easy-vqa are always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from in_context_vlm.pieces import ALWAYS, ASKED, EASY, FIRST_WORD, RESULT, SECOND_WORD, Pieces
from in_context_vlm.tokenizer import one_token
from leverplus.dataset.invented_words.families import OPERANDS, OPERATIONS, apply
from leverplus.dataset.invented_words.scenes import FRAMES
from leverplus.dataset.invented_words.words import COLOURS, ENGLISH, LANGUAGE_NAMES, SHAPES, WORDS

FOREIGN_LANGUAGES = 3
ENGLISH_INDEX = FOREIGN_LANGUAGES
COLOUR, SHAPE, PAIR, OPERATION, EASY_QUESTION = range(5)
NAMING_QUERY, PAIR_QUERY, OPERATION_QUERY, PLAIN_QUERY, EASY_QUERY = range(5)
_VALUES = 5


@dataclass(frozen=True)
class Mix:
    """What episodes are made of. `queries`: shares of naming, pair, operation, plain, easy-vqa among the last questions.

    `relevant`: share of episodes with demonstrations that bear on the query; `alike`: among the other demonstrations the share
    of the query's likes, None draws a share for every episode.
    """

    queries: tuple[float, float, float, float, float] = (0.36, 0.28, 0.12, 0.09, 0.15)
    demonstrations: tuple[float, float, float, float, float] = (0.37, 0.36, 0.1, 0.1, 0.07)
    relevant: float = 0.9
    alike: float | None = None


@dataclass
class Items:
    """N items of B episodes, all [B, N]: what each shows and asks; the last is the query. `easy` numbers easy-vqa's items."""

    language: Tensor
    asked: Tensor
    colour: Tensor
    shape: Tensor
    frame: Tensor
    operands: Tensor
    easy: Tensor

    def put(self, rows: Tensor, places: Tensor, **values: Tensor) -> None:
        """Sets values [b] at (rows [b], places [b])."""
        for name, value in values.items():
            getattr(self, name)[rows, places] = value


@dataclass(frozen=True)
class Episodes:
    """B assembled prompts and what is known of them."""

    items: Items
    ids: Tensor
    labels: Tensor
    owner: Tensor
    known: Tensor  # [B, N, 6] by the meaning of a label
    bearing: Tensor  # [B, N-1] whether the demonstration tells something that the query needs


class EpisodeSource:
    """Draws episodes on the device."""

    def __init__(self, tokenizer: Any, pieces: Pieces, easy_items: Tensor, generator: torch.Generator) -> None:
        device = pieces.ids.device
        self.pieces, self.easy_items, self.generator, self.device = pieces, easy_items, generator, device

        def tokens(texts: list[str]) -> Tensor:
            return torch.tensor([one_token(tokenizer, text) for text in texts], device=device)

        self.words, self.names = tokens([f" {word}" for word in WORDS]), tokens([f" {name}" for name in LANGUAGE_NAMES])
        self.english = tokens([f" {ENGLISH}"])
        english_words = [f" {word}" for word in (*COLOURS, *SHAPES)]
        self.english_words = tokens(english_words * 2).reshape(4, _VALUES)
        self.digits = tokens([str(digit) for digit in range(10)])
        self.operand_values = torch.tensor(OPERANDS, device=device)
        results = [[apply(operation, pair) for pair in OPERANDS] for operation in OPERATIONS]
        self.results = torch.tensor(results, device=device)

    def draw(self, count: int, shots: int, mix: Mix) -> Episodes:
        """`count` episodes with so many demonstrations."""
        items = self.draw_items(count, shots, mix)
        operation_of_frame = self._below(len(OPERATIONS), count, len(FRAMES))
        return self.assemble(items, self.draw_languages(count), operation_of_frame)

    def draw_items(self, count: int, shots: int, mix: Mix) -> Items:
        """What `count` episodes show and ask."""
        items = self.random_items(count, shots, mix)
        if shots:
            self._shape_demonstrations(items, shots, mix)
        return items

    def draw_languages(self, count: int) -> tuple[Tensor, Tensor]:
        """Names [count, 4] and words [count, 4, 4 columns, 5] as tokens, English last."""
        names = self.names[self._uniform(count, len(self.names)).argsort(1)[:, :FOREIGN_LANGUAGES]]
        needed = FOREIGN_LANGUAGES * 4 * _VALUES
        words = self.words[self._uniform(count, len(self.words)).argsort(1)[:, :needed]].reshape(count, -1, 4, _VALUES)
        english = self.english_words.expand(count, 1, 4, _VALUES)
        return torch.cat([names, self.english.expand(count, 1)], 1), torch.cat([words, english], 1)

    def assemble(self, items: Items, languages: tuple[Tensor, Tensor], operation_of_frame: Tensor) -> Episodes:
        """languages as `draw_languages` gives them; operation_of_frame [B, 3]: numbers of OPERATIONS."""
        count, number = items.language.shape
        names, words = languages
        row = torch.arange(count, device=self.device)[:, None]
        operation = operation_of_frame[row, items.frame]
        result = self.results[operation, items.operands]
        first_column = torch.where(items.asked == PAIR, 2, items.asked.clamp(max=1))
        first_value = torch.where(items.asked == SHAPE, items.shape, items.colour)
        operands = self.operand_values[items.operands]
        fillings = torch.stack(
            [
                names[row, items.language],
                words[row, items.language, first_column, first_value],
                words[row, items.language, 3, items.shape],
                self.digits[operands[..., 0]],
                self.digits[operands[..., 1]],
                self.digits[result],
            ],
            2,
        )
        pieces = self.pieces
        is_easy, last = items.asked == EASY_QUESTION, torch.arange(number, device=self.device) == number - 1
        own = 1 + items.asked.clamp(max=len(ASKED) - 1) + len(ASKED) * last
        easy = torch.where(last, pieces.easy_query[items.easy], pieces.easy_demonstration[items.easy])
        ids, labels, owner = pieces.assemble(torch.where(is_easy, easy, own), fillings)
        known, bearing = self._knowable(items, result, first_column, first_value)
        return Episodes(items, ids, labels, owner, known, bearing)

    def _knowable(self, items: Items, result: Tensor, first_column: Tensor, first_value: Tensor) -> tuple[Tensor, Tensor]:
        number = items.language.shape[1]
        before = torch.ones(number, number, dtype=torch.bool, device=self.device).tril(-1)
        tells = items.asked <= PAIR
        first = (items.language * 4 + first_column) * _VALUES + first_value
        second = (items.language * 4 + 3) * _VALUES + items.shape
        same_first = (first[:, :, None] == first[:, None]) & (tells[:, :, None] & tells[:, None])
        pair = items.asked == PAIR
        same_second = (second[:, :, None] == second[:, None]) & (pair[:, :, None] & pair[:, None])
        english = items.language == ENGLISH_INDEX
        # operations that an earlier demonstration of the same frame rules out
        calculates = items.asked == OPERATION
        linked = (items.frame[:, :, None] == items.frame[:, None]) & calculates[:, :, None] & calculates[:, None] & before
        would_be = self.results[:, items.operands].permute(1, 2, 0)  # [B, N, operations]
        misfits = would_be != result[..., None]
        ruled_out = (linked[..., None] & misfits[:, None]).any(2)
        determined = ~(~ruled_out & misfits).any(2)
        known = torch.zeros(*items.language.shape, 6, dtype=torch.bool, device=self.device)
        known[..., FIRST_WORD] = (same_first & before).any(2) | english
        known[..., SECOND_WORD] = (same_second & before).any(2) | english
        known[..., RESULT] = determined
        known[..., EASY] = known[..., ALWAYS] = True
        bearing = same_first | same_second | linked
        return known, bearing[:, -1, :-1] & ~english[:, -1:]

    def random_items(self, count: int, shots: int, mix: Mix) -> Items:
        """Items whose families follow the mix and whose values are even, not yet made into a prompt."""
        number = shots + 1
        weights = torch.tensor(mix.demonstrations, device=self.device)
        query_weights = torch.tensor(mix.queries, device=self.device)
        if not shots:  # nothing foreign can be known
            query_weights = query_weights * torch.tensor([0.0, 0, 0, 1, 1], device=self.device)
        family = torch.empty(count, number, dtype=torch.long, device=self.device)
        family[:, :-1] = torch.multinomial(weights.expand(count, -1), number, True, generator=self.generator)[:, :shots]
        family[:, -1] = torch.multinomial(query_weights, count, True, generator=self.generator)
        naming = self._below(2, count, number)
        asked = torch.where(family == PAIR_QUERY, PAIR, naming)
        asked = torch.where(family == PLAIN_QUERY, self._below(3, count, number), asked)
        asked = torch.where(family == OPERATION_QUERY, OPERATION, asked)
        asked = torch.where(family == EASY_QUERY, EASY_QUESTION, asked)
        spoken = 2 + self._below(2, count, 1)  # two or three languages in an episode
        language = self._below(6, count, number) % spoken
        language = torch.where(family == PLAIN_QUERY, ENGLISH_INDEX, language)
        return Items(
            language=language,
            asked=asked,
            colour=self._below(_VALUES, count, number),
            shape=self._below(_VALUES, count, number),
            frame=self._below(len(FRAMES), count, number),
            operands=self._below(len(OPERANDS), count, number),
            easy=self.easy_items[self._below(len(self.easy_items), count, number)],
        )

    def _shape_demonstrations(self, items: Items, shots: int, mix: Mix) -> None:
        """Turns some demonstrations into the query's likes, and one or two into such as bear on it."""
        count = len(items.language)
        query = {name: getattr(items, name)[:, -1] for name in vars(items)}
        share = self._uniform(count, 1) if mix.alike is None else torch.full((count, 1), mix.alike, device=self.device)
        foreign_or_plain = (query["asked"] <= PAIR)[:, None]
        alike = (self._uniform(count, shots) < share) & foreign_or_plain
        way = self._uniform(count, shots)
        for rows, places, names in (
            (*(alike & (way < 0.6)).nonzero(as_tuple=True), ("language", "asked")),
            (*(alike & (way >= 0.6) & (way < 0.8)).nonzero(as_tuple=True), ("asked", "colour", "shape")),
            (*(alike & (way >= 0.8)).nonzero(as_tuple=True), ("language", "colour", "shape")),
        ):
            items.put(rows, places, **{name: query[name][rows] for name in names})
            # what is alike in its values only has to ask about words, and about others
            asks_else = items.asked[rows, places] > PAIR
            items.put(rows[asks_else], places[asks_else], asked=(query["asked"][rows[asks_else]] + 1) % 3)
        relevant = self._uniform(count) < mix.relevant
        order = self._uniform(count, shots).argsort(1)
        asked, both = query["asked"], self._uniform(count) < (0.15 if shots > 1 else 1.0)
        more = self._uniform(count) < 0.5
        for chosen, place, names in (
            (relevant & (asked == COLOUR), 0, ("language", "asked", "colour")),
            (relevant & (asked == SHAPE), 0, ("language", "asked", "shape")),
            (relevant & (asked == PAIR), 0, ("language", "asked", "colour")),
            (relevant & (asked == PAIR) & ~both, min(1, shots - 1), ("language", "asked", "shape")),
            (relevant & (asked == PAIR) & both, 0, ("shape",)),
            (relevant & (asked == OPERATION), 0, ("asked", "frame")),
            (relevant & (asked == OPERATION) & more, min(1, shots - 1), ("asked", "frame")),
        ):
            rows = chosen.nonzero().flatten()
            items.put(rows, order[rows, place], **{name: query[name][rows] for name in names})

    def _below(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(0, bound, shape, device=self.device, generator=self.generator)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.generator)
