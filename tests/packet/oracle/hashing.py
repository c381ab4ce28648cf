# SPDX-License-Identifier: Apache-2.0
"""The keyed hashes of flows and clients, and what they choose."""

from tests.packet.oracle.headers import MAPPED
from tests.packet.oracle.memory import Key

U64 = (1 << 64) - 1


def mix(h: int) -> int:
    h = ((h ^ h >> 32) * 0xBF58476D1CE4E5B9) & U64
    h = ((h ^ h >> 29) * 0x94D049BB133111EB) & U64
    return h ^ h >> 32


def fold_word(h: int, word: int) -> int:
    h = ((h ^ word) * 0x9E3779B97F4A7C15) & U64
    return h ^ h >> 32


def host_words(address: bytes) -> list[int]:
    """The words as a little-endian machine loads them: the hash is over bytes as they stand in memory."""
    return [int.from_bytes(address[at : at + 4], "little") for at in (0, 4, 8, 12)]


def pair(high: int, low: int) -> int:
    return high << 32 | low


def ports_word(source: int, destination: int) -> int:
    return int.from_bytes(source.to_bytes(2, "big") + destination.to_bytes(2, "big"), "little")


def hash_flow(seeds: tuple[int, int], key: Key) -> int:
    source, destination, source_port, destination_port, protocol = key
    tail = pair(ports_word(source_port, destination_port), protocol) ^ seeds[1]
    s, d = host_words(source), host_words(destination)
    if source.startswith(MAPPED) and destination.startswith(MAPPED):
        return mix(fold_word(seeds[0], pair(s[3], d[3])) ^ tail)
    h = seeds[0]
    for high, low in ((s[0], s[1]), (s[2], s[3]), (d[0], d[1]), (d[2], d[3])):
        h = fold_word(h, pair(high, low))
    return mix(h ^ tail)


def hash_client(seeds: tuple[int, int], client: bytes) -> int:
    words = host_words(client)
    h = fold_word(seeds[0], pair(words[0], words[1]))
    return mix(fold_word(h, pair(words[2], words[3])) ^ seeds[1])


def hash_client_port(seeds: tuple[int, int], client: bytes, port: int) -> int:
    return mix(hash_client(seeds, client) ^ int.from_bytes(port.to_bytes(2, "big"), "little"))


def slot_of(value: int, slots: int) -> int:
    return ((value >> 32) * slots) >> 32
