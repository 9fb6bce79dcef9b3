"""Pruning: whole channels removed for real, or single weights zeroed. Importing loads no torch."""
