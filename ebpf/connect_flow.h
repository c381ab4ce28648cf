// SPDX-License-Identifier: GPL-2.0-only
//
// Finds the connection of a packet for a service, or makes one: this is where a packet's target is decided.

#include "find_connection.h"
#include "match_service.h"

INLINE bool is_greater(const struct flow_key *key)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (key->source[i] != key->destination[i])
            return bpf_ntohl(key->source[i]) > bpf_ntohl(key->destination[i]);
    }
    return bpf_ntohs(key->source_port) > bpf_ntohs(key->destination_port);
}

// The key of `connections`: as the client sends it; both endpoints sorted for routed traffic.
INLINE void set_connection_key(struct work *w)
{
    struct flow_key *to = &w->connection, *from = &w->key;

    *to = *from;
    if (!(w->flags & WORK_ROUTED) || !is_greater(from))
        return;
    w->flags |= WORK_SWAPPED;
    copy_address(to->source, from->destination);
    copy_address(to->destination, from->source);
    to->source_port = from->destination_port;
    to->destination_port = from->source_port;
}

// Another node's connection: true if the packet has to go there.
INLINE bool belongs_elsewhere(const struct settings *s, struct work *w, u32 node)
{
    if (!node || node == s->node || !is_member(node))
        return false;
    if (!(w->flags & WORK_FROM_PEER)) {
        w->node = node;
        return true;
    }
    if (!(w->flags & WORK_DRY))
        note(REASON_NOTE_NOT_STEERED_TWICE, w->length);
    return false;
}

INLINE void take_over(const struct settings *s, struct work *w, const struct service *service, struct connection *c)
{
    if (c->owner == s->node || (w->flags & WORK_DRY))
        return;
    c->owner = w->owner = s->node;
    note(REASON_NOTE_TAKEN_OVER, w->length);
    tell_peers(s, w, service, c, RECORD_MOVED);
}

// `local`: a connection stays with its node for as long as that is a member.
INLINE u32 keep_node(const struct settings *s, struct work *w, const struct service *service, struct connection *c)
{
    u32 node = c->owner;

    if (node != s->node && !is_member(node))
        node = steering_node(s, w, w->key.source, w->key.source_port);
    if ((s->flags & SETTING_STEERING) && belongs_elsewhere(s, w, node))
        return GO_STEER;
    take_over(s, w, service, c);
    return GO_ON;
}

INLINE u32 choose_again(const struct settings *s, struct work *w, const struct service *service, struct connection *c)
{
    u32 target;

    if (w->protocol == IPPROTO_TCP && !(service->flags & SERVICE_RECHOOSE_DEAD)) {
        forget(s, w, service, c);
        w->answer = ANSWER_RESET;
        return GO_ANSWER;
    }
    target = choose_target(s, w, service, false);
    w->target = target;
    if (!target || (w->flags & WORK_DRY))
        return GO_ON;
    count_closed(c->target);
    forget_answers(s, w, service, c->target);
    c->target = target;
    c->owner = w->owner = s->node;
    count_opened(w);
    note(REASON_NOTE_RECHOSEN, w->length);
    tell_peers(s, w, service, c, RECORD_MOVED);
    return GO_ON;
}

INLINE bool is_alive(u32 service, u32 target)
{
    struct target *t = targets.lookup(&target);

    return t && (t->flags & TARGET_ALIVE) && t->service == service;
}

// A packet of a connection in the large table.
INLINE u32 use_connection(const struct settings *s, struct work *w, const struct service *service, struct connection *c)
{
    u32 way = GO_ON;

    w->target = c->target;
    w->owner = c->owner;
    w->state = c->state;
    if (service->method == METHOD_LOCAL)
        way = keep_node(s, w, service, c);
    else if (!is_alive(w->service, c->target))
        way = choose_again(s, w, service, c);
    else
        take_over(s, w, service, c);
    if (way != GO_ON)
        return way;
    follow_state(s, w, service, c, w->flags & WORK_SWAPPED);
    touch(w, c);
    if (w->flags & (WORK_DRY | WORK_MAYBE_ANSWER))
        return GO_ON;
    if (is_open(c->state))
        remember_flow(s, w->hash, w->target, service->method == METHOD_LOCAL ? RECENT_LOCAL : 0);
    else
        forget_flow(s, w);
    return GO_ON;
}

INLINE bool was_seen_once(const struct settings *s, const struct work *w)
{
    struct recent_flow *flow = recent_flow(s, w->hash);

    return flow && (flow->flags & RECENT_UDP_ONCE);
}

// A packet of no known connection. `half` is what an earlier first packet left.
INLINE u32 open_connection(const struct settings *s, struct work *w, const struct service *service,
                           struct connection *half)
{
    bool local = service->method == METHOD_LOCAL;
    bool first = w->protocol == IPPROTO_TCP ? is_first(w) : !half && !was_seen_once(s, w);
    u32 target = 0;

    if ((service->flags & SERVICE_STEERED) && (s->flags & SETTING_STEERING) && (!half || is_first(w)) &&
        belongs_elsewhere(s, w, steering_node(s, w, w->key.source, w->key.source_port)))
        return GO_STEER;
    if (!local) {
        if (half && is_alive(w->service, half->target))
            target = half->target;
        if (!target)
            target = persistent_target(w, service);
        if (!target)
            target = choose_target(s, w, service, first);
        if (!target)
            return LEAVE;
    }
    w->target = target;
    if (first)
        remember_first(s, w, service);
    else if (!(w->tcp_flags & TCP_RST)) {
        establish(s, w, service);
        if (w->flags & (WORK_DRY | WORK_MAYBE_ANSWER))
            return GO_ON;
        // What was remembered, that another node has the flow, is over in either case.
        if (w->tcp_flags & (TCP_SYN | TCP_FIN))
            forget_flow(s, w);
        else
            remember_flow(s, w->hash, target, local ? RECENT_LOCAL : 0);
    }
    return GO_ON;
}

// Whether a first packet can be answered without the tables: the choice is a function of the packet, and has been the
// same for as long as any connection of this slot may live.
INLINE bool is_settled_first(struct work *w, const struct service *service)
{
    if (w->protocol != IPPROTO_TCP || !is_first(w) || (service->flags & SERVICE_REMEMBER_NEW))
        return false;
    if (service->method == METHOD_LOCAL || service->scheduler != SCHEDULER_MAGLEV || !service->table_slots)
        return false;
    return !(slot_value(w->service, slot_of(w->hash, service->table_slots)) & SLOT_MOVED);
}

INLINE struct connection *known_connection(const struct settings *s, struct work *w, const struct service *service)
{
    struct connection *c = connections.lookup(&w->connection);

    // The port is in use again: the old connection is over.
    if (c && is_first(w) && c->state >= STATE_FIN_CLIENT && w->protocol == IPPROTO_TCP) {
        if (!(w->flags & WORK_DRY)) {
            forget_answers(s, w, service, c->target);
            connections.delete(&w->connection);
            forget_flow(s, w);
        }
        return 0;
    }
    return c;
}

INLINE u32 connect_flow(const struct settings *s, struct work *w, const struct service *service)
{
    struct connection *c = 0, *half = 0;

    set_connection_key(w);
    if (!is_settled_first(w, service))
        c = known_connection(s, w, service);
    if (c)
        return use_connection(s, w, service, c);
    if ((service->flags & SERVICE_REMEMBER_NEW) && service->method != METHOD_LOCAL)
        half = half_open.lookup(&w->connection);
    return open_connection(s, w, service, half);
}
