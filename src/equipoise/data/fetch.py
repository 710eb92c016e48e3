"""Downloading the published files, resumed where they broke off and checked before they count.

A file grows as ``NAME.part`` and takes its name, atomically, once its checksum is right; so a file
under its own name is a whole file. What a broken transfer left is kept, and the next try asks the
server for the rest. Only http and https are followed, redirections included, and never from https
to http. No file may be larger than is known of the published ones.
"""

__all__ = ["REMOTES", "Remote", "download", "fetch"]

import gzip
import http.client
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from equipoise.data import mnist, svhn
from equipoise.data.core import digest
from equipoise.errors import RunError, UserError

BLOCK = 1 << 18  # bytes read at a time
Advance = Callable[[int, int | None], None]  # bytes so far, bytes in all where known


@dataclass(frozen=True)
class Remote:
    """Where a data set is published.

    Arguments:
        base: The folder on the server.
        files: File names and checksums, e.g. ``{"a.gz": "sha256:..."}``.
        gunzip: Whether the checksums are of the uncompressed content.
        largest: The bytes of the largest file, uncompressed where the checksums are.
    """

    base: str
    files: Mapping[str, str]
    gunzip: bool = False
    largest: int = 64 << 20


REMOTES = {
    "mnist": Remote(
        base="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files={f"{file}.gz": checksum for file, checksum in mnist.MNIST.checksums.items()},
        gunzip=True,
    ),
    "fashion-mnist": Remote(
        base="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files={f"{file}.gz": checksum for file, checksum in mnist.FASHION_MNIST.checksums.items()},
        gunzip=True,
    ),
    "cifar10": Remote(
        base="https://www.cs.toronto.edu/~kriz/",
        files={
            "cifar-10-binary.tar.gz": (
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            )
        },
        largest=170_052_171,
    ),
    "svhn": Remote(
        base="http://ufldl.stanford.edu/housenumbers/", files=svhn.FILES, largest=182_040_794
    ),
}


