// SPDX-License-Identifier: GPL-2.0-only
//
// The short ways, for plain packets (no VLAN tag, no options, no fragment) to a `dsr` or `tunnel` target that is alive
// and resolved, or to this node itself; everything else takes the full path. In order:
//   a flow that was looked up within the last second: packet, settings, flow, target, counter, one cache line each;
//   an established connection of this node, in the large table;
//   the first packet of a connection whose target is a function of the packet: service, table, target.
// What belongs to a `nat` target goes straight to lb_translate, what belongs to another node straight there.
// Each decides as the full path would; none changes anything before the packet is sure to be sent.

#include "connect_flow.h"
#include "forward_packet.h"
#include "parse_plain.h"
#include "steer_packet.h"

// A short way's answer besides a target.
#define NO_TARGET 0
#define TO_THIS_NODE 0xffffffff

INLINE bool is_capturing(void)
{
    u32 zero = 0;
    struct capture_control *control = capture_control.lookup(&zero);

    return control && control->until_ns;
}

INLINE u32 find_recent(const struct settings *s, struct plain_packet *p)
{
    struct recent_flow *flow = recent_flow(s, p->hash);

    if (!flow)
        return NO_TARGET;
    p->seen_once = flow->flags & RECENT_UDP_ONCE;
    if (p->seen_once || !is_fresh(flow))
        return NO_TARGET;
    p->returned = flow->flags & RECENT_RETURN;
    if (flow->flags & RECENT_STEERED)
        p->steered = flow->flags >> RECENT_SERVICE_SHIFT;
    return flow->flags & RECENT_LOCAL ? TO_THIS_NODE : flow->target;
}

// A connection of the large table, for its service.
INLINE u32 use_established(const struct settings *s, const struct plain_packet *p, u32 service, struct connection *c)
{
    u32 now;

    if (!is_open(c->state) || c->owner != s->node || !is_alive(service, c->target))
        return NO_TARGET;
    now = now_s();
    if (c->last_seen_s != now)
        c->last_seen_s = now;
    remember_flow(s, p->hash, c->target, 0);
    return c->target;
}

// As choose_target for the first choice of a service that keeps no memory of first packets.
INLINE u32 first_choice(const struct plain_packet *p, u32 id, const struct service *service, u32 slot_mask)
{
    u32 slot;
    struct target *t;

    if (service->scheduler != SCHEDULER_MAGLEV || !service->table_slots)
        return NO_TARGET;
    if ((service->flags & (SERVICE_REMEMBER_NEW | SERVICE_STEERED)) || service->replicate == REPLICATE_ALL)
        return NO_TARGET;
    slot = slot_value(id, slot_of(p->hash, service->table_slots)) & slot_mask;
    t = targets.lookup(&slot);
    return t && takes_new(t) && t->service == id && !is_full(slot, t) ? slot : NO_TARGET;
}

// A packet from the middle of a connection: the large table, or else one that is opened by it.
INLINE u32 find_connection(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p,
                           const struct service *service)
{
    struct work *w = get_work();
    struct connection *c;

    if (!w || !plain_key(ctx, p, &w->connection))
        return NO_TARGET;
    c = connections.lookup(&w->connection);
    if (c)
        return use_established(s, p, p->service, c);
    p->opening = true;
    return first_choice(p, p->service, service, SLOT_TARGET_MASK);
}

INLINE u32 find_slowly(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct service *service;
    u32 id = p->service ? p->service : plain_service(ctx, s, p);

    service = service_table.lookup(&id);
    if (!service || !id)
        return NO_TARGET;
    // As is_settled_first: a slot that was moved fits no target.
    if (p->first)
        return first_choice(p, id, service, SLOT_MOVED | SLOT_TARGET_MASK);
    p->service = id;
    return find_connection(ctx, s, p, service);
}

// As open_connection; find_slowly has left the key.
INLINE void open_plain(struct xdp_md *ctx, const struct settings *s, const struct plain_packet *p, u32 target)
{
    u32 id = p->service;
    struct service *service = service_table.lookup(&id);
    struct work *w = get_work();

    if (!w || !service)
        return;
    if (p->protocol == IPPROTO_UDP && !p->seen_once) {
        remember_flow(s, p->hash, target, RECENT_UDP_ONCE);
        return;
    }
    begin_work(ctx, w, 0);
    w->service = id;
    w->target = target;
    w->protocol = p->protocol;
    establish(s, w, service);
    remember_flow(s, p->hash, target, 0);
}

