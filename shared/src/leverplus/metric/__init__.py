"""The VQA accuracy, its fallback for items with few annotators, and the clean-up of generated text before either."""

from leverplus.metric.accuracy import VqaScore, metric_fingerprint, score_answer, vqa_accuracy
from leverplus.metric.extraction import extract_answer
from leverplus.metric.normalisation import FLAVOURS, Flavour, clean_whitespace, normalise_answer

__all__ = [
    "FLAVOURS",
    "Flavour",
    "VqaScore",
    "clean_whitespace",
    "extract_answer",
    "metric_fingerprint",
    "normalise_answer",
    "score_answer",
    "vqa_accuracy",
]
