r"""A stratified sample of a set of images, which does not depend on the order of the set.

All images of a set stand in one order, and a sample is the beginning of that. So the sample of n
is a part of every larger one, and the verdicts on it stay what they were.

Within a class images follow one another by a hash of their values and of a seed. Class :math:`k`
with :math:`n_k` of N images has its image number :math:`j` (from 0) behind place
:math:`\lfloor j N / n_k \rfloor` and not behind place :math:`\lceil (j + 1) N / n_k \rceil`;
wherever several could come next, the one comes that has to be placed earliest. That there always
is an order with these bounds, and that this rule finds it, is known from the scheduling of
periodic tasks; it means that of the first n images of the order each class has
:math:`n n_k / N`, rounded down or up.

References:
    | Proportionate Progress: A Notion of Fairness in Resource Allocation
    | (Baruah, Cohen, Plaxton and Varvel, 1996), https://doi.org/10.1007/BF01940883
"""

import hashlib
from collections import Counter
from heapq import heappop, heappush

import torch
from torch import Tensor

from equipoise.data.core import Images
from equipoise.errors import UserError
from equipoise.sample import Sample

SEED = 2  # one sample for every model, radius and seed of the attacks; why 2: docs/decisions.md


def draw(
    images: Images, n: int | None, *, first: bool = False, seed: int = SEED
) -> tuple[Images, Sample]:
    """Return n images of a set, and which they are.

    Arguments:
        images: The set.
        n: How many; None: all.
        first: Whether they are the first ones of the set, instead of a stratified sample.
        seed: Selects among the possible samples.

    Raises:
        UserError: If there are not so many, or the first ones are asked for without their number.
    """
    total = len(images)
    if first and n is None:
        raise UserError("first: expected n with it, how many of the first images; got none")
    n = total if n is None else n
    if not 1 <= n <= total:
        raise UserError(f"n must lie in 1..{total} images, got {n}")
    first = first and n < total  # all images are a sample like any other
    rows = torch.arange(n) if first else _order(images, seed)[:n]
    drawn = images.take(rows.to(images.y.device))
    named = zip(image_digests(drawn.pixels()), drawn.y.tolist(), strict=True)
    digest = hashlib.sha256(b"".join(sorted(d + b"%d\n" % label for d, label in named)))
    chosen = None if first else seed
    return drawn, Sample(n=n, of=total, seed=chosen, sha256=digest.hexdigest())


def drawn_again(images: Images, n: int, known: Sample) -> tuple[Images, Sample]:
    """Return the images of an earlier evaluation, and which they are.

    Arguments:
        images: The set.
        n: How many were taken.
        known: How they were chosen.

    Raises:
        UserError: If there are not so many.
    """
    seed = SEED if known.seed is None else known.seed
    return draw(images, n, first=known.seed is None, seed=seed)


def image_digests(x: Tensor) -> list[bytes]:
    """Return the SHA-256 of the shape and the values of each image.

    Arguments:
        x: ``float32`` images of shape (N, ...).
    """
    start = hashlib.sha256(f"{tuple(x.shape[1:])}\n".encode())
    found = []
    for image in x.detach().cpu().contiguous().numpy():
        state = start.copy()
        state.update(image.data)
        found.append(state.digest())
    return found


def _order(images: Images, seed: int) -> Tensor:
    """Return the positions of all images in the order of which samples are the beginning."""
    labels = images.y.tolist()
    classes: dict[int, list[tuple[bytes, int]]] = {}
    for row, (key, label) in enumerate(zip(_keys(images, seed), labels, strict=True)):
        classes.setdefault(label, []).append((key, row))
    members = {label: sorted(found) for label, found in classes.items()}
    total, order = len(labels), list[int]()
    waiting: list[tuple[int, int, int]] = []  # from which place on, label, number in the class
    ready: list[tuple[int, bytes, int, int]] = []  # before which place, hash, label, number
    for label in members:
        heappush(waiting, (0, label, 0))
    for place in range(total):
        while waiting and waiting[0][0] <= place:
            _, label, j = heappop(waiting)
            latest = -(-(j + 1) * total // len(members[label]))
            heappush(ready, (latest, members[label][j][0], label, j))
        _, _, label, j = heappop(ready)
        order.append(members[label][j][1])
        if j + 1 < len(members[label]):
            heappush(waiting, ((j + 1) * total // len(members[label]), label, j + 1))
    return torch.tensor(order)


def _keys(images: Images, seed: int) -> list[bytes]:
    """Return a hash for each image, of its values and the seed.

    Where the same image with the same label is there several times, the copies have different
    hashes: they would stand side by side otherwise, and a sample be of fewer images than it seems.
    """
    copies: Counter[tuple[bytes, int]] = Counter()
    keys = []
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        named = zip(image_digests(images.pixels(rows)), images.y[rows].tolist(), strict=True)
        for pair in named:
            keys.append(hashlib.sha256(b"%d %d " % (seed, copies[pair]) + pair[0]).digest())
            copies[pair] += 1
    return keys


_CHUNK = 1000  # images that are float32 at a time
