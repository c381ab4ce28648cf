# SPDX-License-Identifier: Apache-2.0
"""Keys, and the ciphers derived from them.

Every incarnation of every node seals with a key of its own, derived from the shared secret, the cluster, the node and
the incarnation. A key therefore has one writer, whose nonces count up and never repeat, which is what both AEADs ask
for.

Without encryption the AEAD is AES-256-GCM over associated data alone (GMAC, NIST SP 800-38D): with the AES and carry-
less multiplication instructions of every server processor it is several times cheaper than HMAC-SHA256 or keyed
BLAKE2b on large bursts and no dearer on small ones. With encryption it is ChaCha20-Poly1305 (RFC 8439).
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from sync.transport.wire import TAG_LENGTH, Buffer, Refused

KEY_LENGTH_MIN: Final = 32
KEY_LENGTH_MAX: Final = 64
KEY_COUNT_MAX: Final = 2


class Key:
    """One shared secret of 32 to 64 bytes and the number by which datagrams name it."""

    __slots__ = ("id", "secret")

    def __init__(self, secret: bytes) -> None:
        if not KEY_LENGTH_MIN <= len(secret) <= KEY_LENGTH_MAX:
            raise ValueError(f"a key has {KEY_LENGTH_MIN} to {KEY_LENGTH_MAX} bytes, this one {len(secret)}")
        self.secret = secret
        self.id = int.from_bytes(blake2b(key=secret, digest_size=2, person=b"rainlb key id").digest(), "big")

    def __repr__(self) -> str:
        return f"Key(id={self.id:#06x})"


class KeyRing:
    """The keys valid at present: the first seals, each opens. Two at once let a cluster change keys without a pause."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not 1 <= len(secrets) <= KEY_COUNT_MAX:
            raise ValueError(f"1 to {KEY_COUNT_MAX} keys may be valid at once, not {len(secrets)}")
        self.keys = tuple(Key(secret) for secret in secrets)
        self._by_id = {key.id: key for key in self.keys}
        if len(self._by_id) != len(self.keys):
            raise ValueError("the two keys are equal, or share their 16-bit id by chance; make another one")

    @property
    def sealing(self) -> Key:
        return self.keys[0]

    def find(self, key_id: int) -> Key:
        """The key with this id; Refused if it is not (or no longer) valid."""
        try:
            return self._by_id[key_id]
        except KeyError:
            raise Refused("unknown_key") from None


def open_ring(cluster: str) -> KeyRing:
    """The key ring of a cluster that has no secret: it detects damage and strays, and stops nobody who means harm."""
    return KeyRing([blake2b(cluster.encode(), digest_size=32, person=b"rainlb no secret").digest()])


class Cipher(Protocol):
    """Seals and opens with one node incarnation's key."""

    def seal(self, nonce: bytes, header: bytes, payload: Buffer) -> bytes:
        """header + protected payload + tag."""

    def open(self, nonce: bytes, data: Buffer, header_length: int) -> bytes:
        """The payload behind the header; Refused if the tag does not fit."""

    def seal_body(self, nonce: bytes, payload: Buffer) -> tuple[Buffer, bytes]:
        """(protected payload, tag) for a payload whose header carries a tag of its own."""

    def open_body(self, nonce: bytes, sealed: Buffer) -> Buffer:
        """The plain payload of protected payload + tag, a view if nothing is encrypted; Refused if the tag is wrong."""

    def tag(self, nonce: bytes, header: bytes) -> bytes:
        """The tag of a header."""

    def check(self, nonce: bytes, header: Buffer, tag: Buffer) -> None:
        """Refused if the tag does not fit the header."""


class _Gmac:
    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, nonce: bytes, header: bytes, payload: Buffer) -> bytes:
        body = header + payload
        return body + self._aead.encrypt(nonce, b"", body)

    def open(self, nonce: bytes, data: Buffer, header_length: int) -> bytes:
        end = len(data) - TAG_LENGTH
        self.check(nonce, data[:end], data[end:])
        return bytes(data[header_length:end])

    def seal_body(self, nonce: bytes, payload: Buffer) -> tuple[Buffer, bytes]:
        return payload, self._aead.encrypt(nonce, b"", payload)

    def open_body(self, nonce: bytes, sealed: Buffer) -> Buffer:
        view = memoryview(sealed).toreadonly()
        self.check(nonce, view[:-TAG_LENGTH], view[-TAG_LENGTH:])
        return view[:-TAG_LENGTH]

    def tag(self, nonce: bytes, header: bytes) -> bytes:
        return self._aead.encrypt(nonce, b"", header)

    def check(self, nonce: bytes, header: Buffer, tag: Buffer) -> None:
        try:
            self._aead.decrypt(nonce, tag, header)
        except InvalidTag:
            raise Refused("bad_tag") from None


class _ChaCha:
    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)

    def seal(self, nonce: bytes, header: bytes, payload: Buffer) -> bytes:
        return header + self._aead.encrypt(nonce, payload, header)

    def open(self, nonce: bytes, data: Buffer, header_length: int) -> bytes:
        return self._decrypt(nonce, data[header_length:], data[:header_length])

    def seal_body(self, nonce: bytes, payload: Buffer) -> tuple[Buffer, bytes]:
        sealed = memoryview(self._aead.encrypt(nonce, payload, None))
        return sealed[:-TAG_LENGTH], bytes(sealed[-TAG_LENGTH:])

    def open_body(self, nonce: bytes, sealed: Buffer) -> Buffer:
        return self._decrypt(nonce, sealed, None)

    def tag(self, nonce: bytes, header: bytes) -> bytes:
        return self._aead.encrypt(nonce, b"", header)

    def check(self, nonce: bytes, header: Buffer, tag: Buffer) -> None:
        self._decrypt(nonce, tag, header)

    def _decrypt(self, nonce: bytes, data: Buffer, header: Buffer | None) -> bytes:
        try:
            return self._aead.decrypt(nonce, data, header)
        except InvalidTag:
            raise Refused("bad_tag") from None


def derive_cipher(key: Key, cluster: str, node: int, incarnation: int, *, encrypt: bool) -> Cipher:
    """The cipher with which incarnation `incarnation` of node `node` seals everything it sends."""
    material = b"%d|%d|%d|%s" % (node, incarnation, encrypt, cluster.encode())
    derived = blake2b(material, key=key.secret, digest_size=32, person=b"rainlb sync seal").digest()
    return _ChaCha(derived) if encrypt else _Gmac(derived)
