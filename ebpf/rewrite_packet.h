// SPDX-License-Identifier: GPL-2.0-only
//
// Rewrites and sends: next hop, link header, tunnel header. Checksums are incremental (RFC 1624) except for the outer
// IPv4 header, which is new.

#include "hash_flow.h"
#include "count_verdict.h"

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

struct next_hop {
    u32 ifindex;
    u16 mtu;
    __be16 vlan;
    u8 mac[6];
    u8 source_mac[6];
};

INLINE u16 fold_sum(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

INLINE void hop_of_target(struct next_hop *hop, const struct target *t)
{
    hop->ifindex = t->ifindex;
    hop->mtu = t->mtu;
    hop->vlan = t->vlan;
    copy_mac(hop->mac, t->mac);
    copy_mac(hop->source_mac, t->source_mac);
}

// The kernel's routing table; 0 or its BPF_FIB_LKUP_RET_* code (negative: refused). Nothing is forwarded to a group:
// only a forged source makes one a client, and what the kernel says of groups changes with who has joined them.
INLINE int ask_route(struct xdp_md *ctx, struct work *w, const __be32 *source, const __be32 *destination, u16 length,
                     struct next_hop *hop)
{
    struct bpf_fib_lookup *route = &w->route;
    int answer;

    __builtin_memset(route, 0, sizeof(*route));
    if (is_group(destination)) {
        __builtin_memset(hop, 0, sizeof(*hop));
        return BPF_FIB_LKUP_RET_NOT_FWDED;
    }
    if (is_mapped(destination)) {
        route->family = FAMILY_IPV4;
        route->ipv4_src = source[3];
        route->ipv4_dst = destination[3];
    } else {
        route->family = FAMILY_IPV6;
        copy_address(route->ipv6_src, source);
        copy_address(route->ipv6_dst, destination);
    }
    route->ifindex = ctx->ingress_ifindex;
    route->tot_len = length;
    answer = bpf_fib_lookup(ctx, route, sizeof(*route), 0);
    hop->mtu = answer == BPF_FIB_LKUP_RET_FRAG_NEEDED ? route->tot_len : 0;
    hop->ifindex = route->ifindex;
    hop->vlan = 0;
    copy_mac(hop->mac, route->dmac);
    copy_mac(hop->source_mac, route->smac);
    return answer;
}

INLINE int send(struct xdp_md *ctx, const struct next_hop *hop)
{
    if (hop->ifindex == ctx->ingress_ifindex)
        return XDP_TX;
    return bpf_redirect(hop->ifindex, 0);
}

// Makes room so that the IP header at offset l3 follows `room` bytes of new headers; the old link header goes.
INLINE int move_head(struct xdp_md *ctx, u16 l3, u16 room)
{
    int change = (int)l3 - (int)room;

    return change ? bpf_xdp_adjust_head(ctx, change) : 0;
}

INLINE u16 link_bytes(const struct next_hop *hop)
{
    return hop->vlan ? ETHERNET_BYTES + 4 : ETHERNET_BYTES;
}

// The link header in front of a packet whose headroom fits it; false if the frame is too short (never).
INLINE bool put_link(struct xdp_md *ctx, const struct next_hop *hop, __be16 protocol)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);
    __be16 *tag = (void *)(ethernet + 1);

    if (PAST_END(ctx, ethernet))
        return false;
    copy_mac(ethernet->h_dest, hop->mac);
    copy_mac(ethernet->h_source, hop->source_mac);
    ethernet->h_proto = protocol;
    if (!hop->vlan)
        return true;
    if ((void *)(tag + 2) > packet_end(ctx))
        return false;
    ethernet->h_proto = bpf_htons(ETH_P_8021Q);
    tag[0] = hop->vlan;
    tag[1] = protocol;
    return true;
}

// The outer source towards `destination`; its host bits vary by flow, so that a receiver spreads the load.
INLINE void put_outer_source(const struct settings *s, u64 hash, const __be32 *destination, __be32 *source)
{
    if (is_mapped(destination)) {
        set_mapped(source, s->tunnel_source4 ^ ((u32)(hash >> 16) & s->tunnel_vary4));
    } else {
        copy_address(source, s->tunnel_source6);
        source[3] ^= (u32)(hash >> 16) & s->tunnel_vary6;
    }
}

