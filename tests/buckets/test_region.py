"""A bucket that lies far from the machine is said; near ones, and machines that are not Google's, cost no word."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from bucket_server import BucketServer

from r2d2_jax.buckets import region
from r2d2_jax.buckets.path import BucketPath, check_access_of_runs
from r2d2_jax.buckets.region import warn_of_region


class _Metadata(BaseHTTPRequestHandler):
    """Google's server of facts about a machine, which tells them only to who names its header."""

    def do_GET(self) -> None:
        known = self.path.endswith("/instance/zone") and self.headers.get("Metadata-Flavor") == "Google"
        self.send_response(200 if known else 403)
        self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write(b"projects/1234/zones/us-west4-a" if known else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine in us-west4-a."""
    server = HTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    yield
    server.shutdown()
    server.server_close()


REGION, DUAL, MULTI = "region", "dual-region", "multi-region"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("location", "kind", "both", "said"),
    [
        ("US-WEST4", REGION, None, ""),
        ("US", MULTI, None, ""),
        ("US", DUAL, ["US-EAST1", "US-WEST4"], ""),
        ("NAM4", DUAL, None, ""),
        ("US-WEST1", REGION, None, "us-west1"),
        ("EU", MULTI, None, "eu"),
        ("US", DUAL, ["US-EAST1", "US-CENTRAL1"], "us-east1 and us-central1"),
    ],
)
def test_where_the_bucket_lies(
    location: str,
    kind: str,
    both: list[str] | None,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket = SimpleNamespace(name="b", location=location, location_type=kind, data_locations=both)
    warn_of_region(bucket)
    expected = f"the bucket b lies in {said} and this machine in us-west4: what is read and written between them costs"
    assert [record.getMessage()[: len(expected)] for record in caplog.records] == ([expected] if said else [])


@pytest.mark.usefixtures("machine")
def test_a_bucket_tells_where_it_lies(bucket: BucketPath, caplog: pytest.LogCaptureFixture) -> None:
    """The emulator's lies in US."""
    warn_of_region(check_access_of_runs(bucket))
    assert not caplog.records


def test_a_machine_that_is_not_googles(
    bucket: BucketPath, server: BucketServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found, before = check_access_of_runs(bucket), server.requests
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    for host in (server.address.removeprefix("http://"), "127.0.0.1:1"):  # answers otherwise; does not answer
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        warn_of_region(found)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    warn_of_region(found)
    assert not [record for record in caplog.records if record.name == region.__name__]
    assert server.requests == before + 1
