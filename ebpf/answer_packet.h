// SPDX-License-Identifier: GPL-2.0-only
//
// Answers in place of the backend: echo replies, "too big" and "time exceeded" (RFC 792, RFC 4443), resets (RFC 9293).
// Each goes back where the packet came from, is never larger than it, and none answers an ICMP error.

#include "rewrite_packet.h"

// How much of the packet an ICMP error quotes: IP header and transport header where there is room for them.
#define QUOTE4_BYTES 28
#define QUOTE6_BYTES 56
#define LINK_BYTES_MAX 22

struct icmp_error4 {
    struct iphdr ip;
    struct icmphdr icmp;
};

struct icmp_error6 {
    struct ipv6hdr ip;
    struct icmp6hdr icmp;
};

struct link_header {
    u8 mac[6];
    u8 source_mac[6];
    __be16 rest[5];  // tags and protocol
};

// Reads the link header, tags included, and turns it round.
INLINE bool take_link(struct xdp_md *ctx, u32 l3, struct link_header *link)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);
    __be16 *words = packet_at(ctx, 0);

    if (PAST_END(ctx, ethernet))
        return false;
    copy_mac(link->mac, ethernet->h_source);
    copy_mac(link->source_mac, ethernet->h_dest);
    link->rest[0] = ethernet->h_proto;
    link->rest[1] = link->rest[2] = link->rest[3] = link->rest[4] = 0;
    if (l3 >= 18) {
        if ((void *)(words + 9) > packet_end(ctx))
            return false;
        link->rest[1] = words[7];
        link->rest[2] = words[8];
    }
    if (l3 >= 22) {
        if ((void *)(words + 11) > packet_end(ctx))
            return false;
        link->rest[3] = words[9];
        link->rest[4] = words[10];
    }
    return true;
}

INLINE bool give_link(struct xdp_md *ctx, u32 l3, const struct link_header *link)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);
    __be16 *words = packet_at(ctx, 0);

    if (PAST_END(ctx, ethernet))
        return false;
    copy_mac(ethernet->h_dest, link->mac);
    copy_mac(ethernet->h_source, link->source_mac);
    ethernet->h_proto = link->rest[0];
    if (l3 >= 18) {
        if ((void *)(words + 9) > packet_end(ctx))
            return false;
        words[7] = link->rest[1];
        words[8] = link->rest[2];
    }
    if (l3 >= 22) {
        if ((void *)(words + 11) > packet_end(ctx))
            return false;
        words[9] = link->rest[3];
        words[10] = link->rest[4];
    }
    return true;
}

INLINE void swap_words(__be32 *a, __be32 *b)
{
    __be32 kept = *a;

    *a = *b;
    *b = kept;
}

INLINE bool echo_ipv4(struct xdp_md *ctx, const struct work *w)
{
    struct iphdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    struct icmphdr *icmp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);
    u16 old_hops;

    if (PAST_END(ctx, ip) || PAST_END(ctx, icmp))
        return false;
    swap_words(&ip->saddr, &ip->daddr);
    old_hops = bpf_htons(ip->ttl << 8);
    ip->ttl = TUNNEL_HOPS;
    ip->check = ~fold_sum((u64)(u16)~ip->check + (u16)~old_hops + bpf_htons(TUNNEL_HOPS << 8));
    icmp->type = ICMP_ECHOREPLY;
    icmp->checksum = ~fold_sum((u64)(u16)~icmp->checksum + (u16)~bpf_htons(ICMP_ECHO << 8));
    return true;
}

INLINE bool echo_ipv6(struct xdp_md *ctx, const struct work *w)
{
    struct ipv6hdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    struct icmp6hdr *icmp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);
    u64 change = (u64)(u16)~bpf_htons(ICMPV6_ECHO_REQUEST << 8) + bpf_htons(ICMPV6_ECHO_REPLY << 8);

    if (PAST_END(ctx, ip) || PAST_END(ctx, icmp))
        return false;
#pragma unroll
    for (int i = 0; i < 4; i++)
        swap_words((__be32 *)&ip->saddr + i, (__be32 *)&ip->daddr + i);
    ip->hop_limit = TUNNEL_HOPS;
    icmp->icmp6_type = ICMPV6_ECHO_REPLY;
    icmp->icmp6_cksum = ~fold_sum((u64)(u16)~icmp->icmp6_cksum + change);
    return true;
}

