"""What clients and workers do with values: encrypt first, then move what is large to the blob store."""

from __future__ import annotations

import pytest

from treadle.client.blobs import MemoryStore, home_of
from treadle.client.encryption import AesGcm
from treadle.client.vault import Vault, vault_of
from treadle.protocol.errors import BlobMissing, ConfigError, PayloadUnreadable
from treadle.protocol.sealing import TO_RUN, Place
from treadle.v1.blob_service_pb2 import BlobStore
from treadle.v1.common_pb2 import Payload

PLACE = Place("default", "r", TO_RUN)
HOMES = [home_of("default", "r", 1), home_of("default", "parent", 2)]
CODEC = AesGcm({"k": bytes(32)})
LARGE = Payload(data=b"secret" * 1000)


def test_small_values_stay_and_large_ones_are_named() -> None:
    store = MemoryStore()
    vault = Vault("default", store=store, above=4096)
    small = Payload(data=b"x" * 4096)
    assert vault.seal(small, PLACE, HOMES) == small
    assert store.blobs == {}
    sealed = vault.seal(LARGE, PLACE, HOMES)
    assert sealed.ByteSize() < 400
    assert sealed.encoding == "blob"
    assert sealed.blob.size == 6000
    assert [key.rpartition("/")[0] for key in store.blobs] == HOMES
    assert vault.open(sealed, PLACE) == LARGE


def test_a_large_value_is_encrypted_before_it_is_stored() -> None:
    store = MemoryStore()
    vault = Vault("default", codec=CODEC, store=store, above=4096)
    sealed = vault.seal(LARGE, PLACE, HOMES)
    assert all(b"secret" not in data for data in store.blobs.values())
    assert vault.open(sealed, PLACE) == LARGE
    with pytest.raises(PayloadUnreadable, match="was encrypted for"):
        vault.open(sealed, Place("default", "other", TO_RUN))
    with pytest.raises(PayloadUnreadable, match="configure the codec"):
        Vault("default", store=store).open(sealed, PLACE)


def test_a_value_outlives_the_first_of_the_runs_that_keep_it() -> None:
    store = MemoryStore()
    vault = Vault("default", store=store, above=10)
    sealed = vault.seal(LARGE, PLACE, HOMES)
    store.delete([sealed.blob.keys[0]])
    assert vault.open(sealed, PLACE) == LARGE
    store.delete([sealed.blob.keys[1]])
    with pytest.raises(BlobMissing, match="has no 'default/parent"):
        vault.open(sealed, PLACE)


@pytest.mark.parametrize("data", [b"", LARGE.data[:-1], LARGE.data + b"x", b"terces" * 1000])
def test_what_was_changed_in_the_store_is_not_believed(data: bytes) -> None:
    store = MemoryStore()
    vault = Vault("default", store=store, above=10)
    sealed = vault.seal(LARGE, PLACE, HOMES[:1])
    store.blobs[sealed.blob.keys[0]] = data
    with pytest.raises(BlobMissing, match="its digest is another one"):
        vault.open(sealed, PLACE)


def test_a_reference_into_another_namespace_is_not_followed() -> None:
    store = MemoryStore()
    sealed = Vault("other", store=store, above=10).seal(LARGE, PLACE, [home_of("other", "r", None)])
    with pytest.raises(BlobMissing, match="is not of namespace 'default'"):
        Vault("default", store=store).open(sealed, PLACE)


def test_without_a_store_a_reference_says_what_to_set() -> None:
    sealed = Vault("default", store=MemoryStore(), above=10).seal(LARGE, PLACE, HOMES)
    with pytest.raises(PayloadUnreadable, match="TREADLE_BLOBS"):
        Vault("default").open(sealed, PLACE)


def test_limits() -> None:
    store = MemoryStore()
    assert Vault("default").limit == 1 << 20
    assert Vault("default", store=store).limit == 64 << 20
    assert Vault("default", store=store, limit=5).limit == 5
    assert Vault("default", codec=CODEC).limit < (1 << 20) - 100, "what is encrypted must fit into the message"
    assert Vault("default").plain
    assert not Vault("default", codec=CODEC).plain


def test_the_store_that_the_control_plane_names_is_used_unless_another_one_is_given() -> None:
    told = BlobStore(url="s3://theirs/blobs", above_bytes=2048, max_bytes=1 << 22)

    def made(blobs: str, told: BlobStore, near: bool = True) -> Vault:
        return vault_of("default", codec=None, blobs=blobs, told=told, max_payload_bytes=4096, near=near)

    assert made("", told).limit == 1 << 22
    assert made("", BlobStore()).limit == 4096
    assert made("file:///somewhere", BlobStore()).limit == 64 << 20
    folder = BlobStore(url="file:///theirs")
    assert not made("", folder).plain
    with pytest.raises(ConfigError, match=r"file:///theirs\): set TREADLE_BLOBS"):
        made("", folder, near=False)
    assert not made("file:///mounted", folder, near=False).plain
