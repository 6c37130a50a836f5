"""Serves the chosen demonstrations of a query."""
