// SPDX-License-Identifier: GPL-2.0-only
//
// Takes the outer header off IP-in-IP packets, any family in any, and lets the kernel go on with the inner one: what a
// tunnel device (ipip, ip6tnl, sit) does on a backend whose kernel has one.

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

#define BE16(x) __builtin_bswap16(x)

// The Ethernet type of what is inside, 0 if the protocol is not a tunnel's.
static inline __be16 inner_type(__u8 protocol)
{
    if (protocol == IPPROTO_IPIP)
        return BE16(ETH_P_IP);
    return protocol == IPPROTO_IPV6 ? BE16(ETH_P_IPV6) : 0;
}

int decapsulate(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *ether = data, kept;
    __be16 type = 0;
    int outer = 0;

    if (data + sizeof(*ether) + sizeof(struct ipv6hdr) > end)
        return XDP_PASS;
    if (ether->h_proto == BE16(ETH_P_IP)) {
        struct iphdr *ip = data + sizeof(*ether);
        outer = ip->ihl == 5 ? sizeof(*ip) : 0;
        type = inner_type(ip->protocol);
    } else if (ether->h_proto == BE16(ETH_P_IPV6)) {
        struct ipv6hdr *ip6 = data + sizeof(*ether);
        outer = sizeof(*ip6);
        type = inner_type(ip6->nexthdr);
    }
    if (!outer || !type)
        return XDP_PASS;

    kept = *ether;
    kept.h_proto = type;
    if (bpf_xdp_adjust_head(ctx, outer))
        return XDP_DROP;
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    if (data + sizeof(kept) > end)
        return XDP_DROP;
    *(struct ethhdr *)data = kept;
    return XDP_PASS;
}
