"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, enlarged so that convolutions fit.

Source: E. Alpaydin, C. Kaynak (1998), UCI "Optical Recognition of Handwritten Digits", the part
that ships inside scikit-learn. Nothing is downloaded.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compressor.core.environment import require
from compressor.data.dataset import RawDataset, Split

_LEVELS = 16  # pixels are whole numbers 0..16


def digits(size: Annotated[int, Field(ge=8, le=256)] = 32) -> RawDataset:
    """Ten classes, uint8 ``[1, size, size]``, without a test split of its own.

    Raises:
        MissingError: scikit-learn is not installed.
    """
    require(["sklearn"], "train", "dataset digits")
    from sklearn.datasets import load_digits

    source = load_digits()
    images = resize(source.images, size) * (255 / _LEVELS)
    pixels = np.rint(images).astype(np.uint8)[:, None]
    labels = source.target.astype(np.int64)
    names = tuple(str(k) for k in range(10))
    whole = Split({"image": pixels}, labels)
    return RawDataset("digits", "classification", names, {}, {"all": whole}, source="scikit-learn")


def resize(images: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Enlarge ``[n, h, w]`` to ``[n, size, size]``, bilinear with half-pixel centres."""
    rows = _weights(images.shape[1], size)
    columns = _weights(images.shape[2], size)
    return np.asarray(rows @ images @ columns.T, dtype=np.float64)


def _weights(old: int, new: int) -> NDArray[np.float64]:
    """``[new, old]``: each new pixel as a mean of two old ones; edges repeat."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(centre.astype(np.int64), old - 2)
    weights = np.zeros((new, old))
    weights[np.arange(new), low] = 1 - (centre - low)
    weights[np.arange(new), low + 1] = centre - low
    return weights
