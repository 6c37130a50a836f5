"""The VQA accuracy, its fallback for items with few annotators, the clean-up of generated text before either,
and what the probabilities of annotated answers sum up to."""

from leverplus.metric.accuracy import VqaScore, metric_fingerprint, score_answer, vqa_accuracy
from leverplus.metric.extraction import POSTPROCESSINGS, PostprocessingName, extract_answer
from leverplus.metric.normalisation import FLAVOURS, Flavour, clean_whitespace, normalise_answer
from leverplus.metric.probability import answer_texts, gt_probability

__all__ = [
    "FLAVOURS",
    "POSTPROCESSINGS",
    "Flavour",
    "PostprocessingName",
    "VqaScore",
    "answer_texts",
    "clean_whitespace",
    "extract_answer",
    "gt_probability",
    "metric_fingerprint",
    "normalise_answer",
    "score_answer",
    "vqa_accuracy",
]
