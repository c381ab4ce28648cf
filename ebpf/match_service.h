// SPDX-License-Identifier: GPL-2.0-only
//
// Is this ours? Address, port and protocol; then address and any port; then, if nothing else claims the packet,
// "routed through me".

#include "parse_packet.h"

// Services lately matched, a part of the array for each CPU: the hash table alone would cost half of what a first packet
// may. Forgotten as a whole when the configuration's epoch moves on. The hash is a bijection of what is not compared.
#define KNOWN_SERVICES 256
struct known_service {
    u64 epoch;
    u64 hash;
    u64 prefix;         // first half of the address
    u32 port_protocol;  // as hash_endpoint takes them
    u32 service;
};
BPF_F_TABLE("array", u32, struct known_service, known_services, KNOWN_SERVICES * CPU_COUNT, F_MMAPABLE);

INLINE struct known_service *known_service(u64 hash)
{
    u32 number = bpf_get_smp_processor_id() * KNOWN_SERVICES + ((hash >> 32) & (KNOWN_SERVICES - 1));

    return known_services.lookup(&number);
}

INLINE bool is_known(const struct known_service *known, const struct settings *s, u64 hash, u64 prefix, u32 port_protocol)
{
    return known->hash == hash && known->epoch == s->epoch && known->prefix == prefix &&
           known->port_protocol == port_protocol;
}

// False: neither a service nor a nat backend has the endpoint of this hash. True: perhaps.
INLINE bool is_claimed(u64 hash)
{
    u32 word = hash >> (64 - CLAIM_BITS_LOG2 + 6);
    u64 *bits = claims.lookup(&word);

    return !bits || (*bits >> (hash >> (64 - CLAIM_BITS_LOG2) & 63) & 1);
}

// The service of exactly this endpoint, whose hash is given, or 0.
INLINE u32 service_at(const struct settings *s, struct endpoint *endpoint, u64 hash)
{
    u64 prefix = pair(endpoint->address[0], endpoint->address[1]);
    u32 port_protocol = endpoint->port | (u32)endpoint->protocol << 16, *id;
    struct known_service *known = known_service(hash);
    // Read before the table: what was found under an old epoch must not count as found under the new one.
    u64 epoch = *(const volatile u64 *)&s->epoch;

    if (!known)
        return 0;
    if (is_known(known, s, hash, prefix, port_protocol))
        return known->service;
    id = is_claimed(hash) ? services.lookup(endpoint) : 0;
    if (!id)
        return 0;
    known->epoch = epoch;
    known->hash = hash;
    known->prefix = prefix;
    known->port_protocol = port_protocol;
    known->service = *id;
    return known->service;
}

INLINE void set_endpoint(struct endpoint *endpoint, const __be32 *address, __be16 port, u8 protocol)
{
    copy_address(endpoint->address, address);
    endpoint->port = port;
    endpoint->protocol = protocol;
    endpoint->pad = 0;
}

// The service that clients address as this endpoint, or 0. Leaves the endpoint with any port if it does not match.
INLINE u32 match_endpoint(const struct settings *s, struct endpoint *endpoint, u64 hash)
{
    u32 id = service_at(s, endpoint, hash);

    if (id || !(s->flags & SETTING_ANY_PORT))
        return id;
    endpoint->port = 0;
    return service_at(s, endpoint, hash_endpoint(endpoint->address, 0, endpoint->protocol));
}

INLINE u32 match_service(const struct settings *s, struct work *w, const __be32 *address, __be16 port)
{
    set_endpoint(&w->endpoint, address, port, w->protocol);
    return match_endpoint(s, &w->endpoint, hash_endpoint(address, port, w->protocol));
}

INLINE u32 backend_at(struct work *w, const __be32 *address, __be16 port)
{
    u32 *target;

    set_endpoint(&w->endpoint, address, port, w->protocol);
    if (!is_claimed(hash_endpoint(address, port, w->protocol)))
        return 0;
    target = nat_return.lookup(&w->endpoint);
    return target ? *target : 0;
}

// The (first) target of `nat` services that has this endpoint, or 0.
INLINE u32 match_backend(const struct settings *s, struct work *w, const __be32 *address, __be16 port)
{
    u32 target = backend_at(w, address, port);

    if (!target && (s->flags & SETTING_ANY_PORT))
        target = backend_at(w, address, 0);
    return target;
}

INLINE bool is_group_or_link_local(const __be32 *address)
{
    if (is_mapped(address)) {
        u32 v4 = bpf_ntohl(address[3]);

        return is_group(address) || (v4 >> 16) == 0xa9fe;
    }
    return is_group(address) || (bpf_ntohl(address[0]) >> 22) == 0xfe80 >> 6;
}

INLINE bool is_own(struct work *w, const __be32 *address)
{
    copy_address(w->address.address, address);
    return addresses.lookup(&w->address) != 0;
}

// Routed traffic: not from or to the gateway itself or a VIP, not link-local, not a group.
INLINE u32 match_routed(struct work *w, u32 *reason)
{
    struct endpoint *endpoint = &w->endpoint;
    u32 *id;

    *reason = REASON_PASS_NOT_OURS;
    if (is_group_or_link_local(w->key.destination) || is_group_or_link_local(w->key.source))
        return 0;
    if (is_own(w, w->key.destination) || is_own(w, w->key.source)) {
        *reason = REASON_PASS_OWN_ADDRESS;
        return 0;
    }
    __builtin_memset(endpoint, 0, sizeof(*endpoint));
    id = services.lookup(endpoint);
    return id ? *id : 0;
}
