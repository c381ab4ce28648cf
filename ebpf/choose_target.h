// SPDX-License-Identifier: GPL-2.0-only
//
// New connection -> backend or node. Tables are built in user space (Maglev: Eisenbud et al., "Maglev: A Fast and
// Reliable Software Network Load Balancer", NSDI 2016) and swapped as a whole. Least connections takes the better of
// two random choices (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001): near the least
// loaded without looking at all.

#include "match_service.h"

INLINE u16 slot_value(u32 table, u32 slot)
{
    void *inner = tables.lookup(&table);
    u32 line_number = slot / TABLE_LINE_SLOTS;
    struct table_line *line;

    if (!inner)
        return 0;
    line = bpf_map_lookup_elem(inner, &line_number);
    return line ? line->slot[slot % TABLE_LINE_SLOTS] : 0;
}

INLINE u32 active_connections(u32 target)
{
    struct target_load *load = target_load.lookup(&target);

    return load ? load->active : 0;
}

INLINE bool is_full(u32 id, const struct target *t)
{
    if (t->flags & TARGET_FULL)
        return true;
    return t->connections_max && (t->flags & TARGET_COUNTED) && active_connections(id) >= t->connections_max;
}

INLINE bool takes_new(const struct target *t)
{
    return (t->flags & (TARGET_ALIVE | TARGET_DRAINING)) == TARGET_ALIVE;
}

// The target of a slot if it takes new connections, else 0.
INLINE u32 choosable(struct work *w, u32 id, bool *full)
{
    struct target *t = targets.lookup(&id);

    if (!t || !takes_new(t) || t->service != w->service)
        return 0;
    if (is_full(id, t)) {
        *full = true;
        return 0;
    }
    return id;
}

// Connections per weight; comparing a/wa < b/wb without division.
INLINE u32 less_loaded(u32 a, u32 b)
{
    struct target *ta = targets.lookup(&a), *tb = targets.lookup(&b);

    if (!ta || !tb)
        return a;
    return (u64)(active_connections(a) + 1) * tb->weight <= (u64)(active_connections(b) + 1) * ta->weight ? a : b;
}

INLINE u32 next_in_rotation(u32 service)
{
    struct service_counter *counter = service_counters.lookup(&service);

    return counter ? counter->round++ : 0;
}

INLINE u64 choice_seed(const struct settings *s, struct work *w, const struct service *service, bool first)
{
    if (service->scheduler == SCHEDULER_SOURCE)
        return hash_client(s, w->key.source);
    if (service->scheduler == SCHEDULER_LEAST_CONNECTIONS && first)
        return mix(bpf_get_prandom_u32() * MIX_1);
    return w->hash;
}

INLINE u32 first_slot(struct work *w, const struct service *service, u64 seed, bool first)
{
    if (service->scheduler == SCHEDULER_ROUND_ROBIN && first && !(w->flags & WORK_DRY))
        return next_in_rotation(w->service) % service->table_slots;
    return slot_of(seed, service->table_slots);
}

// A target for a new connection, 0 if none. `first` is false for a packet from the middle of a connection nobody
// remembers: then the choice is a function of the packet, whatever the scheduler.
INLINE u32 choose_target(const struct settings *s, struct work *w, const struct service *service, bool first)
{
    u64 seed = choice_seed(s, w, service, first);
    u32 chosen = 0, slot, id;
    bool full = false;

    if (!service->table_slots)
        return 0;
    slot = first_slot(w, service, seed, first);
#pragma clang loop unroll(disable)
    for (int i = 0; i < CHOICES_MAX && !chosen; i++) {
        chosen = choosable(w, slot_value(w->service, slot) & SLOT_TARGET_MASK, &full);
        seed = mix(seed + MIX_1);
        slot = slot_of(seed, service->table_slots);
    }
    if (chosen && first && service->scheduler == SCHEDULER_LEAST_CONNECTIONS) {
        id = choosable(w, slot_value(w->service, slot) & SLOT_TARGET_MASK, &full);
        if (id)
            chosen = less_loaded(chosen, id);
    }
    if (chosen && full && !(w->flags & WORK_DRY))
        note(REASON_NOTE_OVERFLOW, w->length);
    return chosen;
}

INLINE bool is_member(u32 node)
{
    struct node_entry *entry = nodes.lookup(&node);

    return entry && (entry->flags & NODE_MEMBER);
}

// Equal for both directions of a connection. Routed traffic of a nat backend's endpoint cannot be told from its
// answers through a service before the connection is known, so it goes by the other endpoint, as those do.
INLINE u64 steering_hash(const struct settings *s, struct work *w, const __be32 *client, __be16 port)
{
    struct flow_key *key = &w->key;

    if (!(w->flags & WORK_ROUTED))
        return hash_client_port(s, client, port);
    if ((s->flags & SETTING_NAT) && match_backend(s, w, key->destination, key->destination_port))
        return hash_client_port(s, key->source, key->source_port);
    if ((s->flags & SETTING_NAT) && match_backend(s, w, key->source, key->source_port))
        return hash_client_port(s, key->destination, key->destination_port);
    return hash_key(s, &w->connection);
}

// The node a new connection belongs to, the same on every gateway of a view.
INLINE u32 steering_node(const struct settings *s, struct work *w, const __be32 *client, __be16 port)
{
    return slot_value(STEERING_TABLE, slot_of(steering_hash(s, w, client, port), TABLE_SLOTS_DEFAULT)) & 0xff;
}
