// SPDX-License-Identifier: GPL-2.0-only
//
// A small per-CPU table of recent flows in front of the connection map: one cache line instead of several, so that the
// large map is consulted once a second per flow. An entry is recognised by a 64-bit keyed tag of the 5-tuple, mixed
// with the configuration's epoch: any change of configuration forgets all entries at once.

#include "hash_flow.h"

// Four ways to a cache line. One array for all CPUs, a part for each: a per-CPU array would need a pointer more.
// FLOW_LINES, for each CPU, comes from ebpf/source.py.
#define FLOW_WAYS 4

// recent_flow.flags
#define RECENT_LOCAL 0x1     // belongs to this node: to the kernel
#define RECENT_UDP_ONCE 0x2  // one packet seen, not in the connection map
#define RECENT_RETURN 0x4    // answer of a nat backend
#define RECENT_STEERED 0x8   // belongs to another node: `target` is the node, the upper bits are the service
#define RECENT_SERVICE_SHIFT 4
_Static_assert(SERVICE_COUNT_MAX <= 1 << (16 - RECENT_SERVICE_SHIFT), "a service id has to fit the upper bits");

struct recent_flow {
    u64 tag;
    u32 stamp;  // jiffies of the last visit to the connection map
    u16 target;
    u16 flags;
};

struct flow_line {
    struct recent_flow way[FLOW_WAYS];
};
BPF_F_TABLE("array", u32, struct flow_line, flow_cache, FLOW_LINES * CPU_COUNT, F_MMAPABLE);

INLINE u64 tag_of(const struct settings *s, u64 hash)
{
    // An odd multiple of the epoch changes every tag; zero stays free for "empty".
    return (hash ^ (s->epoch * MIX_1)) | 1;
}

INLINE struct flow_line *flow_line(u64 hash)
{
    u32 number = bpf_get_smp_processor_id() * FLOW_LINES + (hash & (FLOW_LINES - 1));

    return flow_cache.lookup(&number);
}

// The entry of a flow, 0 if there is none.
INLINE struct recent_flow *recent_flow(const struct settings *s, u64 hash)
{
    struct flow_line *line = flow_line(hash);
    u64 tag = tag_of(s, hash);

    if (!line)
        return 0;
#pragma unroll
    for (int i = 0; i < FLOW_WAYS; i++) {
        if (line->way[i].tag == tag)
            return &line->way[i];
    }
    return 0;
}

INLINE bool is_fresh(const struct recent_flow *flow)
{
    return (u32)bpf_jiffies64() - flow->stamp < CONFIG_HZ;
}

// Writes over the flow's own entry, else over the one that is longest without a visit to the connection map.
INLINE void remember_flow(const struct settings *s, u64 hash, u16 target, u16 flags)
{
    struct flow_line *line = flow_line(hash);
    u32 now = bpf_jiffies64(), oldest = 0;
    u64 tag = tag_of(s, hash);
    struct recent_flow *flow;

    if (!line)
        return;
    flow = &line->way[0];
#pragma unroll
    for (int i = 0; i < FLOW_WAYS; i++) {
        u32 age = now - line->way[i].stamp;

        if (line->way[i].tag == tag) {
            flow = &line->way[i];
            break;
        }
        if (age > oldest) {
            oldest = age;
            flow = &line->way[i];
        }
    }
    flow->tag = tag;
    flow->stamp = now;
    flow->target = target;
    flow->flags = flags;
}

// The short way must not outlive the connection: the next packets may belong to another target.
INLINE void forget_hash(const struct settings *s, u64 hash)
{
    struct recent_flow *flow = recent_flow(s, hash);

    if (flow && flow->tag == tag_of(s, hash))
        flow->tag = 0;
}

INLINE void forget_flow(const struct settings *s, const struct work *w)
{
    forget_hash(s, w->hash);
}

// The short way of a nat backend's answers goes when the client's port is another connection's. (Only this CPU's: on
// another one a late answer of the old backend may be translated for what is left of the second.)
INLINE void forget_answers(const struct settings *s, const struct work *w, const struct service *service, u32 target)
{
    struct target *t = targets.lookup(&target);
    struct flow_key answer = {};

    if (service->method != METHOD_NAT || !t)
        return;
    copy_address(answer.source, t->address);
    copy_address(answer.destination, w->connection.source);
    answer.source_port = t->port ? t->port : w->connection.destination_port;
    answer.destination_port = w->connection.source_port;
    answer.protocol = w->connection.protocol;
    forget_hash(s, hash_key(s, &answer));
}
