// SPDX-License-Identifier: GPL-2.0-only
//
// The way out: every exit off the short way has a reason that is counted, and is mirrored while a capture runs.

#include "common.h"

INLINE void note(u32 reason, u32 bytes)
{
    struct reason_counter *counter = reason_counters.lookup(&reason);

    if (counter) {
        counter->packets++;
        counter->bytes += bytes;
    }
}

INLINE void explain_verdict(struct work *w, int verdict, u32 reason)
{
    struct explain found = {
        .verdict = verdict,
        .reason = reason,
        .service = w->service,
        .target = w->target,
        .owner = w->owner,
        .state = w->state,
    };
    u32 zero = 0;

    explain.update(&zero, &found);
}

INLINE int leave(struct xdp_md *ctx, struct work *w, int verdict, u32 reason)
{
    struct capture_control *control;
    u32 zero = 0;

    if (w->flags & WORK_DRY) {
        explain_verdict(w, verdict, reason);
        return verdict;
    }
    note(reason, w->length);
    control = capture_control.lookup(&zero);
    if (control && control->until_ns) {
        w->verdict = verdict;
        w->reason = reason;
        steps.call(ctx, STEP_CAPTURE);
    }
    return verdict;
}

INLINE int go(struct xdp_md *ctx, struct work *w, int step)
{
    steps.call(ctx, step);
    return leave(ctx, w, XDP_DROP, REASON_DROP_INTERNAL);
}

INLINE void count_target(u32 target, u32 bytes)
{
    struct target_counter *counter = target_counters.lookup(&target);

    if (counter) {
        counter->packets++;
        counter->bytes += bytes;
    }
}
