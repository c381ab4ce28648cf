// SPDX-License-Identifier: GPL-2.0-only
//
// The mirror: while a capture runs, copies the head of each packet as it leaves, with verdict and reason, for user
// space. Ends by itself when its time is over, whatever became of the process that asked for it.

#include "count_verdict.h"

INLINE u16 copy_head(struct xdp_md *ctx, u8 *to)
{
    u16 *from = packet_at(ctx, 0);
    u16 kept = 0;

#pragma clang loop unroll(disable)
    for (int i = 0; i < CAPTURE_BYTES / 2; i++) {
        if ((void *)(from + i + 1) > packet_end(ctx))
            break;
        ((u16 *)to)[i] = from[i];
        kept += 2;
    }
    return kept;
}

INLINE void mirror(struct xdp_md *ctx, struct work *w, struct capture_control *control)
{
    u64 now = bpf_ktime_get_ns();
    struct capture *capture;

    if (now >= control->until_ns) {
        control->until_ns = 0;
        return;
    }
    if (control->service && control->service != w->service)
        return;
    capture = captures.ringbuf_reserve(sizeof(*capture));
    if (!capture) {
        note(REASON_NOTE_CAPTURE_SHED, w->length);
        return;
    }
    capture->time_ns = now;
    capture->length = frame_bytes(ctx);
    capture->verdict = w->verdict;
    capture->reason = w->reason;
    capture->ifindex = ctx->ingress_ifindex;
    capture->service = w->service;
    capture->target = w->target;
    capture->kept = copy_head(ctx, capture->bytes);
    captures.ringbuf_submit(capture, 1);
}
