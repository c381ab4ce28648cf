// SPDX-License-Identifier: GPL-2.0-only
//
// ICMP errors about balanced connections. What they quote is a packet against the client's direction, so its reverse is
// the flow to look for: errors from the client's side go to the backend, errors about answers (from the backend's
// side, `nat`) to the client. For `nat` the quoted headers are translated, too.

#include "return_flow.h"
#include "translate_packet.h"
#include "hold_lease.h"

INLINE bool quote_ipv4(struct xdp_md *ctx, struct work *w, u32 offset)
{
    struct iphdr *ip = packet_at(ctx, offset & L4_OFFSET_MASK);

    if (PAST_END(ctx, ip) || ip->version != 4 || ip->ihl < 5 || (ip->frag_off & bpf_htons(IPV4_OFFSET)))
        return false;
    set_mapped(w->key.source, ip->daddr);
    set_mapped(w->key.destination, ip->saddr);
    w->protocol = ip->protocol;
    w->inner_l4 = offset + ip->ihl * 4;
    return true;
}

INLINE bool quote_ipv6(struct xdp_md *ctx, struct work *w, u32 offset)
{
    struct ipv6hdr *ip = packet_at(ctx, offset & L4_OFFSET_MASK);

    if (PAST_END(ctx, ip) || ip->version != 6)
        return false;
    __builtin_memcpy(w->key.source, &ip->daddr, 16);
    __builtin_memcpy(w->key.destination, &ip->saddr, 16);
    w->protocol = ip->nexthdr;
    w->inner_l4 = offset + sizeof(*ip);
    return true;
}

// The flow that the quoted packet answers, into w->key.
INLINE bool parse_quote(struct xdp_md *ctx, struct work *w)
{
    u32 offset = w->l4 + sizeof(struct icmphdr);
    __be16 *ports;

    w->inner_l3 = offset;
    if (!(w->flags & WORK_V6 ? quote_ipv6(ctx, w, offset) : quote_ipv4(ctx, w, offset)))
        return false;
    if (w->protocol != IPPROTO_TCP && w->protocol != IPPROTO_UDP)
        return false;
    ports = packet_at(ctx, w->inner_l4 & L4_OFFSET_MASK);
    // What follows the IP packet in the frame is padding, not a quote.
    if ((void *)(ports + 2) > packet_end(ctx) || w->inner_l4 + 2 * sizeof(*ports) > w->l3 + w->l3_length)
        return false;
    w->key.source_port = ports[1];
    w->key.destination_port = ports[0];
    w->key.protocol = w->protocol;
    w->tcp_flags = 0;
    w->payload = 0;
    w->flags |= WORK_ICMP_ERROR;
    return true;
}

// An error about the outer header of a tunnel, if what was inside is quoted, too. It is for the gateway itself.
INLINE void blame_tunnel(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    bool v6 = w->protocol == IPPROTO_IPV6;
    __be32 outer[4];
    struct target *t;
    u32 id;

    if ((!v6 && w->protocol != IPPROTO_IPIP) || !is_unreachable(ctx, w))
        return;
    copy_address(outer, w->key.source);
    if (!(v6 ? quote_ipv6(ctx, w, w->inner_l4) : quote_ipv4(ctx, w, w->inner_l4)))
        return;
    if (w->protocol != IPPROTO_TCP && w->protocol != IPPROTO_UDP)
        return;
    id = quoted_target(ctx, s, w);
    t = targets.lookup(&id);
    if (!t || !id || !same_address(t->address, outer))
        return;
    w->target = id;
    count_unreachable(w);
}

INLINE struct connection *quoted_connection(struct work *w)
{
    struct connection *c;

    set_connection_key(w);
    c = connections.lookup(&w->connection);
    return c ? c : half_open.lookup(&w->connection);
}

INLINE int deliver_to_node(struct xdp_md *ctx, struct work *w, const struct settings *s, struct connection *c)
{
    u32 node = c ? c->owner : 0;

    if (!node || !is_member(node))
        node = steering_node(s, w, w->key.source, w->key.source_port);
    if ((s->flags & SETTING_STEERING) && belongs_elsewhere(s, w, node))
        return go(ctx, w, STEP_STEER);
    return leave(ctx, w, XDP_PASS, REASON_PASS_LOCAL);
}

