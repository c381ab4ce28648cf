// SPDX-License-Identifier: GPL-2.0-only
//
// Hands a packet to the node its connection belongs to: by MAC if that is on the segment it came from, else by tunnel
// between the two gateways' own addresses. The receiver knows it by the source MAC or the tunnel's ends, and never
// steers it a second time.

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

// The address at which a gateway takes tunnels of its peers, and from which it sends them; false if it has none.
INLINE bool tunnel_end(u32 node, __be32 *address)
{
    struct node_entry *entry = nodes.lookup(&node);

    if (!entry)
        return false;
    copy_address(address, entry->address);
    return address[0] | address[1] | address[2] | address[3];
}

// The kernel asks for the next hop's link address and sends the packet itself: it only has to take the frame.
INLINE void leave_link_as_it_is(struct xdp_md *ctx, struct next_hop *hop)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);

    if (PAST_END(ctx, ethernet))
        return;
    copy_mac(hop->mac, ethernet->h_dest);
    copy_mac(hop->source_mac, ethernet->h_source);
}

INLINE int steer_by_tunnel(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    struct next_hop hop = {};
    __be32 own[4], peer[4];
    u16 overhead;
    u32 reason;
    int answer;

    if (!tunnel_end(s->node, own) || !tunnel_end(w->node, peer) || is_mapped(own) != is_mapped(peer))
        return leave(ctx, w, XDP_DROP, REASON_DROP_NODE_UNREACHABLE);
    overhead = tunnel_overhead(peer);
    answer = ask_route(ctx, w, own, peer, w->l3_length + overhead, &hop);
    if (answer == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return leave_too_big(ctx, w, hop.mtu - overhead);
    if (answer == BPF_FIB_LKUP_RET_NO_NEIGH)
        leave_link_as_it_is(ctx, &hop);
    else if (answer)
        return leave(ctx, w, XDP_DROP, REASON_DROP_NODE_UNREACHABLE);
    reason = put_tunnel_between(ctx, own, peer, w->l3, w->l3_length, w->flags & WORK_V6, w->hash, &hop);
    if (reason)
        return leave(ctx, w, XDP_DROP, reason);
    if (!(w->flags & WORK_DRY))
        count_steered(w->service);
    if (answer)
        return leave(ctx, w, XDP_PASS, REASON_PASS_NEIGHBOUR_UNKNOWN);
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

// Whether this is a whole tunnelled packet from a peer to this gateway, which may be its router as well.
INLINE bool is_peers_tunnel(struct work *w, const struct settings *s)
{
    __be32 own[4];

    if (w->protocol != IPPROTO_IPIP && w->protocol != IPPROTO_IPV6)
        return false;
    if (w->flags & (WORK_UNWRAPPED | WORK_FRAGMENT_FIRST | WORK_FRAGMENT_LATER))
        return false;
    copy_address(w->address.address, w->key.source);
    return tunnel_end(s->node, own) && same_address(own, w->key.destination) && peer_addresses.lookup(&w->address);
}

// Strips the outer header of what a peer sent by tunnel and starts over. GO_ON if it is none.
INLINE u32 unwrap_from_peer(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    struct ethhdr *ethernet = packet_at(ctx, 0), kept;
    bool v6 = w->protocol == IPPROTO_IPV6;

    if (!is_peers_tunnel(w, s) || PAST_END(ctx, ethernet))
        return GO_ON;
    kept = *ethernet;
    if (bpf_xdp_adjust_head(ctx, (int)w->l4 - ETHERNET_BYTES))
        return GO_ON;
    ethernet = packet_at(ctx, 0);
    if (PAST_END(ctx, ethernet))
        return GO_ON;
    kept.h_proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
    *ethernet = kept;
    w->flags |= WORK_FROM_PEER | WORK_UNWRAPPED;
    return LEAVE;
}
