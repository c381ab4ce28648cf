// SPDX-License-Identifier: GPL-2.0-only
//
// Hands a packet to the node its connection belongs to: by MAC on a segment both share, else by tunnel. The receiver
// knows it by the source MAC or the tunnel's source, and never steers it a second time.

#include "parse_packet.h"
#include "remember_flow.h"
#include "rewrite_packet.h"

INLINE void count_steered(u32 service)
{
    struct service_counter *counter = service_counters.lookup(&service);

    if (counter)
        counter->steered++;
}

// Link addresses for a peer on the segment the packet came from; false if it is not there.
INLINE bool put_peer(struct xdp_md *ctx, u32 node)
{
    struct node_path_key key = {.ifindex = ctx->ingress_ifindex, .node = node};
    struct node_path *path = node_paths.lookup(&key);
    struct ethhdr *ethernet = packet_at(ctx, 0);

    if (!path || PAST_END(ctx, ethernet))
        return false;
    copy_mac(ethernet->h_dest, path->mac);
    copy_mac(ethernet->h_source, path->source_mac);
    return true;
}

INLINE int steer_by_tunnel(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    u32 node = w->node, reason;
    struct node_entry *entry = nodes.lookup(&node);
    struct next_hop hop = {};
    __be32 source[4];

    if (!entry || !(entry->address[0] | entry->address[1] | entry->address[2] | entry->address[3]))
        return leave(ctx, w, XDP_DROP, REASON_DROP_NODE_UNREACHABLE);
    if (is_mapped(entry->address))
        set_mapped(source, s->tunnel_source4);
    else
        copy_address(source, s->tunnel_source6);
    if (ask_route(ctx, w, source, entry->address, 0, &hop))
        return leave(ctx, w, XDP_DROP, REASON_DROP_NODE_UNREACHABLE);
    // A hash of zero leaves the source unvaried: peers are recognised by it.
    reason = put_tunnel(ctx, s, w->l3, w->l3_length, w->flags & WORK_V6, 0, entry->address, &hop);
    if (reason)
        return leave(ctx, w, XDP_DROP, reason);
    if (!(w->flags & WORK_DRY))
        count_steered(w->service);
    return leave(ctx, w, send(ctx, &hop), REASON_SENT_STEERED_TUNNEL);
}

// Only where the flow's own packets alone make its connection known here: an entry that another direction made must
// not be overlooked for a second.
INLINE bool may_remember_steering(const struct work *w)
{
    u32 id = w->service;
    struct service *service = service_table.lookup(&id);

    if (!service || service->method != METHOD_LOCAL)
        return false;
    if (w->flags & (WORK_ICMP_ERROR | WORK_RETURN | WORK_ROUTED | WORK_FRAGMENT_LATER))
        return false;
    return !(w->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

INLINE int step_steer(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    if (!put_peer(ctx, w->node))
        return steer_by_tunnel(ctx, w, s);
    if (!(w->flags & WORK_DRY)) {
        count_steered(w->service);
        if (may_remember_steering(w))
            remember_flow(s, w->hash, w->node, RECENT_STEERED | w->service << RECENT_SERVICE_SHIFT);
    }
    return leave(ctx, w, XDP_TX, REASON_SENT_STEERED);
}

INLINE bool is_from_peer(struct xdp_md *ctx)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);
    struct mac_key key = {};

    if (PAST_END(ctx, ethernet))
        return false;
    copy_mac(key.mac, ethernet->h_source);
    return peer_macs.lookup(&key) != 0;
}

// A packet that a peer sent by tunnel: strips the outer header and starts over. GO_ON if it is none.
INLINE u32 unwrap_from_peer(struct xdp_md *ctx, struct work *w)
{
    struct ethhdr *ethernet = packet_at(ctx, 0), kept;
    bool v6 = w->protocol == IPPROTO_IPV6;

    if (w->protocol != IPPROTO_IPIP && w->protocol != IPPROTO_IPV6)
        return GO_ON;
    copy_address(w->address.address, w->key.source);
    if ((w->flags & WORK_FROM_PEER) || !peer_addresses.lookup(&w->address))
        return GO_ON;
    if (PAST_END(ctx, ethernet))
        return GO_ON;
    kept = *ethernet;
    if (bpf_xdp_adjust_head(ctx, (int)w->l4 - ETHERNET_BYTES))
        return GO_ON;
    ethernet = packet_at(ctx, 0);
    if (PAST_END(ctx, ethernet))
        return GO_ON;
    kept.h_proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
    *ethernet = kept;
    w->flags |= WORK_FROM_PEER;
    return LEAVE;
}
