"""The two forms of an RL file, told apart by content: one JSON object, or NDJSON with a query a line."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import orjson

from leverplus.errors import InvalidRlData, NotFound
from leverplus.rl_data.legacy import InfoScoreSign, from_legacy, is_legacy
from leverplus.rl_data.validation import Place, describe, refuse_file

FORMAT = "leverplus-rl"
VERSION = 1
META = "_meta"

Form = Literal["json", "ndjson"]

_DIVIDER = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True)
class Source:
    """An opened RL file, whose queries are read one at a time, however often they are asked for.

    `whole` is the object of a JSON file, its values still text in the mapped file where they can be; None for NDJSON. `name` is
    what errors call it. `non_finite`: NaN and Infinity, which Python writes and JSON does not have, are read. `info_score`:
    which scores of a legacy file are the better ones; its entries are translated, and no others are read."""

    path: Path
    name: Path
    form: Form
    meta: Mapping[str, Any]
    whole: Mapping[str, Any] | None
    non_finite: bool = False
    info_score: InfoScoreSign | None = None

    def entries(self) -> Generator[tuple[str, dict[str, Any]]]:
        """(query id as written, fields of the query), in file order."""
        for key, entry, _ in self.placed_entries():
            yield key, entry

    def placed_entries(self) -> Generator[tuple[str, dict[str, Any], str | int]]:
        """`entries`, each with its place: what `entry_at` takes to read it again."""
        if self.whole is not None:
            for key in self.whole:
                if key != META:
                    yield key, self.entry_at(key), key
            return
        offset = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and (found := self._line(number, line)) is not None:
                    yield *found, offset
                offset += len(line)

    def entry_at(self, place: str | int) -> dict[str, Any]:
        """The fields of one query."""
        if self.whole is not None:
            where = Place(self.name, str(place))
            return self._translated(where, _require_object(where, _parsed(self.name, self.whole[str(place)])))
        with self.path.open("rb") as stream:
            stream.seek(int(place))
            found = self._line(0, stream.readline())
        assert found is not None, "no place of an entry"
        return found[1]

    def _line(self, number: int, line: bytes) -> tuple[str, dict[str, Any]] | None:
        value = _parse(self.name, line, line=number, non_finite=self.non_finite)
        if META not in value:
            key = _line_key(self.name, number, value)
            return key, self._translated(Place(self.name, key), value)
        if number > 1 or len(value) > 1:
            raise refuse_file(self.name, f"line {number}: {META} must stand alone in the first line")
        return None

    def _translated(self, place: Place, entry: dict[str, Any]) -> dict[str, Any]:
        if self.info_score is None:
            return entry
        if not is_legacy(entry):
            reason = f"which InfoScores are better is stated ({self.info_score}), but this is no legacy file; leave it out"
            raise place.refuse("(whole entry)", reason)
        return from_legacy(place, entry, self.info_score)


def open_source(
    path: Path, name: Path | None = None, *, non_finite: bool = False, info_score: InfoScoreSign | None = None
) -> Source:
    """Looks at the file's form and `_meta`. NotFound without a file; InvalidRlData if it is neither form.

    A JSON file is mapped and divided into its queries here, and not parsed further; of an NDJSON file only the beginning is read.
    `name` is what errors call the file, where its path means nothing to who sent it. `non_finite`: NaN and Infinity are left to
    whoever checks the values.
    """
    name = path if name is None else name
    if not path.exists():
        raise NotFound(
            what="RL file", name=str(name), hint="check the path; `leverplus rl inspect` reads .json and .ndjson files"
        )
    if not path.is_file():
        raise refuse_file(name, "is not a file")
    if (first := _first_line_of_several(path, name, non_finite)) is not None:
        return Source(path, name, "ndjson", _check_meta(name, first.get(META)), None, non_finite, info_score)
    value = _divided(path)
    if value is None:
        value = _parse(name, path.read_bytes(), non_finite=non_finite)
    if "query_id" in value or (META in value and len(value) == 1 and name.suffix in (".ndjson", ".jsonl")):
        return Source(path, name, "ndjson", _check_meta(name, value.get(META)), None, non_finite, info_score)
    return Source(path, name, "json", _check_meta(name, value.get(META)), value, non_finite, info_score)


def _divided(path: Path) -> dict[str, msgspec.Raw] | None:
    """The values of a JSON object as they stand in the file; None for anything else, which `_parse` then judges."""
    try:
        with path.open("rb") as stream:
            # Not closed here: the values are views of it, and the last of them lets it go.
            return _DIVIDER.decode(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (ValueError, RecursionError):
        return None


def _parsed(name: Path, value: Any) -> Any:
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return orjson.loads(memoryview(value))
    except orjson.JSONDecodeError as exc:
        raise refuse_file(name, f"not JSON: {exc}") from exc


def _first_line_of_several(path: Path, name: Path, non_finite: bool) -> dict[str, Any] | None:
    """The first line if it is a JSON object by itself and something follows it, else None."""
    with path.open("rb") as stream:
        first = stream.readline()
        if not any(line.strip() for line in stream):
            return None
    try:
        value = _loads(first, non_finite)
    except orjson.JSONDecodeError:
        # An indented JSON file begins with "{"; so a bad first line of an .ndjson file must be told as such.
        if name.suffix in (".ndjson", ".jsonl"):
            _parse(name, first, line=1)
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _line_key(path: Path, number: int, value: Mapping[str, Any]) -> str:
    query_id = value.get("query_id")
    if isinstance(query_id, int) and not isinstance(query_id, bool):
        return str(query_id)
    if isinstance(query_id, str):
        return query_id
    found = describe(query_id) if "query_id" in value else "missing"
    raise Place(path, f"in line {number}").refuse("query_id", f"is {found}, expected an item id")


def _check_meta(path: Path, meta: Any) -> Mapping[str, Any]:
    meta = _parsed(path, meta)
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        raise refuse_file(path, f"{META} is {describe(meta)}, expected an object")
    meta = cast("dict[str, Any]", meta)
    if meta.get("format") == FORMAT and meta.get("version") != VERSION:
        raise refuse_file(path, f"{META}.version is {meta.get('version')!r}, this program reads version {VERSION}; update it")
    fingerprint = meta.get("fingerprint") or {}
    if not isinstance(fingerprint, dict) or not all(isinstance(part, dict | None) for part in fingerprint.values()):
        raise refuse_file(path, f"{META}.fingerprint is {describe(fingerprint)}, expected an object of objects")
    return meta


def _require_object(place: Place, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.refuse("(whole entry)", f"is {describe(value)}, expected an object")
    return cast("dict[str, Any]", value)


def _parse(path: Path, text: bytes, *, line: int | None = None, non_finite: bool = False) -> dict[str, Any]:
    try:
        value = _loads(text, non_finite)
    except orjson.JSONDecodeError as exc:
        where = "" if line is None else f"line {line}: "
        raise _non_finite(path, text, line) or refuse_file(path, f"{where}not JSON: {exc}") from exc
    if not isinstance(value, dict):
        where = "is" if line is None else f"line {line} is"
        raise refuse_file(path, f"{where} {describe(value)}, expected a JSON object with a key for each query")
    return cast("dict[str, Any]", value)


def _loads(text: bytes, non_finite: bool) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if not non_finite:
            raise
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
        raise


def _non_finite(path: Path, text: bytes, line: int | None) -> InvalidRlData | None:
    """Python's json writes NaN and Infinity, which JSON does not have. Says where the first one stands, None if there is none."""
    try:
        value = json.loads(text)
        found = _find_non_finite(value, "")
    except (ValueError, RecursionError):
        return None
    if found is None:
        return None
    keys, number = found
    if line is None and not (isinstance(value, dict) and "query_id" in value):
        query, _, field = keys.lstrip(".").partition(".")
    else:
        query, field = f"in line {line or 1}", keys.lstrip(".")
        if isinstance(value, dict) and "query_id" in value:
            query = str(value["query_id"])
    return Place(path, query).refuse(field or query, f"is {number}, which is not JSON; what is unknown is null")


def _find_non_finite(value: Any, keys: str) -> tuple[str, float] | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else (keys, value)
    if isinstance(value, dict):
        inner = ((f"{keys}.{key}", child) for key, child in value.items())
    elif isinstance(value, list):
        inner = ((f"{keys}[{index}]", child) for index, child in enumerate(value))
    else:
        return None
    return next((found for name, child in inner if (found := _find_non_finite(child, name))), None)
