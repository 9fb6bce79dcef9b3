"""Datasets, their splits and stateless batches; NumPy only."""
