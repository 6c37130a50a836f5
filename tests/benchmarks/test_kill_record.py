from __future__ import annotations

from pathlib import Path

from kill_record import Batch, Kill, Watched, judge, read_batches

A, B, C, D = (("text", query, "1,2") for query in range(4))


def test_the_record_of_engines_is_read_up_to_a_line_that_was_cut_off(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(
        '{"pid": 7, "at": 1.5, "kind": "text", "keys": [[3, [1, 2]], [4, []]]}\n{"pid": 7, "at": 2.5, "kind": "probab'
    )
    assert read_batches(record) == [Batch(7, 1.5, (("text", 3, "1,2"), ("text", 4, "")))]


def test_lost_and_changed_rows_are_seen() -> None:
    watched = Watched()
    watched.look({A: "1", B: "2"}, 10.0)
    watched.look({A: "1", B: "2", C: "3"}, 11.0)
    assert (watched.lost, watched.changed) == (set(), set())
    watched.look({A: "9", C: "3"}, 12.0)
    assert (watched.lost, watched.changed) == ({B}, {A})
    assert watched.seen_at == {A: 10.0, B: 10.0, C: 11.0}


def test_what_a_kill_cut_off_may_be_made_again() -> None:
    """Process 1 committed A and was killed with B and C in flight; process 2 made B again."""
    batches = [Batch(1, 1.0, (A,)), Batch(1, 2.0, (B, C)), Batch(2, 3.0, (B, D))]
    found = judge(batches, [Kill(1, frozenset({A}))], {A: 1.5, B: 3.5, D: 3.5})
    assert (found.made, found.in_flight, found.repeated) == (5, (2,), (1,))
    assert (found.after_commit, found.unexplained) == (frozenset(), frozenset())


def test_what_was_committed_or_was_not_cut_off_may_not_be_made_again() -> None:
    """Process 2 makes A, which process 1 had committed before it was killed, and B, which process 3 makes meanwhile."""
    batches = [Batch(1, 1.0, (A,)), Batch(3, 2.0, (B,)), Batch(2, 3.0, (A, B, C)), Batch(2, 4.0, (C,))]
    found = judge(batches, [Kill(1, frozenset({A}))], {A: 1.5, B: 3.5})
    assert found.after_commit == {A}
    assert found.unexplained == {A, B, C}
