"""Files from the network, within bounds: of bytes, of seconds without a byte, and of seconds in all."""

from __future__ import annotations

import hashlib
import http.client
import io
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

_IDLE = 10.0  # seconds without a byte
_TOTAL = 300.0  # seconds for a file: MNIST's largest then comes over 33 kB/s
_BLOCK = 2**16  # bytes
_LONGEST = 200  # characters of a reason, which a stranger may have written
_clock = time.monotonic


class DownloadError(Exception):
    """A file could not be had: why, in a few words."""


def download(url: str, path: Path, md5: str, most_bytes: int) -> None:
    """Write what an address holds into a file.

    Args:
        url: http or https; it may redirect to others.
        md5: what the file must have.
        most_bytes: what may come over the wire, headers included.

    Raises:
        DownloadError: it is not there, comes too slowly, is too long, or is another file.
        OSError: the file cannot be written.
    """
    found = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file, closing(_blocks(url, _Budget(most_bytes))) as blocks:
        for block in blocks:
            found.update(block)
            file.write(block)
    if found.hexdigest() != md5:
        raise DownloadError(f"damaged: MD5 {found.hexdigest()}, not {md5}")


class _Budget:
    """What may still come for one file, over all reads, answers and redirections."""

    def __init__(self, most_bytes: int) -> None:
        self.most, self.left, self.end = most_bytes, most_bytes, _clock() + _TOTAL

    def seconds(self) -> float:
        """Return how long the next read may wait."""
        left = self.end - _clock()
        if left <= 0:
            raise DownloadError(f"not whole after {_TOTAL:g} s, {self.most - self.left:,} bytes came")
        return min(_IDLE, left)

    def spend(self, count: int) -> None:
        """Take note of what came."""
        self.left -= count
        if self.left < 0:
            raise DownloadError(f"more than {self.most:,} bytes")


class _Bounded(io.RawIOBase):
    """What comes from a socket, within a budget."""

    def __init__(self, sock: Any, budget: _Budget) -> None:
        self.sock, self.raw, self.budget = sock, sock.makefile("rb", 0), budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.sock.settimeout(self.budget.seconds())
        count: int = self.raw.readinto(buffer)
        self.budget.spend(count)
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


def _blocks(url: str, budget: _Budget) -> Generator[bytes, None, None]:
    """Yield what an address holds, block by block."""
    request = urllib.request.Request(url, headers={"User-Agent": "manual_mlp"})
    try:
        with _opener(budget).open(request, timeout=_IDLE) as response:
            expected = response.length
            if expected is not None and expected > budget.left:
                raise DownloadError(f"{expected:,} bytes announced, expected at most {budget.left:,}")
            with tqdm(total=expected, unit="B", unit_scale=True, desc=url, disable=not _on_terminal()) as bar:
                while block := response.read1(_BLOCK):
                    bar.update(len(block))
                    yield block
            if response.length:
                raise DownloadError(f"ended {response.length:,} bytes early, of {expected:,}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DownloadError(_reason(error)) from None


def _opener(budget: _Budget) -> urllib.request.OpenerDirector:
    """Return what opens http and https alone, through a proxy if the environment names one."""

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp.close()
            self.fp = io.BufferedReader(_Bounded(sock, budget))

    class Plain(http.client.HTTPConnection):
        response_class = Response

    class Secure(http.client.HTTPSConnection):
        response_class = Response

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req, context=ssl.create_default_context())

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        PlainHandler(),
        SecureHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _on_terminal() -> bool:
    # Without stderr, or with one that is closed, there is none.
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def _reason(error: Exception) -> str:
    """Return what an error says, on one line: what a server wrote is in it."""
    said = " ".join(str(error).split()).strip("<>")
    said = "".join(letter for letter in said if letter.isprintable()) or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
