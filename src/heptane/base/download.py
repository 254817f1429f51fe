"""Download a file over HTTP, resuming after what is already there."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

STALL_SECONDS = 30.0
ATTEMPTS, PAUSE_SECONDS = 3, 1.0
PIECE = 1 << 16  # bytes


class TooLong(ValueError):
    """The answer is longer than allowed."""


def download(url: str, part: Path, max_bytes: int | None = None, advance: Callable[[int], object] | None = None) -> None:
    """Download ``url`` into ``part``, resuming after its content; raise the last error after ``ATTEMPTS`` failures.

    Args:
        url: http or https.
        part: the file; if it is there already, its content is the beginning.
        max_bytes: accepted; None: any number.
        advance: called with the number of bytes of each piece received.

    Raises:
        TooLong: there are more than ``max_bytes``.
        OSError, http.client.HTTPException: the connection failed or ended early.
    """
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_SECONDS)
        try:
            return _download_rest(url, part, max_bytes, advance)
        except (OSError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == 416:  # no bytes after those of ``part``: it may be complete, which the caller checks
                return None
            if 400 <= code < 500 or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("not reached")


def _download_rest(url: str, part: Path, max_bytes: int | None, advance: Callable[[int], object] | None) -> None:
    """Request what is missing in ``part`` once; raise ``OSError`` if the connection ends early."""
    size = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    with urllib.request.urlopen(request, timeout=STALL_SECONDS) as response:
        if response.headers.get("Content-Range", "").startswith(f"bytes {size}-") and response.status == 206:
            mode = "ab"
        else:
            size, mode = 0, "wb"
        length = response.headers.get("Content-Length", "")
        end = size + int(length) if length.isdigit() else None
        with part.open(mode) as file:
            while piece := response.read(PIECE):
                size += len(piece)
                if max_bytes is not None and size > max_bytes:
                    raise TooLong(f"more than {max_bytes} bytes")
                file.write(piece)
                if advance is not None:
                    advance(len(piece))
    if end is not None and size < end:
        raise OSError(f"the connection ended after {size} of {end} bytes")
