"""Merkle trees: one checksum of many rows, to which each row can be checked without the others.

The tree is that of Certificate Transparency: the checksum of a row is that of a zero byte and the
row, that of two nodes is of a one byte and both; a node without a neighbour goes up as it is.

References:
    | Certificate Transparency (Laurie, Langley and Kasper, 2013)
    | https://www.rfc-editor.org/rfc/rfc6962
"""

from collections.abc import Sequence
from hashlib import sha256


def root(rows: Sequence[bytes]) -> bytes:
    """Return the root of the tree of some rows.

    Example:
        >>> root([b"a"]) == leaf(b"a"), root([b"a", b"b"]) == node(leaf(b"a"), leaf(b"b"))
        (True, True)
    """
    if not rows:
        return sha256().digest()
    return levels(rows)[-1][0]


def path(nodes: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """Return the neighbours of a row on its way to the root, from below.

    Arguments:
        nodes: The nodes of the tree, as :func:`levels` returns them.
        index: The position of the row.
    """
    found = []
    for level in nodes[:-1]:
        if (index ^ 1) < len(level):
            found.append(level[index ^ 1])
        index //= 2
    return found


def climb(row: bytes, index: int, count: int, neighbours: Sequence[bytes]) -> bytes:
    """Return the root that a row and its neighbours have.

    Arguments:
        row: The row.
        index: Its position.
        count: The number of rows of the tree.
        neighbours: The nodes of :func:`path`.

    Raises:
        ValueError: If there are fewer neighbours than the tree has; others are ignored.
    """
    here, left = leaf(row), iter(neighbours)
    while count > 1:
        if (index ^ 1) < count:
            if (other := next(left, None)) is None:
                raise ValueError("a path is too short")
            here = node(other, here) if index % 2 else node(here, other)
        index, count = index // 2, (count + 1) // 2
    return here


def leaf(row: bytes) -> bytes:
    """Return the checksum of a row."""
    return sha256(b"\0" + row).digest()


def node(first: bytes, second: bytes) -> bytes:
    """Return the checksum of two nodes."""
    return sha256(b"\1" + first + second).digest()


def levels(rows: Sequence[bytes]) -> list[list[bytes]]:
    """Return the nodes of the tree, from below."""
    found = [[leaf(row) for row in rows]]
    while len(found[-1]) > 1:
        below = found[-1]
        pairs = zip(below[::2], below[1::2], strict=False)
        last = below[len(below) - len(below) % 2 :]
        found.append([node(*pair) for pair in pairs] + last)
    return found