INLINE u32 send_plain(struct xdp_md *ctx, const struct settings *s, const struct plain_packet *p, u32 id, int *verdict)
{
    struct target *t = targets.lookup(&id);
    u32 frame = frame_bytes(ctx);
    struct next_hop hop;
    u16 overhead;

    if (!t || (t->flags & (TARGET_ALIVE | TARGET_RESOLVED)) != (TARGET_ALIVE | TARGET_RESOLVED))
        return GO_ON;
    if (t->method != METHOD_TUNNEL && (t->method != METHOD_DSR || p->v6 == is_mapped(t->address)))
        return GO_ON;
    overhead = t->method == METHOD_TUNNEL ? tunnel_overhead(t->address) : 0;
    if (t->mtu && p->l3_length + overhead > t->mtu)
        return GO_ON;
    if (p->opening)
        open_plain(ctx, s, p, id);
    hop_of_target(&hop, t);
    count_target(id, frame);
    if (t->method == METHOD_TUNNEL ? put_tunnel(ctx, s, ETHERNET_BYTES, p->l3_length, p->v6, p->hash, t->address, &hop)
                                   : put_plain(ctx, ETHERNET_BYTES, p->v6, &hop)) {
        note(REASON_DROP_HEADROOM, frame);
        *verdict = XDP_DROP;
        return LEAVE;
    }
    *verdict = send(ctx, &hop);
    return LEAVE;
}

// `nat`: everything the full path would have found, for lb_translate. GO_ON if something is out of the ordinary.
INLINE u32 prepare_translation(struct xdp_md *ctx, struct work *w, const struct plain_packet *p, u32 id)
{
    struct target *t = targets.lookup(&id);
    struct service *service;
    u32 service_id;

    if (!t || !(t->flags & TARGET_ALIVE) || t->method != METHOD_NAT || !plain_key(ctx, p, &w->key))
        return GO_ON;
    service_id = t->service;
    service = service_table.lookup(&service_id);
    if (!service)
        return GO_ON;
    w->flags = (p->v6 ? WORK_V6 : 0) | (p->returned ? WORK_RETURN : 0);
    w->l3 = ETHERNET_BYTES;
    w->l4 = ETHERNET_BYTES + (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
    w->l3_length = p->l3_length;
    w->protocol = p->protocol;
    w->service = service_id;
    w->target = id;
    copy_address(w->connection.destination, service->address);
    w->connection.destination_port = service->port ? service->port : w->key.source_port;
    return GO_TRANSLATE;
}

// To the node a flow was handed to before, unless that has left or the packet comes from a peer.
INLINE u32 steer_plain(struct xdp_md *ctx, const struct plain_packet *p, u32 node, int *verdict)
{
    u32 service = p->steered, frame = frame_bytes(ctx);

    if (!is_member(node) || is_from_peer(ctx) || !put_peer(ctx, node))
        return GO_ON;
    count_steered(service);
    note(REASON_SENT_STEERED, frame);
    *verdict = XDP_TX;
    return LEAVE;
}

INLINE u32 pass_plain(struct xdp_md *ctx, u32 reason, int *verdict)
{
    note(reason, frame_bytes(ctx));
    *verdict = XDP_PASS;
    return LEAVE;
}

// Sends the packet and sets the verdict (LEAVE), or finds the target of a `nat` packet (GO_TRANSLATE), or GO_ON for
// the full path.
INLINE u32 take_short_way(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p, u32 *id, int *verdict)
{
    u32 way;

    if (is_capturing() || !parse_plain(ctx, s, p))
        return GO_ON;
    if (p->first)
        p->service = recall_service(s, p);
    if (!p->service && !(s->flags & SETTING_ROUTED) && !is_plain_claimed(ctx, s, p))
        return pass_plain(ctx, REASON_PASS_NOT_OURS, verdict);
    if (p->control)
        return GO_ON;
    *id = p->first ? NO_TARGET : find_recent(s, p);
    if (*id == TO_THIS_NODE)
        return pass_plain(ctx, REASON_PASS_LOCAL, verdict);
    if (p->steered)
        return steer_plain(ctx, p, *id, verdict);
    if (*id == NO_TARGET)
        *id = find_slowly(ctx, s, p);
    if (*id == NO_TARGET)
        return GO_ON;
    way = p->returned ? GO_ON : send_plain(ctx, s, p, *id, verdict);
    return way == LEAVE ? LEAVE : GO_TRANSLATE;
}
