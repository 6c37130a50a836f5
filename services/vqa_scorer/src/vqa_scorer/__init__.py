"""Scores ordered demonstrations with a vision-language model and the official VQA metric."""
