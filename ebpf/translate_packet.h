// SPDX-License-Identifier: GPL-2.0-only
//
// `nat`: rewrites the destination on the way to the backend and the source on the way back, with time to live and
// incremental checksums (RFC 1624). The next hop is asked first: a packet the kernel has to send (next hop not
// resolved yet) goes to it translated, its time to live still whole.

#include "parse_packet.h"
#include "rewrite_packet.h"

struct rewrite {
    __be32 from[4];
    __be32 to[4];
    __be16 from_port;
    __be16 to_port;
    bool source;  // the source is rewritten, else the destination
};

// The sum that turns a checksum over `from` into one over `to`.
INLINE u64 address_change(const struct rewrite *r)
{
    u64 sum = 0;

#pragma unroll
    for (int i = 0; i < 4; i++)
        sum += (u64)(u32)~r->from[i] + r->to[i];
    return sum;
}

INLINE u64 port_change(const struct rewrite *r)
{
    return (u64)(u16)~r->from_port + r->to_port;
}

INLINE __sum16 changed_sum(__sum16 check, u64 change)
{
    return ~fold_sum((u64)(u16)~check + change);
}

INLINE bool rewrite_ipv4(struct xdp_md *ctx, u32 l3, const struct rewrite *r, bool hop)
{
    struct iphdr *ip = packet_at(ctx, l3);
    u64 change = (u64)(u32)~r->from[3] + r->to[3];

    if (PAST_END(ctx, ip))
        return false;
    if (hop) {
        ip->ttl--;
        change += (u16)~bpf_htons(0x0100);
    }
    ip->check = changed_sum(ip->check, change);
    if (r->source)
        ip->saddr = r->to[3];
    else
        ip->daddr = r->to[3];
    return true;
}

INLINE bool rewrite_ipv6(struct xdp_md *ctx, u32 l3, const struct rewrite *r, bool hop)
{
    struct ipv6hdr *ip = packet_at(ctx, l3);

    if (PAST_END(ctx, ip))
        return false;
    if (hop)
        ip->hop_limit--;
    copy_address(r->source ? (__be32 *)&ip->saddr : (__be32 *)&ip->daddr, r->to);
    return true;
}

INLINE bool rewrite_network(struct xdp_md *ctx, u32 l3, bool v6, const struct rewrite *r, bool hop)
{
    return v6 ? rewrite_ipv6(ctx, l3, r, hop) : rewrite_ipv4(ctx, l3, r, hop);
}

INLINE bool rewrite_tcp(struct xdp_md *ctx, u32 l4, const struct rewrite *r)
{
    struct tcphdr *tcp = packet_at(ctx, l4);

    if (PAST_END(ctx, tcp))
        return false;
    tcp->check = changed_sum(tcp->check, address_change(r) + port_change(r));
    if (r->source)
        tcp->source = r->to_port;
    else
        tcp->dest = r->to_port;
    return true;
}

INLINE bool rewrite_udp(struct xdp_md *ctx, u32 l4, const struct rewrite *r)
{
    struct udphdr *udp = packet_at(ctx, l4);

    if (PAST_END(ctx, udp))
        return false;
    if (udp->check) {
        udp->check = changed_sum(udp->check, address_change(r) + port_change(r));
        if (!udp->check)
            udp->check = 0xffff;
    }
    if (r->source)
        udp->source = r->to_port;
    else
        udp->dest = r->to_port;
    return true;
}

INLINE bool rewrite_transport(struct xdp_md *ctx, const struct work *w, const struct rewrite *r)
{
    u32 l4 = w->l4 & L4_OFFSET_MASK;

    if (w->flags & WORK_FRAGMENT_LATER)
        return true;
    return w->protocol == IPPROTO_TCP ? rewrite_tcp(ctx, l4, r) : rewrite_udp(ctx, l4, r);
}

INLINE void plan_rewrite(const struct work *w, const struct target *t, const struct service *service,
                         struct rewrite *r)
{
    r->source = w->flags & WORK_RETURN;
    if (r->source) {
        copy_address(r->from, w->key.source);
        copy_address(r->to, w->connection.destination);
        r->from_port = w->key.source_port;
        r->to_port = w->connection.destination_port;
    } else {
        copy_address(r->from, w->key.destination);
        copy_address(r->to, t->address);
        r->from_port = w->key.destination_port;
        r->to_port = t->port ? t->port : w->key.destination_port;
    }
}

// Sets `hop`; 0 to send, or the reason to leave with. PASS_NEIGHBOUR_UNKNOWN: translate and let the kernel send.
INLINE u32 translated_hop(struct xdp_md *ctx, struct work *w, const struct target *t, const struct rewrite *r,
                          struct next_hop *hop)
{
    int answer;

