"""What is sealed: only who has the secret and the right name reads it, and nothing of it shows."""

import pytest

from gateway.store.sealed import OVERHEAD, Seal

NAME, TEXT = "gateway:c:1", "Größe 🌊 of the sea".encode()


def test_what_is_sealed_can_be_read_by_every_node_with_the_secret() -> None:
    sealed = Seal("correct horse").seal(NAME, TEXT)
    assert Seal("correct horse").unseal(NAME, sealed) == TEXT
    assert len(sealed) == len(TEXT) + OVERHEAD
    assert TEXT not in sealed
    assert Seal("s").unseal(NAME, Seal("s").seal(NAME, b"")) == b""


def test_the_same_text_is_sealed_differently_each_time() -> None:
    seal = Seal("correct horse")
    assert seal.seal(NAME, TEXT) != seal.seal(NAME, TEXT)


def test_another_secret_or_another_key_reads_nothing() -> None:
    sealed = Seal("correct horse").seal(NAME, TEXT)
    assert Seal("battery staple").unseal(NAME, sealed) is None
    assert Seal("correct horse").unseal("gateway:c:2", sealed) is None


@pytest.mark.parametrize("at", range(0, len(TEXT) + OVERHEAD, 7))
def test_a_changed_bit_makes_it_absent(at: int) -> None:
    seal = Seal("correct horse")
    sealed = bytearray(seal.seal(NAME, TEXT))
    sealed[at] ^= 1
    assert seal.unseal(NAME, bytes(sealed)) is None


@pytest.mark.parametrize("found", [b"", b"\x01", b"plain text that nobody sealed, of some length", b"\xff" * 400])
def test_what_nobody_sealed_is_absent(found: bytes) -> None:
    assert Seal("s").unseal(NAME, found) is None


def test_a_shortened_value_is_absent() -> None:
    sealed = Seal("s").seal(NAME, TEXT)
    assert all(Seal("s").unseal(NAME, sealed[:length]) is None for length in range(len(sealed)))


def test_digests_are_the_nodes_own_and_keep_parts_apart() -> None:
    seal = Seal("correct horse")
    assert seal.digest("key:web", "s1") == Seal("correct horse").digest("key:web", "s1")
    assert seal.digest("key:web", "s1") != Seal("battery staple").digest("key:web", "s1")
    assert seal.digest("a", "bc") != seal.digest("ab", "c")
    assert len(seal.digest("\ud800")) == 32
