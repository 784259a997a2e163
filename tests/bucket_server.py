"""A bucket on 127.0.0.1: the emulator, with what it lacks, conditions on generations, and with faults on request.

As a program it prints what makes clients come to it, and stays until its input ends.
"""

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

BUCKET = "a-bucket"
# What a faulty bucket answers to every request.
REFUSES, THROTTLES, FORBIDS, EXPIRED = 503, 429, 403, 401
HANGS = 0


class _NotThatGeneration(Exception):
    """An object is of another generation than a request has set as its condition."""


class _Storage(Storage):
    """Storage that writes and deletes on the condition of the request that is being answered."""

    condition: int | None = None

    def create_file(self, bucket_name: str, file_name: str, *args: Any, **kwargs: Any) -> None:
        self._check(bucket_name, file_name)
        super().create_file(bucket_name, file_name, *args, **kwargs)

    def delete_file(self, bucket_name: str, file_name: str) -> None:
        self._check(bucket_name, file_name)
        super().delete_file(bucket_name, file_name)

    def generation(self, bucket: str, name: str) -> int:
        """0 where there is nothing."""
        try:
            return int(self.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return 0

    def _check(self, bucket: str, name: str) -> None:
        if self.condition not in (None, self.generation(bucket, name)):
            raise _NotThatGeneration


class _Handler(RequestHandler):
    def __init__(self, server: "BucketServer", *args: Any) -> None:
        self._bucket, self._generation = server, 0
        super().__init__(server.storage, *args)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, method: str) -> None:
        self._bucket.requests += 1
        fault = self._bucket.fault
        if fault is None and "ocdbt" in self.path:
            fault = self._bucket.fault_of_arrays
        if fault is not None:
            self._fail(fault)
            return
        asked = parse_qs(urlparse(self.path).query).get("ifGenerationMatch")
        read = re.fullmatch(r".*/b/([^/]+)/o/([^?]+)(\?.*)?", self.path) if method == "GET" else None
        with self._bucket.lock:
            self._generation = self.storage.generation(read[1], unquote(read[2])) if read else 0
            self.storage.condition = int(asked[0]) if asked else None
            try:
                Router(self).handle(method)
            except _NotThatGeneration:  # found when the request had been read
                self._send(412)

    def end_headers(self) -> None:
        """With the generation of what is read, by which TensorStore writes later."""
        if self._generation:
            self.send_header("x-goog-generation", str(self._generation))
        super().end_headers()

    def _fail(self, fault: int) -> None:
        if fault == HANGS:
            while self._bucket.fault == HANGS:
                time.sleep(0.05)
            self.close_connection = True
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send(fault)

    def _send(self, status: int) -> None:
        body = b'{"error": {"message": "by the stand-in of the tests"}}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that asks for more than it waits for is no error, and none to print."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class BucketServer:
    """The server; `address` is what clients are told, `requests` counts what has come.

    Its data stay where they are while it is down: `fault` is the status of every answer then, None where all is well;
    `fault_of_arrays` that of answers to TensorStore, which writes the arrays of checkpoints.
    """

    def __init__(self) -> None:
        self.storage, self.lock = _Storage(use_memory_fs=True), threading.Lock()
        self.fault: int | None = None
        self.fault_of_arrays: int | None = None
        self.requests = 0
        buckets.create_bucket(BUCKET, self.storage)
        self._http = _Http(("127.0.0.1", 0), partial(_Handler, self))
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What makes Google's client, gcsfs and TensorStore come here instead of to Google."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
            "NO_GCE_CHECK": "true",
        }

    @contextlib.contextmanager
    def faulty(self, fault: int) -> Iterator[None]:
        """Every request fails in this way inside."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def faulty_for(self, seconds: float, fault: int) -> threading.Timer:
        """As `faulty`, from now on for some seconds; returns at once."""
        self.fault = fault
        timer = threading.Timer(seconds, setattr, [self, "fault", None])
        timer.start()
        return timer

    def close(self) -> None:
        """Ends the server."""
        self.fault = None
        self._http.shutdown()
        self._http.server_close()


if __name__ == "__main__":
    alone = BucketServer()
    print(json.dumps(alone.environment() | {"BUCKET": BUCKET}), flush=True)
    sys.stdin.read()
    alone.close()
