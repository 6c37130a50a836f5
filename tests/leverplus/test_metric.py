"""The official VQA accuracy rule by rule, its flavours, the fallback, and text extraction; values worked out by hand."""

import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leverplus.dataset import majority_answer
from leverplus.errors import InvalidConfig, InvalidInput
from leverplus.fingerprint import canonical_json
from leverplus.metric import (
    FLAVOURS,
    VqaScore,
    answer_texts,
    extract_answer,
    gt_probability,
    metric_fingerprint,
    normalise_answer,
    score_answer,
    vqa_accuracy,
)


def answers(**counts: int) -> list[str]:
    """Ten answers: those given, filled up with ones that nobody else gives."""
    listed = [word for word, count in counts.items() for _ in range(count)]
    return listed + [f"other{number}" for number in range(10 - len(listed))]


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)])
def test_accuracy_by_number_of_matches(matches: int, accuracy: float) -> None:
    assert vqa_accuracy("dog", answers(dog=matches)) == pytest.approx(accuracy, abs=1e-12)


def test_fewer_than_ten_annotators_follow_the_formula() -> None:
    # three of four agree: the three see 2 matches each, the fourth sees 3: (3 · 2/3 + 1) / 4
    assert vqa_accuracy("dog", ["dog", "dog", "dog", "cat"]) == pytest.approx(0.75)


def test_unanimous_answers_are_compared_without_normalising() -> None:
    assert vqa_accuracy("Two.", ["two"] * 10) == 0.0
    assert vqa_accuracy("Two.", ["two"] * 10, "lever_plus") == 1.0
    assert vqa_accuracy("two", ["two"] * 10) == 1.0
    assert vqa_accuracy(" two\n", ["two"] * 9 + ["two\t"]) == 1.0  # cleaned of whitespace, they are unanimous


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Dog", "dog"),
        ("an apple and a pear", "apple and pear"),
        ("none", "0"),
        ("Zero one TEN eleven", "0 1 10 eleven"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("yall'd've y'alld've y'all'dve", "y'all'd've y'all'd've y'all'd've"),
        ("somebody'd", "somebodyd"),  # the wrong way round, as published
        ("somebodyd", "somebodyd"),
        ("Ive", "ive"),  # "Ive" stands in the table with its capital, and the text is lower by then
        ("ill hell well shed wed", "ill hell well shed wed"),  # words of their own, not contractions
        ("twas o'clock oclock", "'twas o'clock o'clock"),
        ("black/white", "black white"),  # no space beside the mark: a space in its place
        ("black / white", "black white"),  # a space beside it: deleted
        ("black/white / red", "blackwhite red"),  # decided by the whole text, for every place of the mark
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt"),
        ("1,000", "1000"),  # digit-comma-digit deletes
        ("1,000 t-shirts", "1000 tshirts"),  # every mark, not only commas
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("yes!", "yes"),
        ("what?!", "what"),
        ("it's", "it's"),  # the apostrophe is no mark
        ("50%", "50%"),
        ("red:blue", "red:blue"),  # neither is the colon
        ("10.", "10"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("p.m.", "pm"),
        ("3.5.", "3.5"),
        ("[x]{y}(z)", "x y z"),
        ("x\\b_c", "x b c"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


def test_an_article_left_by_a_mark_is_dropped_too() -> None:
    assert normalise_answer("the-dog") == "dog"


def test_only_32_periods_are_deleted() -> None:
    assert normalise_answer("." * 32) == ""
    assert normalise_answer("." * 35) == "..."


def test_newlines_and_tabs_become_spaces() -> None:
    # "red\t/white": as a space the tab stands beside the slash, which is then deleted
    assert vqa_accuracy("red\t/white", answers(redwhite=1)) == 0.0
    assert vqa_accuracy("red\t/white", ["red white"] * 4 + answers()[:6]) == 1.0


def test_annotators_are_told_apart_by_index() -> None:
    """Compared as values, six equal answers would leave nothing to match for those who gave them."""
    assert vqa_accuracy("no", ["no"] * 6 + ["yes"] * 4) == 1.0


def test_score_answer_file_mode() -> None:
    assert score_answer("dog", answers(dog=2)) == VqaScore(1, 0.6, "file")
    assert score_answer("cat", answers(dog=2)) == VqaScore(0, 0.0, "file")
    assert score_answer("", [""] * 10) == VqaScore(0, 0.0, "file")
    assert score_answer("Two.", ["two"] * 10, "lever_plus") == VqaScore(1, 1.0, "file")


@pytest.mark.parametrize(
    ("prediction", "given", "accuracy"),
    [
        ("A dog!", ["dog"], 1.0),
        ("DOG", ["cat", "the dog."], 1.0),
        ("brown dog", ["dog"], 0.5),
        ("dog", ["brown dog", "cat"], 0.5),
        ("brown dog", ["old brown dog sleeping"], 0.5),
        ("dogs", ["dog"], 0.0),  # part of a word is no match
        ("brown old dog", ["brown dog"], 0.0),  # words with another between them neither
        ("", ["dog"], 0.0),
        ("  \n", ["dog"], 0.0),
        ("the", ["a"], 0.0),  # nothing is left of either
        ("dog", ["the"], 0.0),  # an answer without words is contained in nothing
    ],
)
def test_score_answer_fallback(prediction: str, given: list[str], accuracy: float) -> None:
    assert score_answer(prediction, given) == VqaScore(int(accuracy > 0), accuracy, "fallback")


def test_without_answers_the_score_is_unknown() -> None:
    assert score_answer("dog", []) == VqaScore(None, None, "error")
    with pytest.raises(InvalidInput, match="without annotators"):
        vqa_accuracy("dog", [])


def test_nine_answers_fall_back_ten_do_not() -> None:
    assert score_answer("dog", ["dog"] * 9).mode == "fallback"
    assert score_answer("dog", ["dog"] * 10).mode == "file"


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="official, lever_plus"):
        vqa_accuracy("dog", ["dog"], "stemmed")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="must be strings"):
        score_answer(None, ["dog"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="list of texts"):
        score_answer("dog", "dog")


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("dog", "dog"),
        (" a dog \n", "a dog"),
        ("dog, brown", "dog"),
        ("1,000", "1,000"),
        ("dog Question: what", "dog"),
        ("dog Short answer: cat", "dog"),
        ("dogAnswer", "dog"),
        ("dog\ncat", "dog"),
        ("\n\n dog \n cat", "dog"),
        ("Question: what", ""),
        ("short answer", "short answer"),
        ("", ""),
    ],
)
def test_extract_answer(raw: str, answer: str) -> None:
    assert extract_answer(raw) == answer


