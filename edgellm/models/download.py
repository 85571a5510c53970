"""Files from plain URLs: resumed where they stopped, checked, and complete or absent under their name.

Bytes go to `NAME.part`, with `NAME.part.json` saying where they came from. Only a whole, verified file gets the
name itself, so a kill at any moment leaves something to resume and nothing to mistake for the file.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import string
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from edgellm.errors import DownloadError, ModelCorrupt
from edgellm.models import files
from edgellm.models.files import (
    DISK_FULL,
    Progress,
    Wanted,
    check_file,
    disk_errors,
    is_done,
    silent,
    throttled,
    write_text,
)

BLOCK_BYTES = 1 << 18
_TRIES = 5
# Of a server that has never answered: nobody wants to wait long to learn that there is no network.
_TRIES_COLD = 3


def download_url(
    url: str,
    target: Path,
    wanted: Wanted,
    progress: Progress = silent,
    *,
    headers: Mapping[str, str] | None = None,
    key: str = "",
    timeout_s: float = 30.0,
    backoff_s: float = 0.5,
) -> Path:
    """The file at `url` as `target`, resumed from an earlier attempt where that is safe.

    `key` says what the file is where its URL changes from time to time (signed links); default: the URL.
    Retries what may pass (timeouts, cut connections, 429, 5xx) as long as bytes keep coming, five times without.
    Raises DownloadError, or ModelCorrupt where size or hash differ.
    """
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_done(target, wanted, progress):
            return target
        transfer = _Transfer(url, target, wanted, progress, timeout_s, headers or {}, key or url)
        was_resumed = transfer.part_bytes() > 0
        transfer.run(backoff_s)
        try:
            check_file(transfer.part, wanted, progress, label=target.name)
        except ModelCorrupt:
            transfer.forget()
            if not was_resumed:
                raise
            # The earlier bytes may be of another version, or may never have reached the disk: once more, whole.
            transfer.run(backoff_s)
            check_file(transfer.part, wanted, progress, label=target.name)
        os.replace(transfer.part, target)
        transfer.state.unlink(missing_ok=True)
    return target


def keeps_login(url: str, from_url: str) -> bool:
    """Whether what was said to `from_url` in confidence may be said to `url`: the same host, not in the clear."""
    new, old = urlsplit(url), urlsplit(from_url)
    return new.netloc == old.netloc and new.scheme in (old.scheme, "https")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a login stays with the host that it is for."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and not keeps_login(newurl, req.full_url):
            request.remove_header("Authorization")
        return request


class _Transfer:
    """One URL on its way into one part file."""

    def __init__(
        self,
        url: str,
        target: Path,
        wanted: Wanted,
        progress: Progress,
        timeout_s: float,
        headers: Mapping[str, str],
        key: str,
    ) -> None:
        self.url = url
        self._headers = headers
        self._key = key
        self.part = target.with_name(target.name + ".part")
        self.state = target.with_name(target.name + ".part.json")
        self._name = target.name
        self._wanted = wanted
        self._progress = throttled(progress)
        self._timeout_s = timeout_s

    def part_bytes(self) -> int:
        """Bytes that can be kept: 0 where the part is of another file."""
        if self._read_state().get("key") != self._key:
            return 0
        return self.part.stat().st_size if self.part.exists() else 0

    def forget(self) -> None:
        """Drops what has been fetched."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def run(self, backoff_s: float) -> None:
        """Fetches until the part is whole."""
        tries, limit, most = 0, _TRIES_COLD, self.part_bytes()
        while True:
            try:
                if self._attempt(self.part_bytes()):
                    return
                error: Exception = ConnectionError(f"the connection ended after {self.part_bytes():,} bytes")
            except urllib.error.HTTPError as caught:
                error = self._refusal(caught)
            except (OSError, http.client.HTTPException) as caught:
                if isinstance(caught, OSError) and caught.errno in (*DISK_FULL, errno.EROFS, errno.EACCES):
                    raise
                error = caught
            # More than ever before, not more than last time: a server without ranges starts over each time.
            has_gained = self.part_bytes() > most
            most = max(most, self.part_bytes())
            tries = 0 if has_gained else tries + 1
            limit = _TRIES if has_gained else limit
            if tries >= limit:
                raise DownloadError(
                    f"{self._name} could not be fetched from {self.url}: {_reason(error)}.",
                    hint="Check the network and try again: the download goes on where it stopped.",
                )
            time.sleep(backoff_s * 2 ** min(tries, 6))

    def _attempt(self, have: int) -> bool:
        """One request. True once the part is whole."""
        validator = str(self._read_state().get("validator", ""))
        if have and not validator and not self._wanted.sha256:
            have = 0
        if have and have == self._wanted.size_bytes:
            return True
        headers = {"User-Agent": "edgellm", "Accept-Encoding": "identity", **self._headers}
        if have:
            headers["Range"] = f"bytes={have}-"
            if validator:
                headers["If-Range"] = validator
        request = urllib.request.Request(quote(self.url, safe=string.punctuation), headers=headers)
        try:
            response = urllib.request.build_opener(_Redirects).open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:
                error.close()
                return self._range_refused(error, have)
            raise
        with response:
            start, total = _extent(response, have)
            if start != have and start != 0:
                raise http.client.HTTPException(f"the server sent bytes from {start} instead of {have}")
            self._check_total(total)
            files.check_space(self.part.parent, (total or self._wanted.size_bytes) - start, self._name)
            self._write_state(response)
            done = self._receive(response, start, total or self._wanted.size_bytes)
        return done >= total if total else True

    def _range_refused(self, error: urllib.error.HTTPError, have: int) -> bool:
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):
            return True
        self.forget()
        return False

    def _check_total(self, total: int) -> None:
        wanted = self._wanted.size_bytes
        if total and wanted and total != wanted:
            raise ModelCorrupt(
                f"{self.url} has {total:,} bytes; {self._name} should have {wanted:,}.",
                hint="The file has changed there; the catalogue entry needs its new size and hash.",
            )

    def _receive(self, response: Any, start: int, total: int) -> int:
        done = start
        self._progress(done, total, f"fetching {self._name}")
        # Unbuffered: what has been written when we are killed is what the next attempt can build on.
        with self.part.open("r+b" if start else "wb", buffering=0) as file:
            file.seek(start)
            file.truncate()
            while block := response.read(BLOCK_BYTES):
                files.write_block(file, block)
                done += len(block)
                self._progress(done, total, f"fetching {self._name}")
        return done

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        error.close()
        if error.code in (408, 425, 429) or error.code >= 500:
            return error
        hint = {
            401: "That server wants a login.",
            403: "That server does not let you have it; its licence may have to be accepted there first.",
            404: "The file has moved; correct the catalogue entry, or see `edgellm models list`.",
        }.get(error.code, "Check the address.")
        raise DownloadError(f"{self.url} answers {error.code} {_reason(error)}.", hint=hint) from None

    def _read_state(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.state.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _write_state(self, response: Any) -> None:
        etag = str(response.headers.get("ETag") or "")
        # If-Range takes strong validators only.
        validator = (
            etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or ""
        )
        write_text(self.state, json.dumps({"key": self._key, "validator": validator}))


def _extent(response: Any, asked: int) -> tuple[int, int]:
    """Where the answer's bytes begin, and the size of the whole file (0 where unknown)."""
    if response.status == 206:
        span, _, total = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        return (int(first) if first.isdigit() else asked), int(total) if total.isdigit() else 0
    length = str(response.headers.get("Content-Length", ""))
    return 0, int(length) if length.isdigit() else 0


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    # What the server said may have several lines.
    return (" ".join(text.split()) or type(inner).__name__).rstrip(".")
