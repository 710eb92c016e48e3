"""Optical recognition of handwritten digits: 1,797 real 8 x 8 images, no download.

The dataset comes with scikit-learn (:func:`sklearn.datasets.load_digits`). It has no official test
set: here 500 images, stratified by class with seed 0, are held out for testing, and 1,297 are left
for training. Values 0..16 become bytes, ``round(v * 255 / 16)``.

Reference: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998.
"""

import numpy as np
import torch

from equipoise.data.core import Dataset, Images, stratified_split
from equipoise.data.published import Source

EPS = 0.15
HELD_OUT = 500


def _make() -> Dataset:
    """Return the digits, split 1,297 to 500."""
    import sklearn  # slow to import, needed here only
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    every = Images(torch.from_numpy(x), torch.from_numpy(bunch.target.astype(np.int64)))
    train_index, test_index = stratified_split(every.y, HELD_OUT, seed=0)
    train, test = every.take(train_index), every.take(test_index)
    return Dataset(
        name="digits",
        train=train,
        test=test,
        classes=tuple("0123456789"),
        eps=EPS,
        source=f"digits as they come with scikit-learn {sklearn.__version__}",
    )


DIGITS = Source(
    title="Digits, 8 x 8 grey",
    n=1797,
    train=1797 - HELD_OUT,
    licence="CC BY 4.0 (UCI), comes with scikit-learn",
    eps=EPS,
    make=_make,
)
