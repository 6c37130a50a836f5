from __future__ import annotations

import os

from reliability_lives import Lives, Sample


def life(start: float, sizes: list[float], files: int = 10) -> list[Sample]:
    return [Sample(start + second, size, files) for second, size in enumerate(sizes)]


def test_a_life_is_judged_after_its_start_and_by_its_worst() -> None:
    lives = Lives()
    lives.samples["flat", 1] = life(0.0, [100.0] * 30 + [300.0] * 50)
    lives.samples["grows", 2] = life(5.0, [100.0] * 100)
    lives.samples["grows", 3] = life(200.0, [100.0 + second for second in range(81)])
    found = lives.told()
    assert found["flat"] == {
        "largest_mib": 300.0, "lives": 1, "lives_judged": 1, "judged_s": 49, "grew_mib": 0.0, "grew_files": 0, "is_flat": True,
    }  # fmt: skip
    # Seconds 30 to 80: the first fifth is 30 to 39, the last 71 to 80.
    assert (found["grows"]["grew_mib"], found["grows"]["is_flat"]) == (41.0, False)


def test_a_short_life_is_not_judged() -> None:
    lives = Lives()
    lives.samples["brief", 1] = life(0.0, [100.0] * 60)
    assert lives.told()["brief"]["is_flat"] is None
    assert lives.told()["brief"]["grew_mib"] is None


def test_open_files_count() -> None:
    lives = Lives()
    lives.samples["leaks", 1] = [*life(0.0, [100.0] * 60), *life(60.0, [100.0] * 60, files=40)]
    assert lives.told()["leaks"]["is_flat"] is False


def test_a_process_that_has_gone_is_passed_over() -> None:
    lives = Lives()
    lives.look({"here": os.getpid(), "gone": 2**22 + 1}, 1.0)
    assert list(lives.samples) == [("here", os.getpid())]
    assert lives.samples["here", os.getpid()][0].mib > 1
