"""Trains pointer selectors as jobs on Celery."""