// Cuts the frame after `quote` bytes of the packet and makes room for the error's headers in front of them.
INLINE bool make_error_frame(struct xdp_md *ctx, struct work *w, u16 quote, u16 headers)
{
    u32 l3 = w->l3 & L3_OFFSET_MASK;
    int excess = (int)w->length - (int)(l3 + quote);
    struct link_header link;

    if (!take_link(ctx, l3, &link) || excess < 0)
        return false;
    if (excess && bpf_xdp_adjust_tail(ctx, -excess))
        return false;
    return !bpf_xdp_adjust_head(ctx, -(int)headers) && give_link(ctx, l3, &link);
}

INLINE u64 sum_words(const void *data, u32 bytes)
{
    return (u32)bpf_csum_diff(0, 0, (__be32 *)data, bytes, 0);
}

INLINE bool error_ipv4(struct xdp_md *ctx, struct work *w)
{
    struct icmp_error4 *error;
    void *quote;

    if (!make_error_frame(ctx, w, QUOTE4_BYTES, sizeof(*error)))
        return false;
    error = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    quote = error + 1;
    if (quote + QUOTE4_BYTES > packet_end(ctx))
        return false;
    *(__be16 *)&error->ip = bpf_htons(0x4500);
    error->ip.tot_len = bpf_htons(sizeof(*error) + QUOTE4_BYTES);
    error->ip.id = 0;
    error->ip.frag_off = 0;
    error->ip.ttl = TUNNEL_HOPS;
    error->ip.protocol = IPPROTO_ICMP;
    error->ip.saddr = w->key.destination[3];
    error->ip.daddr = w->key.source[3];
    error->ip.check = 0;
    error->ip.check = ~fold_sum(sum_words(&error->ip, sizeof(error->ip)));
    error->icmp.type = w->answer == ANSWER_TOO_BIG ? ICMP_DEST_UNREACH : ICMP_TIME_EXCEEDED;
    error->icmp.code = w->answer == ANSWER_TOO_BIG ? ICMP_FRAG_NEEDED : ICMP_EXC_TTL;
    error->icmp.un.gateway = w->answer == ANSWER_TOO_BIG ? bpf_htonl(w->answer_mtu) : 0;
    error->icmp.checksum = 0;
    error->icmp.checksum = ~fold_sum(sum_words(&error->icmp, sizeof(error->icmp) + QUOTE4_BYTES));
    return true;
}

INLINE bool error_ipv6(struct xdp_md *ctx, struct work *w)
{
    struct icmp_error6 *error;
    void *quote;
    u64 sum;

    if (!make_error_frame(ctx, w, QUOTE6_BYTES, sizeof(*error)))
        return false;
    error = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    quote = error + 1;
    if (quote + QUOTE6_BYTES > packet_end(ctx))
        return false;
    *(__be32 *)&error->ip = bpf_htonl(0x60000000);
    error->ip.payload_len = bpf_htons(sizeof(error->icmp) + QUOTE6_BYTES);
    error->ip.nexthdr = IPPROTO_ICMPV6;
    error->ip.hop_limit = TUNNEL_HOPS;
    copy_address((__be32 *)&error->ip.saddr, w->key.destination);
    copy_address((__be32 *)&error->ip.daddr, w->key.source);
    error->icmp.icmp6_type = w->answer == ANSWER_TOO_BIG ? ICMPV6_PKT_TOOBIG : ICMPV6_TIME_EXCEED;
    error->icmp.icmp6_code = 0;
    error->icmp.icmp6_mtu = w->answer == ANSWER_TOO_BIG ? bpf_htonl(w->answer_mtu) : 0;
    error->icmp.icmp6_cksum = 0;
    sum = sum_words(&error->ip.saddr, 32) + error->ip.payload_len + bpf_htons(IPPROTO_ICMPV6);
    error->icmp.icmp6_cksum = ~fold_sum(sum + sum_words(&error->icmp, sizeof(error->icmp) + QUOTE6_BYTES));
    return true;
}

INLINE void turn_tcp(struct tcphdr *tcp, u64 pseudo)
{
    __be16 port = tcp->source;

    tcp->source = tcp->dest;
    tcp->dest = port;
    tcp->seq = tcp->ack_seq;
    tcp->ack_seq = 0;
    *(__be16 *)((u8 *)tcp + 12) = bpf_htons(sizeof(*tcp) / 4 << 12 | TCP_RST);
    tcp->window = 0;
    tcp->urg_ptr = 0;
    tcp->check = 0;
    tcp->check = ~fold_sum(sum_words(tcp, sizeof(*tcp)) + pseudo);
}

