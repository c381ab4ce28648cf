// SPDX-License-Identifier: GPL-2.0-only
//
// Answers of nat backends: the sender is looked up as a backend, which gives the client's direction of the connection,
// which is what the tables hold. Several services may share a backend's endpoint: the one that has the connection is
// right. Before any packet of it is known here, the answer goes to the node the client's endpoint points to.

#include "blame_target.h"
#include "connect_flow.h"

// The client's direction of the packet, had it come through this target's service.
INLINE void set_client_key(struct work *w, const struct service *service, const struct target *t)
{
    struct flow_key *key = &w->connection;

    copy_address(key->source, w->key.destination);
    copy_address(key->destination, service->address);
    key->source_port = w->key.destination_port;
    key->destination_port = service->port ? service->port : w->key.source_port;
    key->protocol = w->protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

INLINE u32 use_answer(const struct settings *s, struct work *w, const struct service *service, struct connection *c)
{
    w->owner = c->owner;
    w->state = c->state;
    follow_state(s, w, service, c, true);
    touch(w, c);
    if (w->flags & (WORK_DRY | WORK_ICMP_ERROR))
        return GO_ON;
    if (is_open(c->state))
        remember_flow(s, w->hash, w->target, RECENT_RETURN);
    else
        forget_flow(s, w);
    return GO_ON;
}

// An answer to a first packet: for UDP that makes it a connection, for TCP the client's next packet will.
INLINE u32 use_first_answer(const struct settings *s, struct work *w, const struct service *service,
                            struct connection *half)
{
    w->owner = half->owner;
    w->state = half->state;
    if ((w->tcp_flags & TCP_RST) && half->state == STATE_SYN)
        count_refused(w);
    if (w->protocol == IPPROTO_UDP && !(w->flags & WORK_ICMP_ERROR))
        establish(s, w, service);
    else
        touch(w, half);
    return GO_ON;
}

// Whether a SYN of routed traffic went past here that this answers: the client speaks to the backend directly.
INLINE bool answers_routed(struct work *w)
{
    bool known;

    w->flags |= WORK_ROUTED;
    set_connection_key(w);
    known = connections.lookup(&w->connection) || half_open.lookup(&w->connection);
    w->flags &= ~(WORK_ROUTED | WORK_SWAPPED);
    return known;
}

// While VIPs and steering tables move between gateways, an answer may be here before the connection it belongs to. To the
// kernel it would look like routed traffic and reach the client untranslated, which would reset it. A backend that opens
// a connection from the very port it serves on is not a thing that happens; one whose service takes any port may well do
// so: there only the answer to a SYN is sure to be one.
INLINE bool is_early(const struct settings *s, struct work *w)
{
    u8 handshake = w->tcp_flags & (TCP_SYN | TCP_ACK);

    if ((s->flags & (SETTING_STEERING | SETTING_ROUTED)) != (SETTING_STEERING | SETTING_ROUTED))
        return false;
    if (w->protocol != IPPROTO_TCP || handshake == TCP_SYN || (w->flags & (WORK_FRAGMENT_LATER | WORK_ICMP_ERROR)))
        return false;
    if (handshake != (TCP_SYN | TCP_ACK) && !backend_at(w, w->key.source, w->key.source_port))
        return false;
    return !answers_routed(w);
}

// The connection was made through another gateway that did not come to tell of it (it died, or its record is still under
// way). Where only one service has a backend at this endpoint the answer itself says which connection it is.
INLINE u32 adopt_answer(const struct settings *s, struct work *w)
{
    u32 id = backend_at(w, w->key.source, w->key.source_port), service_id;
    struct target *t = id ? targets.lookup(&id) : 0;
    struct service *service;

    if (!t || t->nat_next)
        return GO_DROP;
    service_id = t->service;
    service = service_table.lookup(&service_id);
    if (!service || service->method != METHOD_NAT)
        return GO_DROP;
    w->service = service_id;
    w->target = id;
    w->owner = s->node;
    set_client_key(w, service, t);
    // The client's port has gone on to another backend: this one is late.
    if (connections.lookup(&w->connection) || half_open.lookup(&w->connection))
        return GO_DROP;
    if (!(w->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
        establish(s, w, service);
    return GO_ON;
}

// Whether the gateway itself speaks with the backend: its health check, for one.
INLINE bool is_to_gateway(struct work *w)
{
    struct address_entry *entry;

    copy_address(w->address.address, w->key.destination);
    entry = addresses.lookup(&w->address);
    return entry && (entry->flags & ADDRESS_OWN);
}

// LEAVE: nothing known of such a connection.
INLINE u32 return_flow(const struct settings *s, struct work *w)
{
    u32 candidate = match_backend(s, w, w->key.source, w->key.source_port), service_id = 0;
    struct service *service = 0;

#pragma clang loop unroll(disable)
    for (int i = 0; i < NAT_CHAIN_MAX && candidate; i++) {
        struct target *t = targets.lookup(&candidate);
        struct connection *c;

        if (!t)
            return LEAVE;
        service_id = t->service;
        service = service_table.lookup(&service_id);
        if (!service || service->method != METHOD_NAT)
            return LEAVE;
        w->service = service_id;
        w->target = candidate;
        set_client_key(w, service, t);
        c = connections.lookup(&w->connection);
        if (c && c->target == candidate)
            return use_answer(s, w, service, c);
        c = half_open.lookup(&w->connection);
        if (c && c->target == candidate)
            return use_first_answer(s, w, service, c);
        candidate = t->nat_next;
    }
    if (service && is_to_gateway(w))
        return LEAVE;
    if (service && (service->flags & SERVICE_STEERED) && (s->flags & SETTING_STEERING) &&
        belongs_elsewhere(s, w, steering_node(s, w, w->key.destination, w->key.destination_port)))
        return GO_STEER;
    // Its connection's record may come any moment: no short way past the tables until then.
    if (service)
        w->flags |= WORK_MAYBE_ANSWER;
    if (service && is_early(s, w))
        return adopt_answer(s, w);
    return LEAVE;
}