    if (!(w->flags & WORK_RETURN) && (t->flags & TARGET_RESOLVED)) {
        hop_of_target(hop, t);
        return hop->mtu && w->l3_length > hop->mtu ? REASON_DROP_TOO_BIG : 0;
    }
    if (w->flags & WORK_RETURN)
        answer = ask_route(ctx, w, r->to, w->key.destination, w->l3_length, hop);
    else
        answer = ask_route(ctx, w, w->key.source, r->to, w->l3_length, hop);
    if (answer == BPF_FIB_LKUP_RET_SUCCESS)
        return 0;
    if (answer == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return REASON_DROP_TOO_BIG;
    if (answer == BPF_FIB_LKUP_RET_BLACKHOLE || answer == BPF_FIB_LKUP_RET_UNREACHABLE ||
        answer == BPF_FIB_LKUP_RET_PROHIBIT)
        return REASON_DROP_NO_ROUTE;
    return REASON_PASS_NEIGHBOUR_UNKNOWN;
}

INLINE u8 hops_left(struct xdp_md *ctx, const struct work *w)
{
    u32 l3 = w->l3 & L3_OFFSET_MASK;
    struct iphdr *ip4 = packet_at(ctx, l3);
    struct ipv6hdr *ip6 = packet_at(ctx, l3);

    if (w->flags & WORK_V6)
        return PAST_END(ctx, ip6) ? 0 : ip6->hop_limit;
    return PAST_END(ctx, ip4) ? 0 : ip4->ttl;
}

INLINE int refuse_hops(struct xdp_md *ctx, struct work *w)
{
    if (w->flags & (WORK_RETURN | WORK_ICMP_ERROR | WORK_FRAGMENT_LATER))
        return leave(ctx, w, XDP_DROP, REASON_DROP_TTL);
    w->answer = ANSWER_TIME_EXCEEDED;
    return go(ctx, w, STEP_ANSWER);
}

// Too big for the way out. Without "don't fragment" the kernel fragments the translated packet.
INLINE u32 refuse_size(struct xdp_md *ctx, struct work *w, const struct next_hop *hop)
{
    if (may_tell_size(ctx, w)) {
        w->answer = ANSWER_TOO_BIG;
        w->answer_mtu = hop->mtu;
        return GO_ANSWER;
    }
    return w->flags & (WORK_ICMP_ERROR | WORK_V6) ? LEAVE : GO_ON;
}

INLINE int send_translated(struct xdp_md *ctx, struct work *w, const struct next_hop *hop, bool to_kernel, u32 reason)
{
    u32 failure;

    if (!(w->flags & WORK_DRY))
        count_target(w->target, w->length);
    if (to_kernel)
        return leave(ctx, w, XDP_PASS, REASON_PASS_NEIGHBOUR_UNKNOWN);
    failure = put_plain(ctx, w->l3, w->flags & WORK_V6, hop);
    if (failure)
        return leave(ctx, w, XDP_DROP, failure);
    return leave(ctx, w, send(ctx, hop), reason);
}

INLINE int step_translate(struct xdp_md *ctx, struct work *w)
{
    u32 id = w->target, service_id = w->service, refusal;
    struct service *service = service_table.lookup(&service_id);
    struct target *t = targets.lookup(&id);
    bool v6 = w->flags & WORK_V6, to_kernel;
    struct next_hop hop = {};
    struct rewrite r = {};

    if (!t || !service)
        return leave(ctx, w, XDP_DROP, REASON_DROP_INTERNAL);
    plan_rewrite(w, t, service, &r);
    if (v6 == is_mapped(r.to))
        return leave(ctx, w, XDP_DROP, REASON_DROP_FAMILY);
    if (hops_left(ctx, w) <= 1)
        return refuse_hops(ctx, w);
    refusal = translated_hop(ctx, w, t, &r, &hop);
    if (refusal == REASON_DROP_TOO_BIG) {
        u32 way = refuse_size(ctx, w, &hop);

        if (way == GO_ANSWER)
            return go(ctx, w, STEP_ANSWER);
        if (way == LEAVE)
            return leave(ctx, w, XDP_DROP, refusal);
        refusal = REASON_PASS_NEIGHBOUR_UNKNOWN;
    }
    to_kernel = refusal == REASON_PASS_NEIGHBOUR_UNKNOWN;
    if (refusal && !to_kernel)
        return leave(ctx, w, XDP_DROP, refusal);
    if (!rewrite_network(ctx, w->l3 & L3_OFFSET_MASK, v6, &r, !to_kernel) || !rewrite_transport(ctx, w, &r))
        return leave(ctx, w, XDP_DROP, REASON_DROP_INTERNAL);
    return send_translated(ctx, w, &hop, to_kernel, r.source ? REASON_SENT_RETURNED : REASON_SENT_FORWARDED);
}
