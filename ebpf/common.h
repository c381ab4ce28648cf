// SPDX-License-Identifier: GPL-2.0-only
//
// What every step uses: packet headers, the scratch area that carries a packet from step to step, the way out.

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "reasons.h"
#include "layout.h"
#include "maps.h"

#define REASON_ENUM(name, class, meaning) REASON_##name,
enum reason { REASONS(REASON_ENUM) REASON_COUNT };
#undef REASON_ENUM
_Static_assert(REASON_COUNT <= 64, "reason_counters is too small");

// A program of the path; the list of steps is in xdp_lb.c.
#define STEP(name) int name(struct xdp_md *ctx)
#define INLINE static __always_inline

enum step {
    STEP_ENTRY,
    STEP_PARSE,
    STEP_CONNECT,
    STEP_RETURN,
    STEP_FORWARD,
    STEP_TRANSLATE,
    STEP_ICMP,
    STEP_TRANSLATE_ICMP,
    STEP_ANSWER,
    STEP_STEER,
    STEP_NEIGHBOUR,
    STEP_CAPTURE,
    STEP_WHERE,
};
BPF_PROG_ARRAY(steps, 16);

// The verdict of a piece of a step: go on with the next, or leave with a reason. Never a bool.
enum way {
    GO_ON = 0,
    LEAVE = 1,
    GO_TRANSLATE = 2,
    GO_ANSWER = 3,
    GO_STEER = 4,
    GO_DROP = 5,
};

#define VLAN_TAGS_MAX 2
#define EXTENSION_HEADERS_MAX 6
#define CHOICES_MAX 32
#define NAT_CHAIN_MAX 4
#define L3_OFFSET_MASK 0x1f
#define L4_OFFSET_MASK 0x1ff
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define MAPPED_PREFIX bpf_htonl(0xffff)
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET 0x1fff
#define IPV4_DONT_FRAGMENT 0x4000
#define ETHERNET_BYTES 14
#define TUNNEL_HOPS 64
// Elements of an array that may be mapped are aligned to cache lines; those of a per-CPU array are not.
#define F_MMAPABLE 0x400

// work.flags
#define WORK_V6 0x1
#define WORK_FRAGMENT_FIRST 0x2
#define WORK_FRAGMENT_LATER 0x4
#define WORK_FROM_PEER 0x8
#define WORK_DRY 0x10
#define WORK_ROUTED 0x20
#define WORK_RETURN 0x40
#define WORK_ICMP_ERROR 0x80
#define WORK_SWAPPED 0x100
// From a nat backend's endpoint, of no connection known here yet: it may turn out to be an answer.
#define WORK_MAYBE_ANSWER 0x200
// Out of a peer's tunnel; always WORK_FROM_PEER as well.
#define WORK_UNWRAPPED 0x400

// What lb_answer is to make.
#define ANSWER_ECHO 1
#define ANSWER_TOO_BIG 2
#define ANSWER_TIME_EXCEEDED 3
#define ANSWER_RESET 4

// Carries a packet from step to step, per CPU: a step runs to its end before the next packet. Every field that a step
// reads is written by an earlier step of the same packet.
struct work {
    struct flow_key key;         // as the packet has it; for ICMP errors the client's direction of what is quoted
    struct flow_key connection;  // as `connections` has it
    struct connection entry;     // to be written
    __u64 hash;                  // of key
    __u32 length;                // of the frame as it came
    __u32 ifindex;
    __u16 flags;
    __u16 l3;  // offset of the IP header
    __u16 l4;  // offset of the transport header
    __u16 l3_length;  // of the whole IP packet
    __u16 payload;  // bytes after the transport header
    __u16 service;
    __u16 target;
    __u16 answer_mtu;
    __u8 protocol;
    __u8 tcp_flags;
    __u8 answer;
    __u8 node;  // to steer to
    __u8 reason;
    __u8 verdict;
    __u8 owner;
    __u8 state;
    __u16 inner_l3;  // ICMP errors: offsets of what is quoted
    __u16 inner_l4;
    struct endpoint endpoint;  // key scratch
    struct fragment_key fragment_key;
    struct fragment fragment;
    struct address_key address;
    struct persistence_key persistence_key;
    struct persistence persistence;
    struct bpf_fib_lookup route;
};
BPF_PERCPU_ARRAY(work_area, struct work, 1);

INLINE struct work *get_work(void)
{
    u32 zero = 0;

    return work_area.lookup(&zero);
}

INLINE u32 now_s(void)
{
    return bpf_ktime_get_coarse_ns() / 1000000000ull;
}

// Loads of the packet's bounds in assembly: left to itself, the compiler keeps the address of the field instead, and
// the verifier refuses a load through a context pointer that was added to.
INLINE void *packet_begin(struct xdp_md *ctx)
{
    void *begin;

    asm volatile("%0 = *(u32 *)(%1 + 0)" : "=r"(begin) : "r"(ctx));
    return begin;
}

INLINE void *packet_end(struct xdp_md *ctx)
{
    void *end;

    asm volatile("%0 = *(u32 *)(%1 + 4)" : "=r"(end) : "r"(ctx));
    return end;
}

INLINE u32 frame_bytes(struct xdp_md *ctx)
{
    return packet_end(ctx) - packet_begin(ctx);
}

INLINE void *packet_at(struct xdp_md *ctx, u32 offset)
{
    return packet_begin(ctx) + offset;
}

#define PAST_END(ctx, pointer) ((void *)((pointer) + 1) > packet_end(ctx))

INLINE void begin_work(struct xdp_md *ctx, struct work *w, u16 flags)
{
    w->flags = flags;
    w->length = frame_bytes(ctx);
    w->service = 0;
    w->target = 0;
    w->owner = 0;
    w->state = 0;
}

INLINE bool is_mapped(const __be32 *address)
{
    return address[0] == 0 && address[1] == 0 && address[2] == MAPPED_PREFIX;
}

// Multicast and the reserved rest above it: nobody's own address.
INLINE bool is_group(const __be32 *address)
{
    return is_mapped(address) ? bpf_ntohl(address[3]) >= 0xe0000000 : (bpf_ntohl(address[0]) >> 24) == 0xff;
}

INLINE void set_mapped(__be32 *address, __be32 v4)
{
    address[0] = 0;
    address[1] = 0;
    address[2] = MAPPED_PREFIX;
    address[3] = v4;
}

INLINE void copy_address(__be32 *to, const __be32 *from)
{
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
}

INLINE bool same_address(const __be32 *a, const __be32 *b)
{
    return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

INLINE void copy_mac(u8 *to, const u8 *from)
{
    __builtin_memcpy(to, from, 6);
}
