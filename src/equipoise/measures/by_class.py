"""Accuracies by class, for data whose classes differ in size. No torch.

They are shown beside accuracies where the largest class has more than :data:`UNEQUAL` times as
many images as the smallest one; elsewhere they say the same as the accuracy.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BY_CLASS = ("clean_balanced", "robust_balanced", "clean_worst_class", "robust_worst_class")
"""Balanced accuracy is the mean of the classes' accuracies, the worst class the lowest of them."""
UNEQUAL = 1.5


def unequal(sizes: Iterable[int]) -> bool:
    """Return whether classes of these sizes are unequal; a class without images does not count."""
    present = [size for size in sizes if size]
    return bool(present) and max(present) > UNEQUAL * min(present)


def by_class(
    y: "NDArray[Any]", correct: "NDArray[np.bool_]", robust: "NDArray[np.bool_]"
) -> dict[str, float]:
    """Return the accuracies :data:`BY_CLASS`; nothing where the classes are of about equal size.

    Arguments:
        y: The labels, from 0, with shape (N,).
        correct: Which clean images are classified correctly, with shape (N,).
        robust: Which are under attack, too, with shape (N,).
    """
    import numpy as np  # here: the progress on the terminal needs the sentences alone

    sizes = np.bincount(y)
    if not unequal(sizes.tolist()):
        return {}
    right = [np.bincount(y, flags, len(sizes)) for flags in (correct, robust)]
    parts = [counts[sizes > 0] / sizes[sizes > 0] for counts in right]
    values = [part.mean() for part in parts] + [part.min() for part in parts]
    return dict(zip(BY_CLASS, map(float, values), strict=True))


def pairs(accuracies: Mapping[str, Any]) -> tuple[str, str]:
    """Return balanced accuracy and worst class, each clean / robust; empty if they are missing."""
    if not all(name in accuracies for name in BY_CLASS):
        return "", ""
    clean, robust, least_clean, least_robust = (f"{accuracies[name]:.2%}" for name in BY_CLASS)
    return f"{clean} / {robust}", f"{least_clean} / {least_robust}"


def classes_in_words(accuracies: Mapping[str, Any]) -> str:
    """Return the same as part of a sentence; empty if they are missing."""
    balanced, worst = pairs(accuracies)
    return f"balanced {balanced}, worst class {worst}" if balanced else ""
