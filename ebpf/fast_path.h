// SPDX-License-Identifier: GPL-2.0-only
//
// The short way: a plain packet (no VLAN tag, no options, no fragment) of a flow that was looked up within the last
// second, to a `dsr` or `tunnel` target that is alive and resolved, or to this node itself. It reads six cache lines:
// packet, settings, capture switch, flow, target, counter. Everything else takes the full path.

#include "remember_flow.h"
#include "rewrite_packet.h"

#define TCP_CONTROL (TCP_FIN | TCP_SYN | TCP_RST)

struct plain_packet {
    u64 hash;
    u16 l3_length;
    bool v6;
};

// The ports at the start of a TCP or UDP header; false unless the packet is the middle of something.
INLINE bool plain_ports(struct xdp_md *ctx, void *l4, u8 protocol, u16 l4_length, u32 *ports)
{
    struct tcphdr *tcp = l4;
    struct udphdr *udp = l4;

    if (protocol == IPPROTO_TCP) {
        if (PAST_END(ctx, tcp) || l4_length < sizeof(*tcp) || (((u8 *)tcp)[13] & TCP_CONTROL))
            return false;
    } else if (protocol != IPPROTO_UDP || PAST_END(ctx, udp) || l4_length < sizeof(*udp)) {
        return false;
    }
    __builtin_memcpy(ports, l4, 4);
    return true;
}

INLINE bool plain_ipv4(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct iphdr *ip = packet_at(ctx, ETHERNET_BYTES);
    u32 ports, length = frame_bytes(ctx);

    if (PAST_END(ctx, ip) || *(u8 *)ip != 0x45)
        return false;
    if (ip->frag_off & bpf_htons(IPV4_OFFSET | IPV4_MORE_FRAGMENTS))
        return false;
    p->l3_length = bpf_ntohs(ip->tot_len);
    p->v6 = false;
    if (ETHERNET_BYTES + p->l3_length > length || p->l3_length < sizeof(*ip))
        return false;
    if (!plain_ports(ctx, ip + 1, ip->protocol, p->l3_length - sizeof(*ip), &ports))
        return false;
    p->hash = hash_flow4(s, ip->saddr, ip->daddr, ports, ip->protocol);
    return true;
}

INLINE bool plain_ipv6(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct ipv6hdr *ip = packet_at(ctx, ETHERNET_BYTES);
    u32 ports, length = frame_bytes(ctx);

    if (PAST_END(ctx, ip) || (*(u8 *)ip >> 4) != 6)
        return false;
    p->l3_length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
    p->v6 = true;
    if (ETHERNET_BYTES + p->l3_length > length)
        return false;
    if (!plain_ports(ctx, ip + 1, ip->nexthdr, p->l3_length - sizeof(*ip), &ports))
        return false;
    p->hash = hash_flow6(s, (__be32 *)&ip->saddr, (__be32 *)&ip->daddr, ports, ip->nexthdr);
    return true;
}

INLINE bool parse_plain(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);

    if (PAST_END(ctx, ethernet))
        return false;
    if (ethernet->h_proto == bpf_htons(ETH_P_IP))
        return plain_ipv4(ctx, s, p);
    return ethernet->h_proto == bpf_htons(ETH_P_IPV6) && plain_ipv6(ctx, s, p);
}

INLINE bool is_capturing(void)
{
    u32 zero = 0;
    struct capture_control *control = capture_control.lookup(&zero);

    return control && control->until_ns;
}

// Sends the packet and sets the verdict, or GO_ON for the full path. Nothing is changed before it is sure to be sent.
INLINE u32 take_short_way(struct xdp_md *ctx, const struct settings *s, int *verdict)
{
    struct recent_flow *flow;
    struct plain_packet p = {};
    struct next_hop hop;
    struct target *t;
    u32 id, frame = frame_bytes(ctx);
    u16 overhead;

    if (is_capturing() || !parse_plain(ctx, s, &p))
        return GO_ON;
    flow = recent_flow(p.hash);
    if (!flow || flow->tag != tag_of(s, p.hash) || !is_fresh(flow) || (flow->flags & ~RECENT_LOCAL))
        return GO_ON;
    if (flow->flags & RECENT_LOCAL) {
        note(REASON_PASS_LOCAL, frame);
        *verdict = XDP_PASS;
        return LEAVE;
    }
    id = flow->target;
    t = targets.lookup(&id);
    if (!t || (t->flags & (TARGET_ALIVE | TARGET_RESOLVED)) != (TARGET_ALIVE | TARGET_RESOLVED))
        return GO_ON;
    if (t->method != METHOD_TUNNEL && t->method != METHOD_DSR)
        return GO_ON;
    overhead = t->method == METHOD_TUNNEL ? tunnel_overhead(t->address) : 0;
    if (t->mtu && p.l3_length + overhead > t->mtu)
        return GO_ON;
    hop_of_target(&hop, t);
    count_target(id, frame);
    if (t->method == METHOD_TUNNEL ? put_tunnel(ctx, s, ETHERNET_BYTES, p.l3_length, p.v6, p.hash, t->address, &hop)
                                   : put_plain(ctx, ETHERNET_BYTES, p.v6, &hop)) {
        note(REASON_DROP_HEADROOM, frame);
        *verdict = XDP_DROP;
        return LEAVE;
    }
    *verdict = send(ctx, &hop);
    return LEAVE;
}