INLINE bool reset_ipv4(struct xdp_md *ctx, struct work *w)
{
    struct iphdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    struct tcphdr *tcp = (void *)(ip + 1);

    if (PAST_END(ctx, tcp))
        return false;
    *(__be16 *)ip = bpf_htons(0x4500);
    ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*tcp));
    ip->id = 0;
    ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
    ip->ttl = TUNNEL_HOPS;
    swap_words(&ip->saddr, &ip->daddr);
    ip->check = 0;
    ip->check = ~fold_sum(sum_words(ip, sizeof(*ip)));
    turn_tcp(tcp, sum_words(&ip->saddr, 8) + bpf_htons(sizeof(*tcp)) + bpf_htons(IPPROTO_TCP));
    return true;
}

INLINE bool reset_ipv6(struct xdp_md *ctx, struct work *w)
{
    struct ipv6hdr *ip = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    struct tcphdr *tcp = (void *)(ip + 1);

    if (PAST_END(ctx, tcp))
        return false;
    *(__be32 *)ip = bpf_htonl(0x60000000);
    ip->payload_len = bpf_htons(sizeof(*tcp));
    ip->hop_limit = TUNNEL_HOPS;
#pragma unroll
    for (int i = 0; i < 4; i++)
        swap_words((__be32 *)&ip->saddr + i, (__be32 *)&ip->daddr + i);
    turn_tcp(tcp, sum_words(&ip->saddr, 32) + bpf_htons(sizeof(*tcp)) + bpf_htons(IPPROTO_TCP));
    return true;
}

// A reset needs the sequence number the other side expects: the packet's acknowledgement.
INLINE bool make_reset(struct xdp_md *ctx, struct work *w)
{
    bool v6 = w->flags & WORK_V6;
    u16 header = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
    u32 l3 = w->l3 & L3_OFFSET_MASK;
    struct link_header link;
    int excess = (int)w->length - (int)(l3 + header + sizeof(struct tcphdr));

    if ((w->tcp_flags & (TCP_ACK | TCP_RST)) != TCP_ACK || (w->flags & (WORK_FRAGMENT_FIRST | WORK_FRAGMENT_LATER)))
        return false;
    if (w->l4 != w->l3 + header || excess < 0 || !take_link(ctx, l3, &link))
        return false;
    if (excess && bpf_xdp_adjust_tail(ctx, -excess))
        return false;
    return give_link(ctx, l3, &link) && (v6 ? reset_ipv6(ctx, w) : reset_ipv4(ctx, w));
}

INLINE bool make_echo(struct xdp_md *ctx, struct work *w)
{
    struct link_header link;
    u32 l3 = w->l3 & L3_OFFSET_MASK;

    if (!take_link(ctx, l3, &link) || !give_link(ctx, l3, &link))
        return false;
    return w->flags & WORK_V6 ? echo_ipv6(ctx, w) : echo_ipv4(ctx, w);
}

INLINE bool make_error(struct xdp_md *ctx, struct work *w)
{
    return w->flags & WORK_V6 ? error_ipv6(ctx, w) : error_ipv4(ctx, w);
}

INLINE int step_answer(struct xdp_md *ctx, struct work *w)
{
    if (w->answer == ANSWER_ECHO)
        return make_echo(ctx, w) ? leave(ctx, w, XDP_TX, REASON_SENT_ECHO)
                                 : leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
    if (w->answer == ANSWER_RESET)
        return make_reset(ctx, w) ? leave(ctx, w, XDP_TX, REASON_SENT_RESET)
                                  : leave(ctx, w, XDP_DROP, REASON_DROP_TARGET_DEAD);
    if (w->answer == ANSWER_TOO_BIG)
        return make_error(ctx, w) ? leave(ctx, w, XDP_TX, REASON_SENT_TOO_BIG)
                                  : leave(ctx, w, XDP_DROP, REASON_DROP_TOO_BIG);
    return make_error(ctx, w) ? leave(ctx, w, XDP_TX, REASON_SENT_TIME_EXCEEDED)
                              : leave(ctx, w, XDP_DROP, REASON_DROP_TTL);
}
