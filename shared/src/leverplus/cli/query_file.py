"""Queries and pointers in a file: a JSON list, NDJSON, or the body of a request to the scorer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from leverplus.errors import InvalidInput, NotFound, shorten
from leverplus.scoring import MAX_POINTERS, MAX_QUERIES, ScoreOptions, ScoreQuery, ScoreRequest


class QueryFile:
    """NDJSON is read line by line, each time anew; the other forms are loaded whole. NotFound without a file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotFound(what="file", name=str(path), hint="--from names a file of queries and pointers")
        self._path = path

    def count(self) -> int:
        """Pointers in the file; InvalidInput naming the first line or entry that is no query with pointers."""
        return sum(len(query.pointers) for query in self.queries())

    def requests(self, dataset: str, options: ScoreOptions) -> Iterator[ScoreRequest]:
        """The file in as few requests as the scorer takes. The whole file is checked before the first is given."""
        if not self.count():
            raise InvalidInput(f"{self._path}: holds no query")
        queries: list[ScoreQuery] = []
        size = 0
        for query in self.queries():
            if queries and (len(queries) == MAX_QUERIES or size + len(query.pointers) > MAX_POINTERS):
                yield ScoreRequest(dataset=dataset, queries=queries, options=options)
                queries, size = [], 0
            queries.append(query)
            size += len(query.pointers)
        yield ScoreRequest(dataset=dataset, queries=queries, options=options)

    def queries(self) -> Iterator[ScoreQuery]:
        for place, value in self._values():
            try:
                yield ScoreQuery.model_validate(value)
            except ValidationError as exc:
                fault = exc.errors(include_url=False)[0]
                where = ": ".join([place, ".".join(map(str, fault["loc"]))]) if fault["loc"] else place
                found = shorten(repr(fault["input"]))
                raise InvalidInput(f"{self._path}: {where}: {fault['msg']}, found {found}") from exc

    def _values(self) -> Iterator[tuple[str, Any]]:
        with self._path.open("rb") as stream:
            first = next((line for line in stream if line.strip()), b"")
            if _query_in(first) is None:
                stream.seek(0)
                yield from self._whole(stream.read())
                return
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}", self._parsed(line, f"line {number}")

    def _whole(self, content: bytes) -> Iterator[tuple[str, Any]]:
        value = self._parsed(content, "it")
        listed = value.get("queries") if isinstance(value, dict) else value
        if not isinstance(listed, list):
            raise InvalidInput(f'{self._path}: expected a list of {{"query_id": …, "pointers": [[…], …]}}, or a line each')
        yield from ((f"entry {number}", each) for number, each in enumerate(listed))

    def _parsed(self, text: bytes, place: str) -> Any:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as exc:
            raise InvalidInput(f"{self._path}: {place}: not JSON: {exc}") from exc


def _query_in(line: bytes) -> dict[str, Any] | None:
    """The object in the first line where the file has a query a line."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and "query_id" in value else None
