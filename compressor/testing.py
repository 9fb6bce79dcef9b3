"""Checks for stages."""
