"""Datasets, their splits and stateless batches; NumPy only.

A dataset of your own is a function that returns a :class:`RawDataset`, named in the pipeline file
as ``dataset: my_pkg.data:plankton``; its keyword arguments are ``options``, and ``root`` and
``download`` if it takes them.
"""

from compressor.data.catalog import DATASETS
from compressor.data.dataset import Dataset, RawDataset, Split, as_float, load, normalise

__all__ = ["DATASETS", "Dataset", "RawDataset", "Split", "as_float", "load", "normalise"]
