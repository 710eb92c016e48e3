"""Downloads of published files: resumed after a broken transfer, verified before they count.

A file grows as ``NAME.part`` and gets its own name, atomically, once its checksum is right. Only
http and https are followed, redirections included, and never from https to http. No file may be
larger than the published one.
"""

import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from equipoise.data.published import NOT_WHOLE, checksum, opened
from equipoise.errors import RunError, UserError

BLOCK = 1 << 18  # bytes read at a time


def download(
    url: str,
    path: Path,
    expected: str,
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
        path: Where the file is written.
        expected: The checksum that it must have, e.g. ``"sha256:..."``.
        gunzip: Whether the checksum is of the uncompressed content.
        largest: The most bytes that the file may have, uncompressed where the checksum is.
        progress: Whether to show progress on standard error.
        attempts: How often to try; each attempt resumes the one before.
        pause: Seconds before the second attempt; doubled for each further one.
        timeout: Seconds without an answer after which an attempt is given up.

    Returns:
        ``path``.

    Raises:
        UserError: If ``url`` is not http or https.
        RunError: If the transfer fails, or the server does not send the published file.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UserError(f"expected an http or https address, got {url!r}")
    from equipoise.terminal.progress import Console

    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_file() and _checksum(path, expected, gunzip, largest) == expected:
            return path
        console = Console(quiet=not progress)
        problem = ""
        with console.progress(unit="bytes", text=path.name) as advance:
            for attempt in range(attempts):
                time.sleep(pause * 2 ** (attempt - 1) if attempt else 0)
                try:
                    _attempt(url, part, largest, advance, timeout)
                    break
                except _Broken as error:
                    problem = str(error)
            else:
                kept = f"{part.stat().st_size} bytes are kept in {part}" if part.exists() else ""
                raise RunError(
                    f"{url}: the transfer failed {attempts} times ({problem}); "
                    f"{kept or 'nothing is kept'}: run the same command again to resume it"
                )
        got = _checksum(part, expected, gunzip, largest)
        if got != expected:
            kind, value = expected.split(":")
            content = " of its uncompressed content" if gunzip else ""
            got = got.removeprefix(f"{kind}:")
            _refuse(url, part, f"expected {kind} {value}{content}, got {got}")
        if path.exists():
            path.replace(path.with_name(f"{path.name}.wrong"))
        part.replace(path)
        console.say(f"downloaded {path.name}")
    except OSError as error:
        raise RunError(
            f"cannot read or write {path} or {part.name}: {error.strerror or error}"
        ) from error
    return path


def _refuse(url: str, part: Path, problem: str) -> None:
    part.unlink(missing_ok=True)
    raise RunError(f"{url} is not the published file: {problem}; it was deleted")


class _Secure(request.HTTPRedirectHandler):
    """Follows redirections, but not from https to http, nor to another scheme."""

    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        """Return the request for the new address."""
        if urlsplit(newurl).scheme not in {"https", req.type}:
            raise RunError(f"{req.full_url} redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Broken(Exception):
    """A transfer that may succeed when it is tried again."""


def _attempt(
    url: str, part: Path, largest: int, advance: Callable[..., None], timeout: float
) -> None:
    """Download the missing part of a file."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "equipoise", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={start}-"} if start else {}
    opener, wanted = request.build_opener(_Secure), request.Request(url, headers=headers)  # noqa: S310
    try:
        response = opener.open(wanted, timeout=timeout)
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
            raise _Broken("the server sent another part of the file than requested")
        length = response.headers["Content-Length"]
        done = start if resumed else 0
        total = done + int(length) if length and length.isdigit() else None
        with part.open("ab" if resumed else "wb") as file:
            block = b""
            while True:
                file.write(block)
                done += len(block)
                if (size := max(done, total or 0)) > largest:
                    _refuse(url, part, f"it has {size} bytes, more than {largest}")
                advance(done, total)
                try:
                    block = response.read(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(str(error) or type(error).__name__) from error
                if not block:
                    break
    if total is not None and done < total:
        raise _Broken(f"the connection ended after {done} of {total} bytes")


def _refused(error: HTTPError, url: str, part: Path, start: int) -> None:
    """Return if the file is whole already; otherwise raise the fitting error."""
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        if error.headers["Content-Range"] == f"bytes */{start}":
            return
        part.unlink()
        raise _Broken(f"the server has nothing after byte {start}")
    if error.code >= 500 or error.code in {408, 425, 429}:
        raise _Broken(f"HTTP {error.code} {error.reason}")
    raise RunError(f"{url}: the server answered HTTP {error.code} {error.reason}")


def _checksum(path: Path, expected: str, gunzip: bool, largest: int) -> str:
    try:
        with opened(path, gunzip) as file:
            return checksum(_blocks(file.read, largest), expected)
    except NOT_WHOLE as error:
        return f"no whole gzip file ({error})"


def _blocks(read: Callable[[int], bytes], largest: int) -> Iterator[bytes]:
    """Yield the content of a file, at most one byte more than it may have."""
    left = largest + 1
    while left > 0 and (block := read(min(BLOCK, left))):
        left -= len(block)
        yield block
