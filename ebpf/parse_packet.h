// SPDX-License-Identifier: GPL-2.0-only
//
// Bounds-checked headers to a flow key: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers,
// fragments, TCP and UDP. Lengths that contradict each other are dropped here (the kernel would drop them, too);
// what is cut short inside the transport header is dropped if it is for a VIP and passed on otherwise.

#include "count_verdict.h"
#include "hash_flow.h"

struct vlan_tag {
    __be16 tci;
    __be16 protocol;
};

struct fragment_header {
    u8 next;
    u8 reserved;
    __be16 offset;
    __be32 id;
};

struct extension_header {
    u8 next;
    u8 length;
};

#define IPV6_HEADER_FRAGMENT 44
#define IPV6_HEADER_AUTH 51

// The ethertype behind the tags; sets w->l3.
INLINE __be16 parse_link(struct xdp_md *ctx, struct work *w)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);
    struct vlan_tag *tag;
    __be16 protocol;
    u16 l3 = sizeof(*ethernet);

    if (PAST_END(ctx, ethernet))
        return 0;
    protocol = ethernet->h_proto;
    tag = (void *)(ethernet + 1);
#pragma unroll
    for (int i = 0; i < VLAN_TAGS_MAX; i++, tag++) {
        if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
            break;
        if (PAST_END(ctx, tag))
            return 0;
        protocol = tag->protocol;
        l3 += sizeof(*tag);
    }
    w->l3 = l3;
    return protocol;
}

INLINE void parse_fragment(struct work *w, u16 offset_units, bool more, __be32 id, u8 protocol)
{
    struct fragment_key *key = &w->fragment_key;

    if (!offset_units && !more)
        return;
    w->flags |= offset_units ? WORK_FRAGMENT_LATER : WORK_FRAGMENT_FIRST;
    copy_address(key->source, w->key.source);
    copy_address(key->destination, w->key.destination);
    key->id = id;
    key->protocol = protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

INLINE u32 parse_ipv4(struct xdp_md *ctx, struct work *w)
{
    struct iphdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    u16 header, total, fragment;

    if (PAST_END(ctx, ip))
        return REASON_DROP_MALFORMED_IPV4;
    header = ip->ihl * 4;
    total = bpf_ntohs(ip->tot_len);
    if (ip->version != 4 || header < sizeof(*ip) || total < header || w->l3 + total > w->length)
        return REASON_DROP_MALFORMED_IPV4;
    set_mapped(w->key.source, ip->saddr);
    set_mapped(w->key.destination, ip->daddr);
    w->protocol = ip->protocol;
    w->l4 = w->l3 + header;
    w->l3_length = total;
    w->payload = total - header;
    fragment = bpf_ntohs(ip->frag_off);
    parse_fragment(w, fragment & IPV4_OFFSET, fragment & IPV4_MORE_FRAGMENTS, ip->id, ip->protocol);
    return 0;
}

// Follows extension headers up to the transport header; the fragment header ends the walk for later fragments.
INLINE u32 parse_extensions(struct xdp_md *ctx, struct work *w, u8 next, u32 offset)
{
#pragma unroll
    for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
        struct extension_header *extension = packet_at(ctx, offset & L4_OFFSET_MASK);

        if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS) {
            if (PAST_END(ctx, extension))
                return REASON_DROP_MALFORMED_IPV6;
            offset += (extension->length + 1) * 8;
        } else if (next == IPV6_HEADER_AUTH) {
            if (PAST_END(ctx, extension))
                return REASON_DROP_MALFORMED_IPV6;
            offset += (extension->length + 2) * 4;
        } else if (next == IPV6_HEADER_FRAGMENT) {
            struct fragment_header *fragment = (void *)extension;
            u16 field;

            if (PAST_END(ctx, fragment))
                return REASON_DROP_MALFORMED_IPV6;
            field = bpf_ntohs(fragment->offset);
            parse_fragment(w, field >> 3, field & 1, fragment->id, fragment->next);
            offset += sizeof(*fragment);
        } else {
            break;
        }
        next = extension->next;
        if (offset > L4_OFFSET_MASK)
            return REASON_DROP_EXTENSION_HEADERS;
        if (w->flags & WORK_FRAGMENT_LATER)
            break;
    }
    w->protocol = next;
    w->l4 = offset;
    return 0;
}

