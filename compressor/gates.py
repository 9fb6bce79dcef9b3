"""Verdicts from stored results."""
