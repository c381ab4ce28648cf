// SPDX-License-Identifier: GPL-2.0-only
//
// Is this ours? Address, port and protocol; then address and any port; then, if nothing else claims the packet,
// "routed through me".

#include "parse_packet.h"

INLINE u32 service_at(struct work *w, const __be32 *address, __be16 port)
{
    u32 *id;

    copy_address(w->endpoint.address, address);
    w->endpoint.port = port;
    w->endpoint.protocol = w->protocol;
    w->endpoint.pad = 0;
    id = services.lookup(&w->endpoint);
    return id ? *id : 0;
}

// The service that clients address as (address, port), or 0.
INLINE u32 match_service(const struct settings *s, struct work *w, const __be32 *address, __be16 port)
{
    u32 id = service_at(w, address, port);

    if (!id && (s->flags & SETTING_ANY_PORT))
        id = service_at(w, address, 0);
    return id;
}

INLINE u32 backend_at(struct work *w, const __be32 *address, __be16 port)
{
    u32 *target;

    copy_address(w->endpoint.address, address);
    w->endpoint.port = port;
    w->endpoint.protocol = w->protocol;
    w->endpoint.pad = 0;
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

        return v4 >= 0xe0000000 || (v4 >> 16) == 0xa9fe;
    }
    return (bpf_ntohl(address[0]) >> 24) == 0xff || (bpf_ntohl(address[0]) >> 22) == 0xfe80 >> 6;
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
    endpoint->address[0] = endpoint->address[1] = endpoint->address[2] = endpoint->address[3] = 0;
    endpoint->port = 0;
    endpoint->protocol = 0;
    endpoint->pad = 0;
    id = services.lookup(endpoint);
    return id ? *id : 0;
}
