"""Encryption end to end: what was sealed comes back in its place, and nowhere else."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.client.encryption import AesGcm, new_key
from treadle.client.vault import codec_of
from treadle.protocol.errors import ConfigError, PayloadUnreadable
from treadle.protocol.sealing import FROM_RUN, FROM_STEP, TO_RUN, TO_STEP, Place, open_failure, seal_failure
from treadle.v1.common_pb2 import FAILURE_KIND_APPLICATION, Failure, Payload

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
CODEC = AesGcm({"old": OLD})
PLACE = Place("default", "r", TO_RUN)

texts = st.text(max_size=60)
places = st.builds(Place, texts, texts, st.sampled_from([TO_RUN, FROM_RUN, TO_STEP, FROM_STEP]), texts)


@given(st.binary(max_size=500), st.sampled_from(["", "json", "failure"]), places)
def test_a_value_comes_back_and_is_not_seen_meanwhile(data: bytes, encoding: str, place: Place) -> None:
    sealed = CODEC.encode(Payload(data=data, encoding=encoding), place)
    assert sealed.encoding == "aes-256-gcm"
    assert len(data) < 8 or data not in sealed.SerializeToString()
    assert CODEC.decode(sealed, place) == Payload(data=data, encoding=encoding)


@given(places, places)
def test_a_value_is_not_accepted_in_another_place(place: Place, other: Place) -> None:
    sealed = CODEC.encode(Payload(data=b"1"), place)
    if place == other:
        assert CODEC.decode(sealed, other).data == b"1"
        return
    with pytest.raises(PayloadUnreadable, match="was encrypted for"):
        CODEC.decode(sealed, other)
    sealed.metadata["place"] = other.text()  # nor when its label says so
    with pytest.raises(PayloadUnreadable, match="changed after it was encrypted"):
        CODEC.decode(sealed, other)


@given(places)
def test_a_place_is_read_as_it_was_written(place: Place) -> None:
    assert Place.read(place.text()) == place


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_single_changed_bit_is_noticed(data: bytes, draw: st.DataObject) -> None:
    sealed = CODEC.encode(Payload(data=data), PLACE)
    bit = draw.draw(st.integers(0, 8 * len(sealed.data) - 1))
    changed = bytearray(sealed.data)
    changed[bit // 8] ^= 1 << bit % 8
    sealed.data = bytes(changed)
    with pytest.raises(PayloadUnreadable, match="changed after it was encrypted"):
        CODEC.decode(sealed, PLACE)


@pytest.mark.parametrize("data", [b"", b"short"])
def test_what_is_cut_is_noticed(data: bytes) -> None:
    sealed = CODEC.encode(Payload(data=b"value"), PLACE)
    sealed.data = data
    with pytest.raises(PayloadUnreadable):
        CODEC.decode(sealed, PLACE)


def test_the_same_value_is_never_sealed_alike() -> None:
    assert CODEC.encode(Payload(data=b"1"), PLACE) != CODEC.encode(Payload(data=b"1"), PLACE)


def test_a_key_is_changed_without_a_gap() -> None:
    before, both, after = AesGcm({"old": OLD, "new": NEW}), AesGcm({"new": NEW, "old": OLD}), AesGcm({"new": NEW})
    value = Payload(data=b"1")
    for writer, readers in ((CODEC, (before, both)), (before, (CODEC, both)), (both, (before, after))):
        for reader in readers:
            assert reader.decode(writer.encode(value, PLACE), PLACE) == value
    with pytest.raises(PayloadUnreadable, match=r"key 'old', which is not among the keys here \(new\)"):
        after.decode(before.encode(value, PLACE), PLACE)


def test_a_key_of_the_same_name_that_is_another_key_opens_nothing() -> None:
    with pytest.raises(PayloadUnreadable, match="'old' is not the key of that name"):
        AesGcm({"old": NEW}).decode(CODEC.encode(Payload(data=b"1"), PLACE), PLACE)


def test_an_error_is_sealed_but_for_what_retries_look_at() -> None:
    cause = Failure(type="KeyError", message="secret 3", cause=Failure(type="OSError", message="secret 4"))
    failure = Failure(
        kind=FAILURE_KIND_APPLICATION,
        type="ValueError",
        message="secret 1",
        traceback="secret 2",
        attempts=3,
        cause=cause,
    )
    sealed = seal_failure(failure, CODEC, PLACE)
    assert (sealed.type, sealed.attempts, sealed.kind) == ("ValueError", 3, FAILURE_KIND_APPLICATION)
    assert b"secret" not in sealed.SerializeToString()
    sealed.attempts = 4  # the control plane counts
    opened = open_failure(sealed, CODEC, PLACE)
    failure.attempts = 4
    assert opened == failure
    with pytest.raises(PayloadUnreadable, match="configure the codec"):
        open_failure(sealed, None, PLACE)


def test_a_keys_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# rotated in May\n{new_key('b')}\n\n{new_key('a')}  # until June\n")
    codec = codec_of(keys_file=str(file))
    assert isinstance(codec, AesGcm)
    assert codec.names == ("b", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no key"),
        ("a", "line 1: write NAME BASE64"),
        ("a b c", "line 1: write NAME BASE64"),
        ("a $$$$", "line 1: the key is not base64"),
        (f"a {base64.b64encode(b'short').decode()}", "has 5 bytes, AES-256 needs 32"),
        (f"a/b {base64.b64encode(OLD).decode()}", "key name 'a/b'"),
        (f"a {base64.b64encode(OLD).decode()}\n" * 2, "line 2: write NAME BASE64, each name once"),
    ],
)
def test_a_wrong_keys_file_says_where_and_does_not_show_the_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        AesGcm.from_file(file)
    assert "c2hvcnQ" not in str(refused.value)


def test_a_keys_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        AesGcm.from_file(tmp_path / "nowhere")


class Reverse:
    """A codec of a user."""

    errors = False

    def encode(self, payload: Payload, place: Place) -> Payload:
        return Payload(data=payload.data[::-1], encoding="reverse")

    def decode(self, payload: Payload, place: Place) -> Payload:
        return Payload(data=payload.data[::-1])


reverse = Reverse()


def test_a_codec_of_ones_own_is_named_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "reversing", sys.modules[__name__])
    assert codec_of(codec="reversing:reverse") is reverse
    assert isinstance(codec_of(codec="reversing:Reverse"), Reverse)
    assert codec_of() is None


@pytest.mark.parametrize("codec", ["reversing", "json:nothing", "no.such.module:x", ":x"])
def test_a_codec_that_cannot_be_loaded_is_named(codec: str) -> None:
    with pytest.raises(ConfigError, match=codec):
        codec_of(codec=codec)


def test_a_process_has_one_codec() -> None:
    with pytest.raises(ConfigError, match="one codec"):
        codec_of(keys_file="keys", codec="a:b")
