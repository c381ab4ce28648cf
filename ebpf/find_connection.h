// SPDX-License-Identifier: GPL-2.0-only
//
// The connection tables: established connections, first packets that must be remembered, TCP state as far as one
// direction shows it. A first packet never writes to the large table, so a flood of them cannot evict a connection.

#include "choose_target.h"
#include "record_connection.h"
#include "remember_flow.h"

struct admission {
    u32 window;  // jiffies
    u32 used;
};
BPF_PERCPU_ARRAY(admissions, struct admission, 1);

// Limits how many entries a second may push others out of the large table (a flood of forged ACKs would).
INLINE bool admit(const struct settings *s)
{
    struct admission *admission;
    u32 zero = 0, now = bpf_jiffies64();

    if (!s->admissions_per_s)
        return true;
    admission = admissions.lookup(&zero);
    if (!admission)
        return false;
    if (now - admission->window >= CONFIG_HZ) {
        admission->window = now;
        admission->used = 0;
    }
    return admission->used++ < s->admissions_per_s;
}

INLINE bool is_first(const struct work *w)
{
    return (w->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

INLINE bool is_open(u8 state)
{
    return state == STATE_ESTABLISHED || state == STATE_UDP;
}

INLINE void count_active(u32 target, int change)
{
    struct target *t = targets.lookup(&target);
    struct target_load *load;

    if (!t || !(t->flags & TARGET_COUNTED))
        return;
    load = target_load.lookup(&target);
    if (load && (change > 0 || load->active > 0))
        __sync_fetch_and_add(&load->active, change);
}

INLINE void count_opened(struct work *w)
{
    u32 target = w->target, service = w->service;
    struct target_counter *t = target_counters.lookup(&target);
    struct service_counter *s = service_counters.lookup(&service);

    if (t)
        t->opened++;
    if (s)
        s->opened++;
    count_active(target, 1);
}

INLINE void count_closed(u32 target)
{
    struct target_counter *t = target_counters.lookup(&target);

    if (t)
        t->closed++;
    count_active(target, -1);
}

// What a packet makes of a connection's state. From the server: only nat and routed connections show its packets.
INLINE u8 next_state(u8 state, const struct work *w, bool from_server)
{
    u8 own = from_server ? STATE_FIN_SERVER : STATE_FIN_CLIENT;
    u8 other = from_server ? STATE_FIN_CLIENT : STATE_FIN_SERVER;

    if (w->protocol != IPPROTO_TCP || (w->flags & (WORK_FRAGMENT_LATER | WORK_ICMP_ERROR)))
        return state;
    if (w->tcp_flags & TCP_RST)
        return STATE_RESET;
    if (w->tcp_flags & TCP_FIN)
        return state == other || state == STATE_CLOSING ? STATE_CLOSING : own;
    // A reset is believed only if silence follows (anyone may forge one); data after a FIN is a new connection.
    if (state == STATE_RESET || (state == own && w->payload))
        return STATE_ESTABLISHED;
    return state;
}

INLINE void follow_state(const struct settings *s, struct work *w, const struct service *service,
                         struct connection *c, bool from_server)
{
    u8 state = next_state(c->state, w, from_server);
    bool was_open = is_open(c->state), now_open = is_open(state);

    w->state = state;
    if (state == c->state || (w->flags & WORK_DRY))
        return;
    c->state = state;
    if (was_open == now_open && state != STATE_CLOSING)
        return;
    if (was_open && !now_open)
        count_closed(c->target);
    if (!was_open && now_open)
        count_active(c->target, 1);
    tell_peers(s, w, service, c, now_open ? RECORD_OPENED : RECORD_CLOSED);
}

INLINE void touch(struct work *w, struct connection *c)
{
    u32 now = now_s();

    if (c->last_seen_s != now && !(w->flags & WORK_DRY))
        c->last_seen_s = now;
}

INLINE void fill_entry(const struct settings *s, struct work *w, u8 state)
{
    w->entry.last_seen_s = w->entry.opened_s = now_s();
    w->entry.target = w->target;
    w->entry.owner = w->owner = s->node;
    w->entry.state = w->state = state;
    w->entry.service = w->service;
    w->entry.origin = s->node;
    w->entry.pad = 0;
}

INLINE void remember_client(struct work *w, const struct service *service)
{
    if (!service->persistence_s)
        return;
    copy_address(w->persistence_key.client, w->connection.source);
    w->persistence_key.service = w->service;
    w->persistence_key.pad = 0;
    w->persistence.seen_s = w->entry.last_seen_s;
    w->persistence.target = w->target;
    w->persistence.pad = 0;
    if (persistence.update(&w->persistence_key, &w->persistence))
        note(REASON_NOTE_TABLE_FULL, w->length);
}

// The target this client was given lately, 0 if none or if it takes nothing new.
INLINE u32 persistent_target(struct work *w, const struct service *service)
{
    struct persistence *last;
    bool full = false;

    if (!service->persistence_s)
        return 0;
    copy_address(w->persistence_key.client, w->key.source);
    w->persistence_key.service = w->service;
    w->persistence_key.pad = 0;
    last = persistence.lookup(&w->persistence_key);
    if (!last || now_s() - last->seen_s >= service->persistence_s)
        return 0;
    return choosable(w, last->target, &full);
}

// A routed SYN to a nat backend's endpoint: its answer must be known for what it is (see return_flow.h).
INLINE bool is_direct_to_backend(const struct settings *s, struct work *w)
{
    if (!(w->flags & WORK_ROUTED) || !(s->flags & SETTING_NAT) || w->protocol != IPPROTO_TCP)
        return false;
    return match_backend(s, w, w->key.destination, w->key.destination_port);
}

// First packet: remembered apart, and told only by services that replicate everything.
INLINE void remember_first(const struct settings *s, struct work *w, const struct service *service)
{
    if (w->flags & WORK_DRY)
        return;
    fill_entry(s, w, w->protocol == IPPROTO_TCP ? STATE_SYN : STATE_UDP_ONCE);
    if ((service->flags & SERVICE_REMEMBER_NEW) || is_direct_to_backend(s, w)) {
        if (half_open.update(&w->connection, &w->entry))
            note(REASON_NOTE_TABLE_FULL, w->length);
    } else if (w->protocol == IPPROTO_UDP) {
        remember_flow(s, w->hash, w->target, RECENT_UDP_ONCE);
    }
    if (service->replicate == REPLICATE_ALL)
        tell_peers(s, w, service, &w->entry, RECORD_OPENED);
}

// More than a first packet: into the large table, told to the peers.
INLINE void establish(const struct settings *s, struct work *w, const struct service *service)
{
    if (w->flags & WORK_DRY)
        return;
    if (!admit(s)) {
        note(REASON_NOTE_NOT_ADMITTED, w->length);
        return;
    }
    fill_entry(s, w, w->protocol == IPPROTO_TCP ? STATE_ESTABLISHED : STATE_UDP);
    if (connections.update(&w->connection, &w->entry)) {
        note(REASON_NOTE_TABLE_FULL, w->length);
        return;
    }
    if (service->flags & SERVICE_REMEMBER_NEW) {
        half_open.delete(&w->connection);
        remember_client(w, service);
    }
    count_opened(w);
    tell_peers(s, w, service, &w->entry, RECORD_OPENED);
}

INLINE void forget(const struct settings *s, struct work *w, const struct service *service, struct connection *c)
{
    if (w->flags & WORK_DRY)
        return;
    if (is_open(c->state))
        count_closed(c->target);
    w->entry = *c;
    w->entry.state = STATE_RESET;
    tell_peers(s, w, service, &w->entry, RECORD_CLOSED);
    forget_answers(s, w, service, w->entry.target);
    connections.delete(&w->connection);
    forget_flow(s, w);
}
