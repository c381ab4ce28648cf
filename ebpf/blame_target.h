// SPDX-License-Identifier: GPL-2.0-only
//
// Signs that a backend is not well, as its clients' packets show them; user space weighs them. Anyone may forge them,
// so they are counted and nothing else.

#include "choose_target.h"
#include "count_verdict.h"

INLINE void count_refused(const struct work *w)
{
    u32 target = w->target;
    struct target_counter *counter = target_counters.lookup(&target);

    if (counter && !(w->flags & WORK_DRY))
        counter->refused++;
}

INLINE void count_unreachable(const struct work *w)
{
    u32 target = w->target;
    struct target_counter *counter = target_counters.lookup(&target);

    if (counter && !(w->flags & WORK_DRY))
        counter->unreachable++;
}

// "Too big" is a code of "unreachable" in IPv4, but blames the packet.
INLINE bool is_unreachable(struct xdp_md *ctx, const struct work *w)
{
    struct icmphdr *icmp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);

    if (PAST_END(ctx, icmp))
        return false;
    if (w->flags & WORK_V6)
        return icmp->type == ICMPV6_DEST_UNREACH;
    return icmp->type == ICMP_DEST_UNREACH && icmp->code != ICMP_FRAG_NEEDED;
}

// The target that a packet was sent to whose ports are quoted at w->inner_l4; the reverse of it is in w->key.
INLINE u32 quoted_target(struct xdp_md *ctx, const struct settings *s, struct work *w)
{
    __be16 *ports = packet_at(ctx, w->inner_l4 & L4_OFFSET_MASK);
    struct flow_key *key = &w->connection;
    struct service *service;
    struct connection *c;
    u32 id;

    if ((void *)(ports + 2) > packet_end(ctx))
        return 0;
    copy_address(key->source, w->key.destination);
    copy_address(key->destination, w->key.source);
    key->source_port = ports[0];
    key->destination_port = ports[1];
    key->protocol = w->protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
    id = match_service(s, w, key->destination, key->destination_port);
    service = id ? service_table.lookup(&id) : 0;
    if (!service)
        return 0;
    c = connections.lookup(key);
    if (!c)
        c = half_open.lookup(key);
    if (c)
        return c->target;
    w->service = id;
    w->hash = hash_key(s, key);
    return service->flags & SERVICE_REMEMBER_NEW ? 0 : choose_target(s, w, service, false);
}
