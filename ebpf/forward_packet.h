// SPDX-License-Identifier: GPL-2.0-only
//
// `dsr` and `tunnel`: the packet itself stays as it is, only what is in front of it changes.

#include "rewrite_packet.h"

// Turns a routing answer into 0 (go) or the reason not to; for packets the kernel could not send on in our place.
INLINE u32 route_refusal(int answer)
{
    if (answer == BPF_FIB_LKUP_RET_SUCCESS)
        return 0;
    return answer == BPF_FIB_LKUP_RET_NO_NEIGH ? REASON_DROP_NEIGHBOUR_UNKNOWN : REASON_DROP_NO_ROUTE;
}

INLINE u32 next_hop_of(struct xdp_md *ctx, struct work *w, const struct settings *s, const struct target *t,
                       struct next_hop *hop)
{
    __be32 source[4];
    int answer;

    hop_of_target(hop, t);
    if (t->flags & TARGET_RESOLVED)
        return 0;
    copy_address(source, w->key.source);
    if (t->method == METHOD_TUNNEL && is_mapped(t->address))
        set_mapped(source, s->tunnel_source4);
    else if (t->method == METHOD_TUNNEL)
        copy_address(source, s->tunnel_source6);
    answer = ask_route(ctx, w, source, t->address, 0, hop);
    hop->mtu = t->mtu;
    return route_refusal(answer);
}

INLINE int step_forward(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    u32 id = w->target, reason;
    struct target *t = targets.lookup(&id);
    bool v6 = w->flags & WORK_V6;
    struct next_hop hop = {};
    u16 overhead;

    if (!t)
        return leave(ctx, w, XDP_DROP, REASON_DROP_INTERNAL);
    if (t->method == METHOD_DSR && v6 == is_mapped(t->address))
        return leave(ctx, w, XDP_DROP, REASON_DROP_FAMILY);
    reason = next_hop_of(ctx, w, s, t, &hop);
    if (reason)
        return leave(ctx, w, XDP_DROP, reason);
    overhead = t->method == METHOD_TUNNEL ? tunnel_overhead(t->address) : 0;
    if (hop.mtu && w->l3_length + overhead > hop.mtu)
        return leave_too_big(ctx, w, hop.mtu - overhead);
    if (t->method == METHOD_TUNNEL)
        reason = put_tunnel(ctx, s, w->l3, w->l3_length, v6, w->hash, t->address, &hop);
    else
        reason = put_plain(ctx, w->l3, v6, &hop);
    if (reason)
        return leave(ctx, w, XDP_DROP, reason);
    if (!(w->flags & WORK_DRY))
        count_target(id, w->length);
    return leave(ctx, w, send(ctx, &hop), w->flags & WORK_ICMP_ERROR ? REASON_SENT_ICMP_ERROR : REASON_SENT_FORWARDED);
}
