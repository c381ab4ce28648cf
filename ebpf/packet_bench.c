// SPDX-License-Identifier: GPL-2.0-only
//
// For the benchmark only: makes one BPF_PROG_TEST_RUN with many repetitions honest. Before each repetition it puts the
// packet back into its first state (taking off what the program under test put on), gives it the addresses of one of
// many flows, and tail-calls the program, whose verdict is the result.

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>

#define STEP(name) int name(struct xdp_md *ctx)
#define HEADER_WORDS 10
#define PICK_RANDOM 0
#define PICK_NEXT 1

struct bench_config {
    u64 header[HEADER_WORDS];  // Ethernet, IP and the beginning of the transport header
    u64 state;                 // of the generator
    u64 mask;                  // flow numbers
    u32 pick;
    u32 length;         // of the whole frame
    u32 address_offset;  // of the last 4 bytes of the source address
    u32 port_offset;    // of the source port
};

BPF_TABLE_PINNED("array", u32, struct bench_config, bench_config, 1, PIN_DIRECTORY "bench_config");
BPF_TABLE_PINNED("prog", u32, u32, bench_next, 1, PIN_DIRECTORY "bench_next");

static __always_inline u32 pick_flow(struct bench_config *c)
{
    if (c->pick == PICK_NEXT)
        return c->state++ & c->mask;
    c->state = c->state * 6364136223846793005ull + 1442695040888963407ull;
    return (c->state >> 33) & c->mask;
}

static __always_inline int restore(struct xdp_md *ctx, struct bench_config *c)
{
    int excess = (int)(ctx->data_end - ctx->data) - (int)c->length;

    return excess ? bpf_xdp_adjust_head(ctx, excess) : 0;
}

STEP(bench_wrap)
{
    u32 zero = 0, flow;
    struct bench_config *c = bench_config.lookup(&zero);
    void *data, *end;
    __be32 *address;
    __be16 *port;
    u64 *words;

    if (!c || restore(ctx, c))
        return XDP_ABORTED;
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    words = data;
    if ((void *)(words + HEADER_WORDS) > end)
        return XDP_ABORTED;
#pragma unroll
    for (int i = 0; i < HEADER_WORDS; i++)
        words[i] = c->header[i];
    flow = pick_flow(c);
    address = data + (c->address_offset & 0x3f);
    port = data + (c->port_offset & 0x3f);
    if ((void *)(address + 1) > end || (void *)(port + 1) > end)
        return XDP_ABORTED;
    *address ^= bpf_htonl(flow);
    *port = bpf_htons(1024 + (flow & 0x3fff));
    bench_next.call(ctx, 0);
    return XDP_ABORTED;
}
