// SPDX-License-Identifier: GPL-2.0-only
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include "reasons.h"
#include "layout.h"
#include "maps.h"

#define STEP(name) int name(struct xdp_md *ctx)
BPF_PROG_ARRAY(steps, 16);

STEP(lb_entry)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *ethernet = data;
    if ((void *)(ethernet + 1) > end)
        return XDP_DROP;
    steps.call(ctx, 1);
    return XDP_PASS;
}

STEP(lb_other)
{
    u32 zero = 0;
    if (!settings.lookup(&zero))
        return XDP_DROP;
    return XDP_PASS;
}
