// SPDX-License-Identifier: GPL-2.0-only
//
// The path of a packet, top to bottom. Each step is a program of its own (a tail call), because the functions of one
// program share 512 bytes of stack; what they hand on is struct work. Read the steps in order:
//
//   lb_entry      the short way, for packets of flows just seen; else
//   lb_parse      headers to a flow key; ARP, ICMP, peers' tunnels branch off
//   lb_connect    is it ours? which connection? which target?
//   lb_return     answers of nat backends
//   lb_forward    dsr and tunnel
//   lb_translate  nat
//   lb_icmp, lb_translate_icmp, lb_answer, lb_steer, lb_neighbour, lb_capture, lb_where

#include "fast_path.h"
#include "connect_flow.h"
#include "return_flow.h"
#include "forward_packet.h"
#include "translate_packet.h"
#include "translate_icmp.h"
#include "answer_packet.h"
#include "steer_packet.h"
#include "hold_lease.h"
#include "mirror_packet.h"

INLINE struct settings *get_settings(void)
{
    u32 zero = 0;

    return settings.lookup(&zero);
}

// True unless the frame is known to be for another host.
INLINE bool is_for_us(struct xdp_md *ctx)
{
    u32 ifindex = ctx->ingress_ifindex, slot = ifindex & (INTERFACE_COUNT_MAX - 1);
    struct interface_mac *own = interface_macs.lookup(&slot);
    struct ethhdr *ethernet = packet_at(ctx, 0);

    if (!own || own->ifindex != ifindex || PAST_END(ctx, ethernet) || (ethernet->h_dest[0] & 1))
        return true;
    return *(u32 *)ethernet->h_dest == *(u32 *)own->mac && *(u16 *)(ethernet->h_dest + 4) == *(u16 *)(own->mac + 4);
}

STEP(lb_entry)
{
    struct settings *s = get_settings();
    struct plain_packet p = {};
    int verdict = XDP_PASS;
    struct work *w;
    u32 id, way;

    if (!s)
        return XDP_PASS;
    way = is_for_us(ctx) ? take_short_way(ctx, s, &p, &id, &verdict) : GO_DROP;
    if (way == LEAVE)
        return verdict;
    w = get_work();
    if (!w)
        return XDP_PASS;
    begin_work(ctx, w, 0);
    if (way == GO_DROP)
        return leave(ctx, w, XDP_PASS, REASON_PASS_OTHER_HOST);
    if (way == GO_TRANSLATE && prepare_translation(ctx, w, &p, id) == GO_TRANSLATE)
        return go(ctx, w, STEP_TRANSLATE);
    begin_work(ctx, w, 0);
    return go(ctx, w, STEP_PARSE);
}

INLINE int drop_if_vip(struct xdp_md *ctx, struct work *w, u32 reason)
{
    if (is_vip(w, w->key.destination))
        return leave(ctx, w, XDP_DROP, reason);
    return leave(ctx, w, XDP_PASS, REASON_PASS_NOT_OURS);
}

