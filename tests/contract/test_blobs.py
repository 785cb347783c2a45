"""What every blob store does: a folder, a bucket of a server that speaks S3, and the one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.s3_server import S3Server
from treadle.client.blobs import BlobStore, FolderStore, MemoryStore, ObjectStore, home_of, open_store, owner_of
from treadle.protocol.errors import BlobMissing, BlobStoreUnavailable, ConfigError

RUNS = ("r1", "a/b", "..", ".", "ä b\\%!~", "x" * 200, "漢" * 200, "/etc/passwd")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "folder":
        return open_store((tmp_path / "blobs").as_uri())
    server: S3Server = request.getfixturevalue("s3")
    return open_store(server.url)


def test_what_was_kept_is_there_under_its_name_whatever_the_run_is_called(store: BlobStore) -> None:
    keys = [f"{home_of('default', run, place)}/{number:032x}" for number, run in enumerate(RUNS) for place in (None, 7)]
    for key in keys:
        store.put(key, key.encode())
    assert [store.get(key) for key in keys] == [key.encode() for key in keys]
    assert sorted(blob.key for blob in store.list()) == sorted(keys)
    assert [owner_of(key) for key in keys] == [("default", run, place) for run in RUNS for place in (None, 7)]


def test_a_list_is_of_what_is_below(store: BlobStore) -> None:
    for key in ("n/r/in/a", "n/r/in/b", "n/rr/in/c", "m/r/in/d"):
        store.put(key, b"x")
    assert sorted(blob.key for blob in store.list("n/r")) == ["n/r/in/a", "n/r/in/b"]
    assert list(store.list("n/none")) == []


def test_what_was_deleted_is_missing_and_deleting_it_again_is_no_error(store: BlobStore) -> None:
    for key in ("n/r/in/a", "n/r/in/b", "n/q/in/c"):
        store.put(key, b"x")
    store.delete(["n/r/in/a", "n/r/in/b", "n/r/in/never"])
    store.delete(["n/r/in/a"])
    assert [blob.key for blob in store.list()] == ["n/q/in/c"]
    with pytest.raises(BlobMissing, match="n/r/in/a"):
        store.get("n/r/in/a")


@pytest.mark.parametrize("key", ["../out", "n/../../out", "/etc/passwd", "", "n//a", "n/r/a.b", "n/" + "a" * 3000])
def test_a_key_that_leads_elsewhere_is_not_followed(store: BlobStore, key: str) -> None:
    with pytest.raises(BlobMissing, match="none of ours"):
        store.get(key)


def test_a_value_may_be_large(store: BlobStore) -> None:
    data = bytes(range(256)) * (8 << 12)
    store.put("n/r/in/a", data)
    assert store.get("n/r/in/a") == data


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FolderStore(tmp_path / "file")
    with pytest.raises(BlobStoreUnavailable, match="file: cannot write"):
        store.put("n/r/in/a", b"x")
    with pytest.raises(BlobStoreUnavailable, match="file: cannot read"):
        store.get("n/r/in/a")


def test_a_folder_has_no_empty_folders_after_a_delete(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("n/r/in/a", b"x")
    store.delete(["n/r/in/a"])
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_without_the_right_credentials_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(BlobStoreUnavailable, match="s3://bucket/blobs: cannot write"):
        open_store(s3.url).put("n/r/in/a", b"x")
    with pytest.raises(BlobStoreUnavailable, match="s3://bucket/blobs: cannot read"):
        open_store(s3.url).get("n/r/in/a")


@pytest.mark.parametrize("url", ["", "/tmp/x", "file:relative", "http://x", "s3://", "s3://b/p?secret=1"])
def test_a_url_of_no_known_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="use"):
        open_store(url)


def test_a_bucket_has_its_prefix(s3: S3Server) -> None:
    store = open_store(s3.url)
    assert isinstance(store, ObjectStore)
    store.put("n/r/in/a", b"x")
    assert list(s3.objects) == ["blobs/n/r/in/a"]
