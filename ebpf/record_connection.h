// SPDX-License-Identifier: GPL-2.0-only
//
// Tells the peers: one fixed-size record in a ring buffer for each connection that opens, closes or moves. No wake-up:
// user space drains it in bulk. A record that does not fit is counted, and repaired by user space later.

#include "count_verdict.h"

#define RING_NO_WAKEUP 1

INLINE void tell_peers(const struct settings *s, struct work *w, const struct service *service,
                       const struct connection *entry, u8 kind)
{
    struct record *record;

    if (!(s->flags & SETTING_RECORDS) || service->replicate == REPLICATE_NONE || (w->flags & WORK_DRY))
        return;
    record = records.ringbuf_reserve(sizeof(*record));
    if (!record) {
        note(REASON_NOTE_RECORD_SHED, w->length);
        return;
    }
    record->key = w->connection;
    record->value = *entry;
    record->kind = kind;
    record->node = s->node;
    record->replicate = service->replicate;
    __builtin_memset(record->pad, 0, sizeof(record->pad));
    records.ringbuf_submit(record, RING_NO_WAKEUP);
}
