from __future__ import annotations

import os
from typing import Any

from reliability_lives import Lives, Sample


def life(start: float, sizes: list[float], files: int = 10) -> list[Sample]:
    return [Sample(start + second, size, files) for second, size in enumerate(sizes)]


def judged(sizes: list[float]) -> dict[str, Any]:
    lives = Lives()
    lives.samples["program", 1] = life(0.0, sizes)
    return lives.told()["program"]


def test_a_leak_of_two_mebibytes_a_minute_is_found_in_ten_minutes() -> None:
    found = judged([800.0 + 2 * second / 60 for second in range(600)])
    # Fifths of what follows the first 30 s are 114 s long, their medians 3.8 MiB apart, over 569 s.
    assert (found["grew_mib"], found["grew_mib_per_min_at_end"], found["is_flat"]) == (15.2, 2.0, False)


def test_a_cache_that_has_filled_is_none() -> None:
    found = judged([500.0 + 300 * min(second, 390) / 390 for second in range(600)])
    # The median of the first fifth is at 86.5 s.
    assert (found["grew_mib"], found["grew_mib_per_min_at_end"], found["is_flat"]) == (233.5, 0.0, True)


def test_a_cache_that_still_fills_is_taken_for_one() -> None:
    assert judged([500.0 + 300 * second / 600 for second in range(600)])["is_flat"] is False


def test_one_step_is_no_leak_unless_it_is_large() -> None:
    assert judged([100.0] * 400 + [114.0] * 200)["is_flat"] is True
    assert judged([100.0] * 400 + [131.0] * 200)["is_flat"] is False


def test_what_leaks_and_gives_back_is_judged_by_what_stays() -> None:
    assert judged([100.0 + second % 60 for second in range(600)])["grew_mib_per_min_at_end"] <= 0.5


def test_a_program_is_judged_by_its_worst_life() -> None:
    lives = Lives()
    lives.samples["grows", 2] = life(5.0, [100.0] * 600)
    lives.samples["grows", 3] = life(700.0, [100.0 + second for second in range(301)])
    found = lives.told()["grows"]
    # Seconds 30 to 300: fifths of 54 or 55 samples.
    assert (found["lives"], found["lives_judged"], found["judged_s"], found["largest_mib"]) == (2, 2, 839, 400.0)
    assert (found["grew_mib_per_min_at_end"], found["is_flat"]) == (60.0, False)
    assert found["longest_life_mib"] == [100.0] * 20


def test_a_short_life_is_not_judged() -> None:
    found = judged([100.0] * 300)
    assert (found["lives_judged"], found["is_flat"], found["grew_mib"], found["grew_mib_per_min_at_end"]) == (0, None, None, None)


def test_open_files_count() -> None:
    lives = Lives()
    lives.samples["leaks", 1] = [*life(0.0, [100.0] * 300), *life(300.0, [100.0] * 300, files=40)]
    assert lives.told()["leaks"]["is_flat"] is False


def test_a_process_that_has_gone_is_passed_over() -> None:
    lives = Lives()
    lives.look({"here": os.getpid(), "gone": 2**22 + 1}, 1.0)
    assert list(lives.samples) == [("here", os.getpid())]
    assert lives.samples["here", os.getpid()][0].mib > 1
