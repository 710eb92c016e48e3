"""A first look at pictures: which can be read, and which size and mode their images will have."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from equipoise.data.folder import Item, Listing
from equipoise.data.pictures import BadImage, Header, header
from equipoise.data.reading import LARGEST, SMALLEST, Reading
from equipoise.errors import UserError, short

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console

T = TypeVar("T")

THREADS = 8
NAMES = 3  # that a message shows


def survey(listing: Listing, reading: Reading, console: "Console | None") -> Mapping[str, Any]:
    """Look at the beginning of each file; return size, mode, files that are no pictures."""
    bad: dict[str, str] = {}
    sizes, modes, remarks = Counter[str](), Counter[str](), Counter[str]()
    small, largest, grey = list[str](), 1, True
    work = in_order(_header, listing.items, THREADS, console, "looking at images")
    for item, head in work:
        if isinstance(head, str):
            bad[item.name] = head
            continue
        height, width = head.size
        sizes[f"{height} x {width}"] += 1
        modes[head.mode] += 1
        remarks.update(head.remarks)
        largest, grey = max(largest, height * width), grey and head.grey
        if reading.size and max(height, width) < reading.size:
            small.append(f"{item.name} ({height} x {width})")
    if not sizes:
        raise UserError(f"no file in {listing.place} can be read: {_named(bad)}")
    if small:
        remark = f"smaller than {reading.size} pixels and enlarged, like {small[0]}"
        remarks[remark] = len(small)
    return {
        "size": _size(sizes, listing, reading),
        "mode": "L" if (reading.channels or (1 if grey else 3)) == 1 else "RGB",
        "sizes": dict(sizes.most_common(20)),
        "modes": dict(modes),
        "remarks": dict(remarks),
        "largest": largest,
        "bad": bad,
    }


def _size(sizes: Counter[str], listing: Listing, reading: Reading) -> list[int]:
    """Return height and width of the images."""
    if reading.size is not None:
        return [reading.size, reading.size]
    sides = [tuple(map(int, size.split(" x "))) for size in sizes]
    if len(sides) > 1:
        (low, high) = min(sides), max(sides)
        usual = int(median(min(map(int, size.split(" x "))) for size in sizes.elements()))
        raise UserError(
            f"the images in {listing.place} have {len(sides):,} sizes, from "
            f"{low[0]} x {low[1]} to {high[0]} x {high[1]}: give one, like "
            f"size={min(max(usual // 32 * 32, 32), 224)}"
        )
    (size,) = sides
    if not SMALLEST <= min(size) <= max(size) <= LARGEST:
        raise UserError(
            f"the images in {listing.place} have {size[0]} x {size[1]} pixels; "
            f"{SMALLEST} to {LARGEST} a side can be used: give a size, like size=224"
        )
    return list(size)


def in_order(
    work: Callable[[Item], T],
    items: Sequence[Item],
    threads: int,
    console: "Console | None",
    text: str,
    done: int = 0,
    each: int = 1024,
) -> Iterator[tuple[Item, T]]:
    """Yield the items in their order, each with what the work returns."""
    total = len(items) + done
    bar = console.progress(total, done, text=text) if console else nullcontext()
    with ThreadPoolExecutor(threads) as pool, bar:
        for start in range(0, len(items), each):
            some = items[start : start + each]
            yield from zip(some, pool.map(work, some), strict=True)
            if console:
                console.advance(len(some))


def _header(item: Item) -> Header | str:
    try:
        return header(item.open)
    except BadImage as error:
        return str(error)


def refusal(place: str, bad: Mapping[str, str], of: int) -> str:
    """Return the message for files that are no pictures."""
    return (
        f"{len(bad):,} of {of:,} images in {place} cannot be read: {_named(bad)}; remove them, "
        "mend them, or leave them out with on_bad_image=skip"
    )


def _named(bad: Mapping[str, str]) -> str:
    shown = ", ".join(f"{short(name)} ({why})" for name, why in islice(bad.items(), NAMES))
    return f"{shown} and {len(bad) - NAMES:,} more" if len(bad) > NAMES else shown