INLINE int parse_step(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    __be16 ethertype = parse_link(ctx, w);
    u32 reason;

    w->key.pad[0] = w->key.pad[1] = w->key.pad[2] = 0;
    if (ethertype == bpf_htons(ETH_P_ARP))
        return go(ctx, w, STEP_NEIGHBOUR);
    if (ethertype == bpf_htons(ETH_P_IP))
        reason = parse_ipv4(ctx, w);
    else if (ethertype == bpf_htons(ETH_P_IPV6))
        reason = parse_ipv6(ctx, w);
    else
        return leave(ctx, w, XDP_PASS, REASON_PASS_NOT_IP);
    if (reason)
        return leave(ctx, w, XDP_DROP, reason);
    if (is_mapped_ipv6(w))
        return leave(ctx, w, XDP_PASS, REASON_PASS_NOT_OURS);
    if ((s->flags & SETTING_STEERING) && is_from_peer(ctx))
        w->flags |= WORK_FROM_PEER;
    if (w->protocol == (w->flags & WORK_V6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
        return go(ctx, w, STEP_ICMP);
    if ((s->flags & SETTING_STEERING) && unwrap_from_peer(ctx, w, s) == LEAVE) {
        begin_work(ctx, w, w->flags & (WORK_FROM_PEER | WORK_UNWRAPPED | WORK_DRY));
        return go(ctx, w, STEP_PARSE);
    }
    if (w->protocol != IPPROTO_TCP && w->protocol != IPPROTO_UDP)
        return leave(ctx, w, XDP_PASS, REASON_PASS_PROTOCOL);
    reason = parse_transport(ctx, w);
    if (reason)
        return drop_if_vip(ctx, w, reason);
    w->hash = hash_key(s, &w->key);
    return go(ctx, w, STEP_CONNECT);
}

STEP(lb_parse)
{
    struct work *w = get_work();
    struct settings *s = get_settings();

    if (!w || !s)
        return XDP_PASS;
    return parse_step(ctx, w, s);
}

INLINE int refuse_new(struct xdp_md *ctx, struct work *w)
{
    u32 service = w->service;
    struct service_counter *counter = service_counters.lookup(&service);

    if (counter && !(w->flags & WORK_DRY))
        counter->refused++;
    return leave(ctx, w, XDP_DROP, REASON_DROP_NO_TARGET);
}

INLINE int take_way(struct xdp_md *ctx, struct work *w, const struct service *service, u32 way)
{
    if (way == GO_STEER)
        return go(ctx, w, STEP_STEER);
    if (way == GO_ANSWER)
        return go(ctx, w, STEP_ANSWER);
    if (service->method == METHOD_LOCAL)
        return leave(ctx, w, XDP_PASS, REASON_PASS_LOCAL);
    if (way == LEAVE || !w->target)
        return refuse_new(ctx, w);
    return go(ctx, w, service->method == METHOD_NAT ? STEP_TRANSLATE : STEP_FORWARD);
}

INLINE int connect_step(struct xdp_md *ctx, struct work *w, const struct settings *s)
{
    u32 reason = REASON_PASS_NOT_OURS, id = 0;
    struct service *service;

    if (!(w->flags & WORK_RETURN)) {
        id = match_service(s, w, w->key.destination, w->key.destination_port);
        if (!id && (s->flags & SETTING_NAT))
            return go(ctx, w, STEP_RETURN);
    }
    if (!id && (s->flags & SETTING_ROUTED)) {
        id = match_routed(w, &reason);
        w->flags |= WORK_ROUTED;
    }
    service = id ? service_table.lookup(&id) : 0;
    // A row without a method belongs to a service that is just being removed.
    if (!service || !service->method)
        return leave(ctx, w, XDP_PASS, reason);
    w->service = id;
    w->target = 0;
    remember_fragment(w);
    return take_way(ctx, w, service, connect_flow(s, w, service));
}

STEP(lb_connect)
{
    struct work *w = get_work();
    struct settings *s = get_settings();

    if (!w || !s)
        return XDP_PASS;
    return connect_step(ctx, w, s);
}

STEP(lb_return)
{
    struct work *w = get_work();
    struct settings *s = get_settings();
    u32 way;

    if (!w || !s)
        return XDP_PASS;
    way = return_flow(s, w);
    w->flags |= WORK_RETURN;
    if (way == GO_DROP)
        return leave(ctx, w, XDP_DROP, REASON_DROP_ANSWER_EARLY);
    if (way == LEAVE)
        // No answer of a backend: back, to see whether it is routed traffic.
        return go(ctx, w, STEP_CONNECT);
    remember_fragment(w);
    if (way == GO_STEER)
        return go(ctx, w, STEP_STEER);
    return go(ctx, w, STEP_TRANSLATE);
}

STEP(lb_forward)
{
    struct work *w = get_work();
    struct settings *s = get_settings();

    if (!w || !s)
        return XDP_PASS;
    return step_forward(ctx, w, s);
}

STEP(lb_translate)
{
    struct work *w = get_work();

    return w ? step_translate(ctx, w) : XDP_PASS;
}

STEP(lb_icmp)
{
    struct work *w = get_work();
    struct settings *s = get_settings();

    if (!w || !s)
        return XDP_PASS;
    return step_icmp(ctx, w, s);
}

STEP(lb_translate_icmp)
{
    struct work *w = get_work();

    return w ? step_translate_icmp(ctx, w) : XDP_PASS;
}

STEP(lb_answer)
{
    struct work *w = get_work();

    return w ? step_answer(ctx, w) : XDP_PASS;
}

STEP(lb_steer)
{
    struct work *w = get_work();
    struct settings *s = get_settings();

    if (!w || !s)
        return XDP_PASS;
    return step_steer(ctx, w, s);
}

STEP(lb_neighbour)
{
    struct work *w = get_work();

    return w ? step_arp(ctx, w) : XDP_PASS;
}

STEP(lb_capture)
{
    struct work *w = get_work();
    u32 zero = 0;
    struct capture_control *control = capture_control.lookup(&zero);

    if (!w || !control)
        return XDP_PASS;
    mirror(ctx, w, control);
    return w->verdict;
}

// Asks the path without leaving a trace: for test runs only, never attached.
STEP(lb_where)
{
    struct work *w = get_work();

    if (!w)
        return XDP_PASS;
    begin_work(ctx, w, WORK_DRY);
    return go(ctx, w, STEP_PARSE);
}
