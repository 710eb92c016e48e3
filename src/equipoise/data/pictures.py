"""One picture from the bytes of its file: upright, in one mode, in one size, 8 bits a value.

Pillow decodes. The sizes are made by ``ImageOps.fit`` (crop), ``ImageOps.pad`` (pad) and
``Image.resize`` (stretch), all with ``BILINEAR``, so that whoever serves a model can do the same.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from equipoise.data.reading import Reading
from equipoise.errors import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # no others are decoded
MOST_BYTES = 1 << 30  # of one file
ORIENTATION = 0x0112
GREY = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I"}
DEEP = {"I;16", "I;16L", "I;16B", "I"}
TRANSPARENT = {"RGBA", "RGBa", "LA", "La", "PA"}
FILTER = Image.Resampling.BILINEAR


Open = Callable[[], IO[bytes]]


class BadImage(ValueError):
    """A file that is no picture which can be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a file says.

    Arguments:
        size: Height and width, upright.
        mode: The mode of Pillow.
        remarks: What is done with it that not everybody expects, each a few words.
    """

    size: tuple[int, int]
    mode: str
    remarks: tuple[str, ...]

    @property
    def grey(self) -> bool:
        """Whether it has no colours."""
        return self.mode in GREY


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings away, of large pictures and odd metadata; load its plugins."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(open_: Open) -> Iterator[ImageFile.ImageFile]:
    """Open a picture; what goes wrong is a BadImage."""
    try:
        with open_() as file:
            length = file.seek(0, io.SEEK_END)
            if not length:
                raise BadImage("an empty file")
            if length > MOST_BYTES:
                raise BadImage(f"a file of {length:,} bytes; at most {MOST_BYTES:,} are read")
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"no picture ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadImage("too many pixels: scale it down first") from None
    except MemoryError:
        raise
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except PermissionError:
        raise BadImage("no permission to read it") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise BadImage(f"damaged or cut short: {one_line(error, 100)}") from None


def header(open_: Open) -> Header:
    """Return what the beginning of a file says; its pixels are not decoded.

    Arguments:
        open_: Opens the file.

    Raises:
        BadImage: If it is no picture.
    """
    with _opened(open_) as image:
        width, height = image.size
        turned = _orientation(image)
        remarks = []
        if image.mode == "CMYK":
            remarks.append("CMYK, converted without a colour profile")
        if image.mode in TRANSPARENT or "transparency" in image.info:
            remarks.append("transparent, whose transparency is left out")
        if image.mode in DEEP:
            remarks.append("16 bits a value, scaled to 8")
        if image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False):
            remarks.append("of several frames or pages, of which the first is taken")
        if turned != 1:
            remarks.append("turned upright as its EXIF data say")
        if image.mode == "F":
            raise BadImage("floating-point values of unknown range: save it with 8 or 16 bits")
        grey = image.mode == "P" and image.palette is None
        size = (width, height) if turned >= 5 else (height, width)
        return Header(size, "L" if grey else image.mode, tuple(remarks))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1) or 1)
    except Exception:  # damaged EXIF data: the picture stays as it is
        return 1


def decode(open_: Open, size: tuple[int, int], mode: str, resize: str) -> NDArray[np.uint8]:
    """Return a picture as bytes, with shape (C, H, W).

    Arguments:
        open_: Opens the file.
        size: Height and width.
        mode: ``"L"`` or ``"RGB"``.
        resize: ``"crop"``, ``"pad"`` or ``"stretch"``.

    Raises:
        BadImage: If it cannot be decoded.
    """
    with _opened(open_) as opened:
        opened.load()
        image: Image.Image = opened
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        image = _resized(_in_mode(image, mode), (size[1], size[0]), resize)
        pixels = np.asarray(image)
    return pixels[None] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a picture in a mode; transparency is left out, and 16 bits become 8."""
    if image.mode in DEEP:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("values beyond 16 bits")
        image = Image.fromarray(scaled(values))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values of 16 bits as values of 8 bits: divided by 257, rounded."""
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _resized(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    """Return a picture of (width, height)."""
    if image.size == size:
        return image
    if resize == "crop":
        return ImageOps.fit(image, size, FILTER)
    if resize == "pad":
        return ImageOps.pad(image, size, FILTER)
    return image.resize(size, FILTER)


def inputs(size: tuple[int, int], mode: str, reading: Reading) -> Mapping[str, Any]:
    """Return how pictures become images, for ``config.json`` (docs/formats.md)."""
    return {
        "size": list(size),
        "resize": reading.resize,
        "interpolation": "bilinear",
        "mode": mode,
        "orientation": "exif",
        "scale": 255,
    }