def fetch(
    remote: Remote, folder: Path, *, base: str | None = None, progress: bool = True
) -> list[Path]:
    """Download the files of ``remote`` that are not yet in ``folder``, and check all of them.

    Arguments:
        remote: What to download.
        folder: Where to; it is made if need be.
        base: Another folder on a server to take the same files from.
        progress: Whether to show progress on standard error.

    Returns:
        The paths of the files.

    Raises:
        UserError: If the folder cannot be written to, or an address is not http or https.
        RunError: If a transfer fails, or what arrives is not the published file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror or error}") from error
    address = (base or remote.base).rstrip("/")
    return [
        download(
            f"{address}/{file}",
            folder / file,
            checksum,
            gunzip=remote.gunzip,
            largest=remote.largest,
            progress=progress,
        )
        for file, checksum in remote.files.items()
    ]


def download(
    url: str,
    path: Path,
    checksum: str,
    *,
    gunzip: bool = False,
    largest: int = 1 << 30,
    progress: bool = True,
    attempts: int = 3,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Download one file, unless it is there already.

    A file at ``path`` with another checksum is kept as ``NAME.wrong``.

    Arguments:
        url: The address, http or https.
        path: Where the file goes.
        checksum: What it must have, e.g. ``"sha256:..."``.
        gunzip: Whether the checksum is of the uncompressed content.
        largest: The most bytes that the file may have, uncompressed where the checksum is.
        progress: Whether to show progress on standard error.
        attempts: How often to try; each goes on where the last one broke off.
        pause: Seconds before the second attempt; doubled for each further one.
        timeout: Seconds without an answer after which an attempt is given up.

    Returns:
        ``path``.

    Raises:
        UserError: If ``url`` is not http or https.
        RunError: If the transfer fails, or what arrives is not the published file.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UserError(f"expected an http or https address, got {url!r}")
    from equipoise.terminal.progress import Console

    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_file() and _checksum(path, checksum, gunzip, largest) == _value(checksum):
            return path
        console = Console(quiet=not progress)
        with console.progress(unit="bytes", text=path.name) as advance:
            _transfer(url, part, _capped(advance, url, part, largest), attempts, pause, timeout)
        _accept(part, path, checksum, gunzip, largest, url)
        console.say(f"downloaded {path.name}")
    except OSError as error:
        raise RunError(
            f"cannot read or write {path} or {part.name}: {error.strerror or error}"
        ) from error
    return path


def _capped(advance: Advance, url: str, part: Path, largest: int) -> Advance:
    """Return what shows progress and ends a transfer that is larger than the published file."""

    def told(done: int, total: int | None) -> None:
        if max(done, total or 0) > largest:
            part.unlink(missing_ok=True)
            raise RunError(
                f"{url} is not the published file: it has {max(done, total or 0)} bytes, more "
                f"than {largest}; it was deleted"
            )
        advance(done, total)

    return told


class _Secure(request.HTTPRedirectHandler):
    """Follows redirections, but not from https to http."""

    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        """Return the request for where an answer points to."""
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise RunError(f"{req.full_url} points from https to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Broken(Exception):
    """A transfer that may succeed when it is tried again."""


def _transfer(
    url: str, part: Path, advance: Advance, attempts: int, pause: float, timeout: float
) -> None:
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _attempt(url, part, advance, timeout)
        except _Broken as event:
            problem = str(event)
    kept = (
        f"{part.stat().st_size} bytes are kept in {part}" if part.exists() else "nothing is kept"
    )
    raise RunError(
        f"{url}: the transfer failed {attempts} times ({problem}); {kept}: run the same command "
        "again to go on from there"
    )


def _attempt(url: str, part: Path, advance: Advance, timeout: float) -> None:
    start = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, start, timeout)
    except HTTPError as error:
        with error:
            _refused(error, url, part, start)
        return
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Broken("the server sent another part than asked for")
        length = response.headers["Content-Length"]
        done = start if resumed else 0
        total = done + int(length) if length and length.isdigit() else None
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, done, total, advance)


def _copy(
    response: http.client.HTTPResponse,
    file: IO[bytes],
    done: int,
    total: int | None,
    advance: Advance,
) -> None:
    advance(done, total)
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(str(error) or type(error).__name__) from error
        if not block:
            break
        file.write(block)
        done += len(block)
        advance(done, total)
    if total is not None and done < total:
        raise _Broken(f"the connection ended after {done} of {total} bytes")


def _open(url: str, start: int, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "equipoise", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = request.OpenerDirector()  # no handlers for file: and ftp:, unlike build_opener()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        _Secure(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    response = opener.open(request.Request(url, headers=headers), timeout=timeout)  # noqa: S310
    if not isinstance(response, http.client.HTTPResponse):
        raise _Broken("the server did not answer in HTTP")
    return response


def _refused(error: HTTPError, url: str, part: Path, start: int) -> None:
    """Return if there is nothing left to ask for, and raise what fits otherwise."""
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        if error.headers["Content-Range"] == f"bytes */{start}":
            return
        part.unlink()
        raise _Broken(f"the server has nothing after byte {start}")
    if error.code >= 500 or error.code in {408, 425, 429}:
        raise _Broken(f"HTTP {error.code} {error.reason}")
    raise RunError(f"{url}: the server answered HTTP {error.code} {error.reason}")


def _accept(part: Path, path: Path, checksum: str, gunzip: bool, largest: int, url: str) -> None:
    got = _checksum(part, checksum, gunzip, largest)
    if got != _value(checksum):
        part.unlink()
        raise RunError(
            f"{url} is not the published file: expected {checksum.replace(':', ' ', 1)}"
            f"{' of its uncompressed content' if gunzip else ''}, got {got}; it was deleted"
        )
    if path.exists():
        path.replace(path.with_name(f"{path.name}.wrong"))
    part.replace(path)


def _checksum(path: Path, checksum: str, gunzip: bool, largest: int) -> str:
    try:
        with gzip.open(path) if gunzip else path.open("rb") as file:
            return digest(_blocks(file.read, largest), checksum.partition(":")[0])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"no whole gzip file ({error})"


def _blocks(read: Callable[[int], bytes], largest: int) -> Iterator[bytes]:
    """Yield the content of a file, up to some bytes more than it may have."""
    left = largest + 1  # one more, so that the checksum is another
    while left > 0 and (block := read(min(BLOCK, left))):
        left -= len(block)
        yield block


def _value(checksum: str) -> str:
    return checksum.partition(":")[2]
