r"""Stratified samples of images, which do not depend on the order of the dataset.

A sample is the beginning of one fixed order of all images, so that it is part of every larger
sample. Images of a class are ordered by a hash of their values and of a seed. Of class :math:`k`
with :math:`n_k` of N images, image :math:`j` (from 0) has a position from
:math:`\lfloor j N / n_k \rfloor` to below :math:`\lceil (j + 1) N / n_k \rceil`; at each position
comes the image with the earliest last position. Such an order always exists and has
:math:`n n_k / N` images of each class, rounded down or up, among the first n.

References:
    | Proportionate Progress: A Notion of Fairness in Resource Allocation
    | (Baruah, Cohen, Plaxton and Varvel, 1996), https://doi.org/10.1007/BF01940883
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from heapq import heappop, heappush

import torch
from torch import Tensor

from equipoise.data.core import Images, to_unit
from equipoise.data.rows import pieces
from equipoise.errors import UserError
from equipoise.sample import Sample, digests

SEED = 2  # one sample for every model, radius and seed of the attacks; why 2: docs/decisions.md


def draw(
    images: Images, n: int | None, *, first: bool = False, seed: int = SEED
) -> tuple[Images, Sample]:
    """Return n of the images, and the description of the sample.

    Arguments:
        images: All images.
        n: The number of images; None: all.
        first: Whether to take the first n images instead of a stratified sample.
        seed: Selects among the possible samples.

    Raises:
        UserError: If there are fewer images, or ``first`` is given without ``n``.
    """
    total = len(images)
    if first and n is None:
        raise UserError("first: expected n, the number of images, with it; got none")
    n = total if n is None else n
    if not 1 <= n <= total:
        raise UserError(f"n must lie in 1..{total} images, got {n}")
    first = first and n < total  # all images are a stratified sample, too
    rows = torch.arange(n) if first else _order(images, seed)[:n]
    drawn = images.take(rows.to(images.y.device))
    named = zip(_digests(drawn), drawn.y.tolist(), strict=True)
    digest = hashlib.sha256(b"".join(sorted(d + b"%d\n" % label for d, label in named)))
    chosen = None if first else seed
    return drawn, Sample(n=n, of=total, seed=chosen, sha256=digest.hexdigest())


def drawn_again(images: Images, n: int, sample: Sample) -> tuple[Images, Sample]:
    """Return n images drawn like those of an earlier sample; see :func:`draw`."""
    seed = SEED if sample.seed is None else sample.seed
    return draw(images, n, first=sample.seed is None, seed=seed)


def image_digests(x: Tensor) -> list[bytes]:
    """Return the SHA-256 of the shape and the values of each image.

    Arguments:
        x: ``float32`` images of shape (N, ...).
    """
    return digests(x.detach().cpu().numpy())


def rows_among(x: Tensor, y: Tensor, others: Tensor, labels: Tensor) -> Tensor | None:
    """Return the rows of images with labels among others; None: some are missing.

    Arguments:
        x: The images, ``float32`` of shape (N, ...).
        y: Their labels, of shape (N,).
        others: The images among which they are looked for, of shape (M, ...).
        labels: The labels of these.
    """
    ours, theirs = (
        zip(image_digests(images), some.tolist(), strict=True)
        for images, some in ((x, y), (others, labels))
    )
    places = {pair: row for row, pair in enumerate(theirs)}
    rows = [places.get(pair, -1) for pair in ours]
    return None if -1 in rows else torch.tensor(rows)


def _order(images: Images, seed: int) -> Tensor:
    """Return the positions of all images in the order of the samples."""
    labels = images.y.tolist()
    classes: dict[int, list[tuple[bytes, int]]] = {}
    for row, (key, label) in enumerate(zip(_keys(images, seed), labels, strict=True)):
        classes.setdefault(label, []).append((key, row))
    members = {label: sorted(images_of) for label, images_of in classes.items()}
    total, order = len(labels), list[int]()
    waiting = [(0, label, 0) for label in sorted(members)]  # first place, label, number in class
    ready: list[tuple[int, bytes, int, int]] = []  # end of the places, hash, label, number
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

    Copies of an image with the same label get different hashes: otherwise they would be next to
    each other in the order, and a sample would have fewer different images.
    """
    copies: Counter[tuple[bytes, int]] = Counter()
    keys = []
    for pair in zip(_digests(images), images.y.tolist(), strict=True):
        keys.append(hashlib.sha256(b"%d %d " % (seed, copies[pair]) + pair[0]).digest())
        copies[pair] += 1
    return keys


def _digests(images: Images) -> Iterator[bytes]:
    """Yield the SHA-256 of each image, as for :func:`image_digests`."""
    for _, part in pieces(images.x):
        yield from image_digests(to_unit(part))
