// SPDX-License-Identifier: GPL-2.0-only
//
// Hashes of flows: 64-bit multiply and fold, keyed with the cluster's secret seeds, equal on every gateway. The
// multipliers are the first three odd constants of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
// number generators", 2014); keyed, because a client must not be able to choose its backend or its cache line.

#include "common.h"

#define MIX_1 0x9e3779b97f4a7c15ull
#define MIX_2 0xbf58476d1ce4e5b9ull
#define MIX_3 0x94d049bb133111ebull

INLINE u64 mix(u64 h)
{
    h = (h ^ (h >> 32)) * MIX_2;
    h = (h ^ (h >> 29)) * MIX_3;
    return h ^ (h >> 32);
}

INLINE u64 fold(u64 h, u64 word)
{
    h = (h ^ word) * MIX_1;
    return h ^ (h >> 32);
}

INLINE u64 pair(u32 high, u32 low)
{
    return (u64)high << 32 | low;
}

// IPv4 flow; `ports` is source and destination port as they stand in the packet.
INLINE u64 hash_flow4(const struct settings *s, u32 source, u32 destination, u32 ports, u8 protocol)
{
    return mix(fold(s->hash_seed[0], pair(source, destination)) ^ pair(ports, protocol) ^ s->hash_seed[1]);
}

INLINE u64 hash_flow6(const struct settings *s, const __be32 *source, const __be32 *destination, u32 ports, u8 protocol)
{
    u64 h = fold(s->hash_seed[0], pair(source[0], source[1]));

    h = fold(h, pair(source[2], source[3]));
    h = fold(h, pair(destination[0], destination[1]));
    h = fold(h, pair(destination[2], destination[3]));
    return mix(h ^ pair(ports, protocol) ^ s->hash_seed[1]);
}

INLINE u32 ports_of(const struct flow_key *key)
{
    u32 ports;

    __builtin_memcpy(&ports, &key->source_port, 4);
    return ports;
}

INLINE u64 hash_key(const struct settings *s, const struct flow_key *key)
{
    u32 ports = ports_of(key);

    if (is_mapped(key->source) && is_mapped(key->destination))
        return hash_flow4(s, key->source[3], key->destination[3], ports, key->protocol);
    return hash_flow6(s, key->source, key->destination, ports, key->protocol);
}

// A client without its ports, for source persistence.
INLINE u64 hash_client(const struct settings *s, const __be32 *client)
{
    u64 h = fold(s->hash_seed[0], pair(client[0], client[1]));

    return mix(fold(h, pair(client[2], client[3])) ^ s->hash_seed[1]);
}

// A client's endpoint: both directions of a translated connection know it.
INLINE u64 hash_client_port(const struct settings *s, const __be32 *client, __be16 port)
{
    return mix(hash_client(s, client) ^ port);
}

// An endpoint, for `claims`: not keyed, since all that a forger of collisions wins is a longer look at his packets.
// ebpf/layout.py has the same for user space.
INLINE u64 hash_endpoint(const __be32 *address, __be16 port, u8 protocol)
{
    u64 h = pair(address[0], address[1]) * MIX_2 ^ pair(address[2], address[3]);

    return (h ^ pair(port | (u32)protocol << 16, 0)) * MIX_1;
}

INLINE u64 hash_endpoint4(__be32 address, __be16 port, u8 protocol)
{
    return pair(MAPPED_PREFIX ^ (port | (u32)protocol << 16), address) * MIX_1;
}

// A slot of a table from the upper half of a hash (the lower half picks the cache entry).
INLINE u32 slot_of(u64 hash, u32 slots)
{
    return ((hash >> 32) * slots) >> 32;
}