INLINE int deliver_error(struct xdp_md *ctx, struct work *w, const struct settings *s, const struct service *service)
{
    struct connection *c = quoted_connection(w);

    if (service->method == METHOD_LOCAL)
        return deliver_to_node(ctx, w, s, c);
    if (c)
        w->target = c->target;
    else if (!(service->flags & SERVICE_REMEMBER_NEW))
        w->target = choose_target(s, w, service, false);
    if (!w->target)
        return leave(ctx, w, XDP_DROP, REASON_DROP_ICMP_UNMATCHED);
    return go(ctx, w, service->method == METHOD_NAT ? STEP_TRANSLATE_ICMP : STEP_FORWARD);
}

INLINE int step_error(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    u32 service_id, reason;
    struct service *service;

    if (!parse_quote(ctx, w)) {
        blame_tunnel(ctx, w, s);
        return leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
    }
    w->hash = hash_key(s, &w->key);
    service_id = match_service(s, w, w->key.destination, w->key.destination_port);
    if (!service_id && (s->flags & SETTING_NAT) && return_flow(s, w) == GO_ON) {
        w->flags |= WORK_RETURN;
        if (is_unreachable(ctx, w))
            count_unreachable(w);
        return go(ctx, w, STEP_TRANSLATE_ICMP);
    }
    if (!service_id && (s->flags & SETTING_ROUTED)) {
        service_id = match_routed(w, &reason);
        w->flags |= WORK_ROUTED;
    }
    service = service_id ? service_table.lookup(&service_id) : 0;
    if (!service)
        return leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
    w->service = service_id;
    w->target = 0;
    return deliver_error(ctx, w, s, service);
}

INLINE int step_echo(struct xdp_md *ctx, struct work *w)
{
    if (!is_vip(w, w->key.destination))
        return leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
    if (!holds(w))
        return leave(ctx, w, XDP_DROP, REASON_DROP_LEASE_EXPIRED);
    w->answer = ANSWER_ECHO;
    return go(ctx, w, STEP_ANSWER);
}

INLINE int step_icmp(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    struct icmphdr *icmp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);
    u8 type;

    if (w->flags & (WORK_FRAGMENT_FIRST | WORK_FRAGMENT_LATER))
        return leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
    if (w->payload < sizeof(*icmp) || PAST_END(ctx, icmp))
        return leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
    type = icmp->type;
    if (w->flags & WORK_V6) {
        if (type == ICMPV6_ECHO_REQUEST)
            return step_echo(ctx, w);
        if (type == 135)
            return step_solicitation(ctx, w);
        if (type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB)
            return step_error(ctx, w, s);
    } else {
        if (type == ICMP_ECHO)
            return step_echo(ctx, w);
        if (type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB)
            return step_error(ctx, w, s);
    }
    return leave(ctx, w, XDP_PASS, REASON_PASS_ICMP);
}

// Translates what is quoted: `r` tells addresses and ports; returns the change to the sum over the ICMP message.
INLINE bool rewrite_quote_network(struct xdp_md *ctx, u32 l3, bool v6, const struct rewrite *r, u64 *change)
{
    *change += address_change(r);
    if (v6)
        return rewrite_ipv6(ctx, l3, r, false);
    struct iphdr *ip = packet_at(ctx, l3);

    if (PAST_END(ctx, ip))
        return false;
    *change += (u16)~ip->check;
    if (!rewrite_ipv4(ctx, l3, r, false))
        return false;
    *change += ip->check;
    return true;
}

// The quoted checksum, if it was quoted, at `offset`.
INLINE void rewrite_quote_check(struct xdp_md *ctx, const struct work *w, u32 offset, const struct rewrite *r,
                                u64 *change)
{
    __sum16 *check = packet_at(ctx, offset & L4_OFFSET_MASK);
    bool udp = w->protocol == IPPROTO_UDP;

    // What follows the IP packet in the frame is padding, not a checksum.
    if (PAST_END(ctx, check) || offset + sizeof(*check) > w->l3 + w->l3_length || (udp && !*check))
        return;
    *change += (u16)~*check;
    *check = changed_sum(*check, address_change(r) + port_change(r));
    if (udp && !*check)
        *check = 0xffff;
    *change += *check;
}