INLINE u32 parse_ipv6(struct xdp_md *ctx, struct work *w)
{
    struct ipv6hdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    u32 total, reason;

    if (PAST_END(ctx, ip))
        return REASON_DROP_MALFORMED_IPV6;
    total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
    if (ip->version != 6 || w->l3 + total > w->length)
        return REASON_DROP_MALFORMED_IPV6;
    __builtin_memcpy(w->key.source, &ip->saddr, 16);
    __builtin_memcpy(w->key.destination, &ip->daddr, 16);
    w->flags |= WORK_V6;
    reason = parse_extensions(ctx, w, ip->nexthdr, w->l3 + sizeof(*ip));
    if (reason)
        return reason;
    if (w->l4 > w->l3 + total)
        return REASON_DROP_MALFORMED_IPV6;
    w->l3_length = total;
    w->payload = w->l3 + total - w->l4;
    return 0;
}

INLINE bool is_vip(struct work *w, const __be32 *address)
{
    struct address_entry *entry;

    copy_address(w->address.address, address);
    entry = addresses.lookup(&w->address);
    return entry && (entry->flags & ADDRESS_VIP);
}

INLINE bool parse_tcp(struct xdp_md *ctx, struct work *w)
{
    struct tcphdr *tcp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);
    u16 header;

    if (w->payload < sizeof(*tcp) || PAST_END(ctx, tcp))
        return false;
    header = tcp->doff * 4;
    w->key.source_port = tcp->source;
    w->key.destination_port = tcp->dest;
    w->tcp_flags = ((u8 *)tcp)[13];
    w->payload = w->payload > header ? w->payload - header : 0;
    return true;
}

INLINE bool parse_udp(struct xdp_md *ctx, struct work *w)
{
    struct udphdr *udp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);

    if (w->payload < sizeof(*udp) || PAST_END(ctx, udp))
        return false;
    w->key.source_port = udp->source;
    w->key.destination_port = udp->dest;
    w->payload -= sizeof(*udp);
    return true;
}

// Later fragments carry no ports: the first one left them here.
INLINE bool recall_fragment(struct work *w)
{
    struct fragment *first = fragments.lookup(&w->fragment_key);

    if (!first)
        return false;
    w->key.source_port = first->source_port;
    w->key.destination_port = first->destination_port;
    return true;
}

INLINE void remember_fragment(struct work *w)
{
    if (!(w->flags & WORK_FRAGMENT_FIRST) || (w->flags & WORK_DRY))
        return;
    w->fragment.source_port = w->key.source_port;
    w->fragment.destination_port = w->key.destination_port;
    w->fragment.seen_s = now_s();
    if (fragments.update(&w->fragment_key, &w->fragment))
        note(REASON_NOTE_TABLE_FULL, w->length);
}

// In the tables a mapped address is IPv4; an IPv6 packet that carries one is forged or lost.
INLINE bool is_mapped_ipv6(const struct work *w)
{
    return (w->flags & WORK_V6) && (is_mapped(w->key.source) || is_mapped(w->key.destination));
}

// Ports, TCP flags, hash; 0 or the reason to drop it if it is for a VIP.
INLINE u32 parse_transport(struct xdp_md *ctx, struct work *w)
{
    w->key.protocol = w->protocol;
    w->tcp_flags = 0;
    if (w->flags & WORK_FRAGMENT_LATER)
        return recall_fragment(w) ? 0 : REASON_DROP_FRAGMENT_UNKNOWN;
    if (w->protocol == IPPROTO_TCP ? parse_tcp(ctx, w) : parse_udp(ctx, w))
        return 0;
    return REASON_DROP_MALFORMED_TRANSPORT;
}
