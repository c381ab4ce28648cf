// SPDX-License-Identifier: GPL-2.0-only
//
// For the benchmark only: the empty program that costs are net of.

#include <uapi/linux/bpf.h>

#define STEP(name) int name(struct xdp_md *ctx)

STEP(send_back)
{
    return XDP_TX;
}
