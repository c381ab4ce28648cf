// SPDX-License-Identifier: GPL-2.0-only
//
// Passes everything: the far end of a veth pair needs some program, or frames sent by XDP_TX or redirect are lost.

#include <uapi/linux/bpf.h>

#define STEP(name) int name(struct xdp_md *ctx)

STEP(pass_all)
{
    return XDP_PASS;
}
