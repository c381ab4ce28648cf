// SPDX-License-Identifier: GPL-2.0-only
//
// Plain packets, the ones the short ways take: TCP or UDP without VLAN tag, IP options, extension headers or fragments.
// Reads no more of a packet than its decision needs; everything else is for parse_packet.h.

#include "match_service.h"

#define TCP_CONTROL (TCP_FIN | TCP_SYN | TCP_RST)

struct plain_packet {
    u64 hash;
    u64 claim;   // hash of the endpoint it is for
    u64 prefix;  // first half of that address
    u32 ports;
    u16 l3_length;
    u8 protocol;
    bool v6;
    bool first;      // TCP SYN
    bool control;    // changes a connection's state otherwise: not for a short way
    bool returned;   // answer of a nat backend
    bool seen_once;  // UDP: of a flow that is no connection yet
    u16 steered;     // service of a flow that belongs to another node
    bool opening;    // opens a connection
    u32 service;     // that it is for, once known
};

INLINE bool plain_transport(struct xdp_md *ctx, void *l4, u16 l4_length, struct plain_packet *p)
{
    struct tcphdr *tcp = l4;
    struct udphdr *udp = l4;

    if (p->protocol == IPPROTO_TCP) {
        u8 control;

        if (PAST_END(ctx, tcp) || l4_length < sizeof(*tcp))
            return false;
        control = ((u8 *)tcp)[13] & (TCP_CONTROL | TCP_ACK);
        p->first = control == TCP_SYN;
        p->control = !p->first && (control & TCP_CONTROL);
    } else if (p->protocol != IPPROTO_UDP || PAST_END(ctx, udp) || l4_length < sizeof(*udp)) {
        return false;
    }
    __builtin_memcpy(&p->ports, l4, 4);
    return true;
}

INLINE __be16 plain_source_port(const struct plain_packet *p)
{
    return ((const __be16 *)&p->ports)[0];
}

INLINE __be16 plain_destination_port(const struct plain_packet *p)
{
    return ((const __be16 *)&p->ports)[1];
}

INLINE bool plain_ipv4(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct iphdr *ip = packet_at(ctx, ETHERNET_BYTES);

    if (PAST_END(ctx, ip) || *(u8 *)ip != 0x45)
        return false;
    if (ip->frag_off & bpf_htons(IPV4_OFFSET | IPV4_MORE_FRAGMENTS))
        return false;
    p->l3_length = bpf_ntohs(ip->tot_len);
    p->protocol = ip->protocol;
    if (ETHERNET_BYTES + p->l3_length > frame_bytes(ctx) || p->l3_length < sizeof(*ip))
        return false;
    if (!plain_transport(ctx, ip + 1, p->l3_length - sizeof(*ip), p))
        return false;
    p->claim = hash_endpoint4(ip->daddr, plain_destination_port(p), p->protocol);
    p->hash = hash_flow4(s, ip->saddr, ip->daddr, p->ports, p->protocol);
    return true;
}

INLINE bool plain_ipv6(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct ipv6hdr *ip = packet_at(ctx, ETHERNET_BYTES);
    __be32 *source = (__be32 *)&ip->saddr, *destination = (__be32 *)&ip->daddr;
    u32 total;

    if (PAST_END(ctx, ip) || (*(u8 *)ip >> 4) != 6)
        return false;
    total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
    if (ETHERNET_BYTES + total > frame_bytes(ctx))
        return false;
    p->l3_length = total;
    p->protocol = ip->nexthdr;
    p->v6 = true;
    p->prefix = pair(destination[0], destination[1]);
    if (is_mapped(source) || is_mapped(destination))
        return false;
    if (!plain_transport(ctx, ip + 1, p->l3_length - sizeof(*ip), p))
        return false;
    p->claim = hash_endpoint(destination, plain_destination_port(p), p->protocol);
    p->hash = hash_flow6(s, source, destination, p->ports, p->protocol);
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

INLINE bool plain_key(struct xdp_md *ctx, const struct plain_packet *p, struct flow_key *key)
{
    struct iphdr *ip4 = packet_at(ctx, ETHERNET_BYTES);
    struct ipv6hdr *ip6 = packet_at(ctx, ETHERNET_BYTES);

    __builtin_memcpy(&key->source_port, &p->ports, 4);
    key->protocol = p->protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
    if (p->v6) {
        if (PAST_END(ctx, ip6))
            return false;
        copy_address(key->source, (__be32 *)&ip6->saddr);
        copy_address(key->destination, (__be32 *)&ip6->daddr);
        return true;
    }
    if (PAST_END(ctx, ip4))
        return false;
    set_mapped(key->source, ip4->saddr);
    set_mapped(key->destination, ip4->daddr);
    return true;
}

INLINE bool plain_destination(struct xdp_md *ctx, const struct plain_packet *p, struct endpoint *to)
{
    struct iphdr *ip4 = packet_at(ctx, ETHERNET_BYTES);
    struct ipv6hdr *ip6 = packet_at(ctx, ETHERNET_BYTES);

    to->port = plain_destination_port(p);
    to->protocol = p->protocol;
    to->pad = 0;
    if (p->v6) {
        if (PAST_END(ctx, ip6))
            return false;
        copy_address(to->address, (__be32 *)&ip6->daddr);
        return true;
    }
    if (PAST_END(ctx, ip4))
        return false;
    set_mapped(to->address, ip4->daddr);
    return true;
}

// The service a plain packet is for if that is fresh in memory, else 0.
INLINE u32 recall_service(const struct settings *s, const struct plain_packet *p)
{
    struct known_service *known = known_service(p->claim);
    u32 port_protocol = plain_destination_port(p) | (u32)p->protocol << 16;

    return known && is_known(known, s, p->claim, p->prefix, port_protocol) ? known->service : 0;
}

// The same, asked anew.
INLINE u32 plain_service(struct xdp_md *ctx, const struct settings *s, const struct plain_packet *p)
{
    struct work *w = get_work();

    return w && plain_destination(ctx, p, &w->endpoint) ? match_endpoint(s, &w->endpoint, p->claim) : 0;
}

// Whether any service has the packet's destination, or any nat backend its source.
INLINE bool is_plain_claimed(struct xdp_md *ctx, const struct settings *s, const struct plain_packet *p)
{
    struct iphdr *ip4 = packet_at(ctx, ETHERNET_BYTES);
    struct ipv6hdr *ip6 = packet_at(ctx, ETHERNET_BYTES);
    bool nat = s->flags & SETTING_NAT;

    if (is_claimed(p->claim))
        return true;
    if (p->v6) {
        __be32 *source = (__be32 *)&ip6->saddr, *destination = (__be32 *)&ip6->daddr;

        if (PAST_END(ctx, ip6))
            return true;
        if (nat && is_claimed(hash_endpoint(source, plain_source_port(p), p->protocol)))
            return true;
        if (!(s->flags & SETTING_ANY_PORT))
            return false;
        return is_claimed(hash_endpoint(destination, 0, p->protocol)) ||
               (nat && is_claimed(hash_endpoint(source, 0, p->protocol)));
    }
    if (PAST_END(ctx, ip4))
        return true;
    if (nat && is_claimed(hash_endpoint4(ip4->saddr, plain_source_port(p), p->protocol)))
        return true;
    if (!(s->flags & SETTING_ANY_PORT))
        return false;
    return is_claimed(hash_endpoint4(ip4->daddr, 0, p->protocol)) ||
           (nat && is_claimed(hash_endpoint4(ip4->saddr, 0, p->protocol)));
}