@pytest.mark.parametrize(
    ("raw", "first_line"),
    [("dog, brown", "dog, brown"), ("\n\n dog Question: what \n cat", "dog Question: what"), ("", ""), (" \n ", "")],
)
def test_another_postprocessing_reads_another_answer(raw: str, first_line: str) -> None:
    assert extract_answer(raw, "first-line") == first_line
    assert extract_answer(raw, "none") == raw


def test_an_unknown_postprocessing_is_refused() -> None:
    for call in (lambda: extract_answer("dog", "last-word"), lambda: metric_fingerprint("official", "last-word")):  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidConfig, match="'last-word' is unknown; there are: short-answer, first-line, none"):
            call()


def test_the_default_fingerprint_is_the_one_that_scores_were_stored_under() -> None:
    stored = b'{"flavour":"official","name":"vqa_accuracy","postprocessing":{"name":"short-answer","version":1},"version":1}'
    assert canonical_json(metric_fingerprint()) == stored
    assert metric_fingerprint(postprocessing="first-line")["postprocessing"] == {"name": "first-line", "version": 1}


def test_fingerprint_names_flavour_and_postprocessing() -> None:
    assert metric_fingerprint("lever_plus") == {
        "name": "vqa_accuracy",
        "version": 1,
        "flavour": "lever_plus",
        "postprocessing": {"name": "short-answer", "version": 1},
    }


texts = st.text(alphabet="ab12 .,/-'!?\n\tTheno", max_size=12)


@given(texts, st.lists(texts, min_size=1, max_size=12), st.sampled_from(FLAVOURS))
@settings(max_examples=200)
def test_accuracy_is_a_share_and_score_agrees(prediction: str, given_answers: list[str], flavour: str) -> None:
    accuracy = vqa_accuracy(prediction, given_answers, flavour)  # pyright: ignore[reportArgumentType]
    assert 0.0 <= accuracy <= 1.0
    score = score_answer(prediction, given_answers, flavour)  # pyright: ignore[reportArgumentType]
    assert score.accuracy is not None
    assert 0.0 <= score.accuracy <= 1.0
    assert score.correct == int(score.accuracy > 0)
    if len(given_answers) >= 10 and prediction.strip():
        assert score.accuracy == accuracy


@given(texts, st.lists(texts, min_size=2, max_size=10), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_order_of_annotators_does_not_matter(prediction: str, given_answers: list[str], random) -> None:
    shuffled = list(given_answers)
    random.shuffle(shuffled)
    assert vqa_accuracy(prediction, shuffled) == vqa_accuracy(prediction, given_answers)
    assert score_answer(prediction, shuffled) == score_answer(prediction, given_answers)


@given(st.integers(0, 9), st.integers(2, 10))
def test_more_matches_never_lower_the_accuracy(matches: int, count: int) -> None:
    def with_matches(number: int) -> list[str]:
        return ["dog"] * number + [f"other{index}" for index in range(count - number)]

    matches = min(matches, count - 1)
    assert vqa_accuracy("dog", with_matches(matches + 1)) >= vqa_accuracy("dog", with_matches(matches))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_majority_answers_of_vizwiz_val(flavour: str) -> None:
    folder = os.environ.get("LEVERPLUS_TEST_ANNOTATIONS")
    path = Path(folder or ".") / "vizwiz_val_annotations.json"
    if folder is None or not path.is_file():
        pytest.skip("LEVERPLUS_TEST_ANNOTATIONS names no folder with vizwiz_val_annotations.json")
    annotations = orjson.loads(path.read_bytes())["annotations"]
    human = [[entry["answer"] for entry in annotation["answers"]] for annotation in annotations]
    accuracies = [vqa_accuracy(majority_answer(given) or "", given, flavour) for given in human]  # pyright: ignore[reportArgumentType]
    assert len(accuracies) == 4319
    assert round(100 * sum(accuracies) / len(accuracies), 2) == 94.11


def test_gt_probability_weighs_distinct_answers_as_the_metric_credits_them():
    answers = ["red"] * 6 + ["red bus", " red bus ", "bus", ""] + ["  "]
    known = {"red": 0.5, "red bus": 0.3, "bus": 0.9}
    assert answer_texts(answers) == ("red", "red bus", "bus")
    assert gt_probability(answers, known) == pytest.approx(0.5 + 0.3 * 2 / 3 + 0.9 / 3)
    assert gt_probability(["a", "b"] * 3, {"a": 0.9, "b": 0.8}) == pytest.approx(1.7), "length-normalised: it may pass 1"
    assert gt_probability([], {}) is None
    assert gt_probability([" "], {}) is None
    with pytest.raises(KeyError, match="bus"):
        gt_probability(answers, {"red": 0.5, "red bus": 0.3})
