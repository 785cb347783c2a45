"""A small server that speaks S3: objects of one bucket in memory, over real HTTP. It can refuse, and lose objects."""

from __future__ import annotations

import re
import threading
import time
from datetime import UTC, datetime, timedelta
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

__all__ = ("S3Server",)

BUCKET = "bucket"
_PAGE = 3


class S3Server:
    """Use it as a context.

    Attributes:
        objects: Key -> bytes.
        written: Key -> when it was written.
        gets: Keys that were read, in order.
        down: True: every request is answered with 503.
        hold: While it is set, what is written is kept, and the answer waits until it is cleared; `held` counts those.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: dict[str, datetime] = {}
        self.gets: list[str] = []
        self.down = False
        self.hold = threading.Event()
        self.held: list[str] = []
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """As a setting of Treadle."""
        return f"s3://{BUCKET}/blobs?endpoint=http://127.0.0.1:{self._http.server_address[1]}&region=here"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something"}

    def age(self, by: timedelta) -> None:
        """Make all objects older."""
        self.written = {key: when - by for key, when in self.written.items()}

    def __enter__(self) -> S3Server:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: S3Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").removeprefix("/")

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _is_down(self) -> bool:
        signed = self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential=someone/")
        if self.server_of.down or not signed:
            self._answer(503 if signed else 403, b"<Error><Code>No</Code></Error>")
            return True
        return False

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_down():
            return
        self.server_of.objects[self._key()] = data
        self.server_of.written[self._key()] = datetime.now(UTC)
        if self.server_of.hold.is_set():
            self.server_of.held.append(self._key())
            while self.server_of.hold.is_set():
                time.sleep(0.01)
        self._answer(200, ETag=f'"{md5(data, usedforsecurity=False).hexdigest()}"')

    def do_GET(self) -> None:
        if self._is_down():
            return
        if not self._key():
            self._list()
            return
        self.server_of.gets.append(self._key())
        data = self.server_of.objects.get(self._key())
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        when = self.server_of.written[self._key()].strftime("%a, %d %b %Y %H:%M:%S GMT")
        self._answer(200, data, ETag='"e"', Last_Modified=when)

    def do_POST(self) -> None:
        """Delete many."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self._is_down():
            return
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", body)]
        for key in keys:
            self.server_of.objects.pop(key, None)
        rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{rows}</DeleteResult>".encode(), Content_Type="application/xml")

    def _list(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        prefix, after = asked.get("prefix", [""])[0], asked.get("continuation-token", [""])[0]
        keys = sorted(key for key in self.server_of.objects if key.startswith(prefix) and key > after)
        page, more = keys[:_PAGE], len(keys) > _PAGE
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server_of.objects[key])}</Size><ETag>e</ETag>"
            f"<LastModified>{self.server_of.written[key].isoformat()}</LastModified></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        truncated = str(more).lower()
        body = f"<ListBucketResult>{rows}{token}<IsTruncated>{truncated}</IsTruncated></ListBucketResult>"
        self._answer(200, body.encode(), Content_Type="application/xml")
