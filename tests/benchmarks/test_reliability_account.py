from __future__ import annotations

import json
from typing import Any

from reliability_account import Account, Answer

NONE = Answer(None, failure="ConnectError")


def answered(document: dict[str, Any]) -> Answer:
    return Answer(200, "application/json", json.dumps(document).encode())


def scored(text: str) -> Answer:
    return answered({"results": [{"query_id": 7, "candidates": [{"pointer": [1, 2], "vqa_raw_generation": text}]}]})


def test_a_failure_is_explained_by_a_kill_of_that_service_alone() -> None:
    account = Account()
    account.down("selector_api", 10.0)
    account.add("select", "selector_api", 10.5, 10.6, NONE)
    account.up("selector_api", 12.0)
    account.add("select", "selector_api", 11.9, 14.0, Answer(None, failure="ReadError"))
    account.add("select", "selector_api", 13.5, 13.6, NONE)
    account.add("jobs", "pointer_trainer", 10.5, 10.6, NONE)
    account.add("select", "selector_api", 10.5, 11.0, Answer(None, failure="ReadTimeout"))
    assert account.outcomes == {"not accepted": 1, "cut off": 1, "wrong": 3}


def test_a_refusal_is_a_problem_document_that_says_429_or_503() -> None:
    account = Account()
    for status, media_type in ((503, "application/problem+json"), (503, "text/plain"), (500, "application/problem+json")):
        account.add("jobs", "pointer_trainer", 0.0, 0.1, Answer(status, media_type))
    assert account.outcomes == {"refused": 1, "wrong": 2}


def test_the_same_question_has_the_same_answer() -> None:
    account = Account()
    for text in ("red", "red", "blue"):
        account.add("score", "vqa_scorer", 0.0, 0.1, scored(text))
    for pointer in ([1], [2]):
        account.add("select again", "selector_api", 0.0, 0.1, answered({"query_id": 7, "pointer": pointer}))
    account.add("select", "selector_api", 0.0, 0.1, answered({"query_id": 7, "pointer": [3]}))
    assert account.outcomes == {"answered": 4, "wrong": 2}
    assert account.scores == {(7, "1,2"): "red"}


def test_latencies_are_of_answers_while_nothing_was_away() -> None:
    account = Account()
    account.down("valkey", 10.0)
    account.up("valkey", 11.0)
    account.add("jobs", "pointer_trainer", 1.0, 1.5, answered({}))
    account.add("jobs", "pointer_trainer", 10.0, 10.5, answered({}))
    account.add("jobs", "pointer_trainer", 20.0, 20.25, answered({}))
    assert account.calm_latencies_s() == [0.5, 0.25]