INLINE bool rewrite_quote_transport(struct xdp_md *ctx, const struct work *w, const struct rewrite *r, u64 *change)
{
    __be16 *ports = packet_at(ctx, w->inner_l4 & L4_OFFSET_MASK);

    if ((void *)(ports + 2) > packet_end(ctx))
        return false;
    if (r->source)
        ports[0] = r->to_port;
    else
        ports[1] = r->to_port;
    *change += port_change(r);
    rewrite_quote_check(ctx, w, w->inner_l4 + (w->protocol == IPPROTO_TCP ? 16 : 6), r, change);
    return true;
}

// The outer header: errors to the backend change their destination; errors to the client their source if the backend
// itself sent them (a router on the way keeps its own).
INLINE bool rewrite_outer(struct xdp_md *ctx, const struct work *w, struct rewrite *r, bool hop, u64 *change)
{
    u32 l3 = w->l3 & L3_OFFSET_MASK;
    bool v6 = w->flags & WORK_V6;
    struct iphdr *ip4 = packet_at(ctx, l3);
    struct ipv6hdr *ip6 = packet_at(ctx, l3);

    if (r->source) {
        __be32 source[4];

        if (v6) {
            if (PAST_END(ctx, ip6))
                return false;
            __builtin_memcpy(source, &ip6->saddr, 16);
        } else {
            if (PAST_END(ctx, ip4))
                return false;
            set_mapped(source, ip4->saddr);
        }
        if (!same_address(source, r->from))
            copy_address(r->from, source), copy_address(r->to, source);
    }
    if (v6)
        *change += address_change(r);
    return rewrite_network(ctx, l3, v6, r, hop);
}

INLINE bool rewrite_error(struct xdp_md *ctx, struct work *w, struct rewrite *r, bool hop)
{
    struct rewrite quoted = *r;
    struct icmphdr *icmp;
    u64 change = 0;

    quoted.source = !r->source;
    if (!rewrite_quote_network(ctx, w->inner_l3 & L4_OFFSET_MASK, w->flags & WORK_V6, &quoted, &change))
        return false;
    if (!rewrite_quote_transport(ctx, w, &quoted, &change) || !rewrite_outer(ctx, w, r, hop, &change))
        return false;
    icmp = packet_at(ctx, w->l4 & L4_OFFSET_MASK);
    if (PAST_END(ctx, icmp))
        return false;
    icmp->checksum = changed_sum(icmp->checksum, change);
    return true;
}

INLINE int step_translate_icmp(struct xdp_md *ctx, struct work *w)
{
    u32 id = w->target, service_id = w->service, refusal;
    struct service *service = service_table.lookup(&service_id);
    struct target *t = targets.lookup(&id);
    struct next_hop hop = {};
    struct rewrite r = {};
    bool to_kernel;

    if (!t || !service)
        return leave(ctx, w, XDP_DROP, REASON_DROP_INTERNAL);
    plan_rewrite(w, t, service, &r);
    if (!!(w->flags & WORK_V6) == is_mapped(r.to))
        return leave(ctx, w, XDP_DROP, REASON_DROP_FAMILY);
    if (hops_left(ctx, w) <= 1)
        return leave(ctx, w, XDP_DROP, REASON_DROP_TTL);
    refusal = translated_hop(ctx, w, t, &r, &hop);
    to_kernel = refusal == REASON_PASS_NEIGHBOUR_UNKNOWN;
    if (refusal && !to_kernel)
        return leave(ctx, w, XDP_DROP, refusal);
    if (!rewrite_error(ctx, w, &r, !to_kernel))
        return leave(ctx, w, XDP_DROP, REASON_DROP_INTERNAL);
    return send_translated(ctx, w, &hop, to_kernel, REASON_SENT_ICMP_ERROR);
}
