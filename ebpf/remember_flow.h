// SPDX-License-Identifier: GPL-2.0-only
//
// A small per-CPU table of recent flows in front of the connection map: one cache line instead of several, so that the
// large map is consulted once a second per flow. An entry is recognised by a 64-bit keyed tag of the 5-tuple, mixed
// with the configuration's epoch: any change of configuration forgets all entries at once.

#include "hash_flow.h"

// Entries are grouped into pages because a per-CPU array finds each value through a pointer of its own.
#define FLOW_PAGE_ENTRIES 256
#ifndef FLOW_PAGES
#define FLOW_PAGES 256
#endif

// recent_flow.flags
#define RECENT_LOCAL 0x1     // belongs to this node: to the kernel
#define RECENT_UDP_ONCE 0x2  // one packet seen, not in the connection map
#define RECENT_RETURN 0x4    // answer of a nat backend

struct recent_flow {
    u64 tag;
    u32 stamp;  // jiffies of the last visit to the connection map
    u16 target;
    u16 flags;
};

struct flow_page {
    struct recent_flow entry[FLOW_PAGE_ENTRIES];
};
BPF_PERCPU_ARRAY(flow_cache, struct flow_page, FLOW_PAGES);

INLINE u64 tag_of(const struct settings *s, u64 hash)
{
    // An odd multiple of the epoch changes every tag; zero stays free for "empty".
    return (hash ^ (s->epoch * MIX_1)) | 1;
}

INLINE struct recent_flow *recent_flow(u64 hash)
{
    u32 page_number = (hash >> 8) & (FLOW_PAGES - 1);
    struct flow_page *page = flow_cache.lookup(&page_number);

    return page ? &page->entry[hash & (FLOW_PAGE_ENTRIES - 1)] : 0;
}

INLINE bool is_fresh(const struct recent_flow *flow)
{
    return (u32)bpf_jiffies64() - flow->stamp < CONFIG_HZ;
}

INLINE void remember_flow(const struct settings *s, const struct work *w, u16 target, u16 flags)
{
    struct recent_flow *flow = recent_flow(w->hash);

    if (!flow || (w->flags & WORK_DRY))
        return;
    flow->tag = tag_of(s, w->hash);
    flow->stamp = bpf_jiffies64();
    flow->target = target;
    flow->flags = flags;
}