INLINE void fill_outer4(struct iphdr *ip, __be32 source, __be32 destination, u16 inner, bool v6)
{
    u32 sum;

    ip->version = 4;
    ip->ihl = 5;
    ip->tos = 0;
    ip->tot_len = bpf_htons(inner + sizeof(*ip));
    ip->id = 0;
    ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
    ip->ttl = TUNNEL_HOPS;
    ip->protocol = v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
    ip->check = 0;
    ip->saddr = source;
    ip->daddr = destination;
    sum = bpf_htons(0x4500) + ip->tot_len + bpf_htons(IPV4_DONT_FRAGMENT);
    sum += bpf_htons(TUNNEL_HOPS << 8 | (v6 ? IPPROTO_IPV6 : IPPROTO_IPIP));
    sum += (source & 0xffff) + (source >> 16) + (destination & 0xffff) + (destination >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    ip->check = ~((sum & 0xffff) + (sum >> 16));
}

INLINE void fill_outer6(struct ipv6hdr *ip, const __be32 *source, const __be32 *destination, u64 hash, u16 inner,
                        bool v6)
{
    // Version 6; the flow label varies with the flow, so that routers spread it, too.
    *(__be32 *)ip = bpf_htonl(0x60000000 | ((u32)(hash >> 12) & 0xfffff));
    ip->payload_len = bpf_htons(inner);
    ip->nexthdr = v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
    ip->hop_limit = TUNNEL_HOPS;
    copy_address((__be32 *)&ip->saddr, source);
    copy_address((__be32 *)&ip->daddr, destination);
}

// Wraps the IP packet at offset l3 from `source` to `destination` (of one IP version); 0 or the reason it cannot be done.
INLINE u32 put_tunnel_between(struct xdp_md *ctx, const __be32 *source, const __be32 *destination, u16 l3,
                              u16 l3_length, bool v6, u64 hash, const struct next_hop *hop)
{
    u16 link = link_bytes(hop);

    if (is_mapped(destination)) {
        struct iphdr *ip;

        if (move_head(ctx, l3, link + sizeof(*ip)))
            return REASON_DROP_HEADROOM;
        ip = packet_at(ctx, link & L3_OFFSET_MASK);
        if (PAST_END(ctx, ip) || !put_link(ctx, hop, bpf_htons(ETH_P_IP)))
            return REASON_DROP_INTERNAL;
        fill_outer4(ip, source[3], destination[3], l3_length, v6);
    } else {
        struct ipv6hdr *ip;

        if (move_head(ctx, l3, link + sizeof(*ip)))
            return REASON_DROP_HEADROOM;
        ip = packet_at(ctx, link & L3_OFFSET_MASK);
        if (PAST_END(ctx, ip) || !put_link(ctx, hop, bpf_htons(ETH_P_IPV6)))
            return REASON_DROP_INTERNAL;
        fill_outer6(ip, source, destination, hash, l3_length, v6);
    }
    return 0;
}

// The same from this gateway's tunnel sources.
INLINE u32 put_tunnel(struct xdp_md *ctx, const struct settings *s, u16 l3, u16 l3_length, bool v6, u64 hash,
                      const __be32 *destination, const struct next_hop *hop)
{
    __be32 source[4];

    put_outer_source(s, hash, destination, source);
    return put_tunnel_between(ctx, source, destination, l3, l3_length, v6, hash, hop);
}

INLINE u16 tunnel_overhead(const __be32 *destination)
{
    return is_mapped(destination) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

// Only the link header changes.
INLINE u32 put_plain(struct xdp_md *ctx, u16 l3, bool v6, const struct next_hop *hop)
{
    if (move_head(ctx, l3, link_bytes(hop)))
        return REASON_DROP_HEADROOM;
    return put_link(ctx, hop, v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP)) ? 0 : REASON_DROP_INTERNAL;
}

// Whether the sender of a packet that is too big may be told so.
INLINE bool may_tell_size(struct xdp_md *ctx, const struct work *w)
{
    struct iphdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);

    if (w->flags & (WORK_ICMP_ERROR | WORK_FRAGMENT_LATER))
        return false;
    if (w->flags & WORK_V6)
        return true;
    return !PAST_END(ctx, ip) && (ip->frag_off & bpf_htons(IPV4_DONT_FRAGMENT));
}

// Tells the sender what fits, or drops: for packets that the path cannot fragment.
INLINE int leave_too_big(struct xdp_md *ctx, struct work *w, u16 mtu)
{
    if (!may_tell_size(ctx, w))
        return leave(ctx, w, XDP_DROP, REASON_DROP_TOO_BIG);
    w->answer = ANSWER_TOO_BIG;
    w->answer_mtu = mtu;
    return go(ctx, w, STEP_ANSWER);
}
