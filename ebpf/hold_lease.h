// SPDX-License-Identifier: GPL-2.0-only
//
// May this gateway answer for that VIP? ARP requests and neighbour solicitations for a VIP reach the kernel only while
// the gateway holds it and its lease lies in the future. The ring renews the lease each time the token passes, so a
// daemon that hangs or dies stops owning by itself.

#include "parse_packet.h"

struct arp_ipv4 {
    __be16 hardware;
    __be16 protocol;
    u8 hardware_length;
    u8 protocol_length;
    __be16 operation;
    u8 sender_mac[6];
    u8 sender[4];
    u8 target_mac[6];
    u8 target[4];
};

struct neighbour_solicitation {
    struct icmp6hdr icmp;
    __be32 target[4];
};

#define ARP_REQUEST 1

// The VIP in w->address: true unless it is a VIP that may not be answered for now.
INLINE bool holds(struct work *w)
{
    struct address_entry *entry = addresses.lookup(&w->address);
    u64 until, *node_lease;
    u32 zero = 0;

    if (!entry || !(entry->flags & ADDRESS_VIP))
        return true;
    if (!(entry->flags & ADDRESS_HELD))
        return false;
    until = entry->lease_until_ns;
    node_lease = lease.lookup(&zero);
    if (!until && node_lease)
        until = *node_lease;
    return bpf_ktime_get_ns() < until;
}

INLINE int answer_neighbour(struct xdp_md *ctx, struct work *w)
{
    if (!holds(w))
        return leave(ctx, w, XDP_DROP, REASON_DROP_LEASE_EXPIRED);
    return leave(ctx, w, XDP_PASS, REASON_PASS_NEIGHBOUR);
}

INLINE int step_arp(struct xdp_md *ctx, struct work *w)
{
    struct arp_ipv4 *arp = packet_at(ctx, w->l3 & L3_OFFSET_MASK);
    __be32 target;

    if (PAST_END(ctx, arp) || arp->operation != bpf_htons(ARP_REQUEST) || arp->protocol != bpf_htons(ETH_P_IP))
        return leave(ctx, w, XDP_PASS, REASON_PASS_NEIGHBOUR);
    __builtin_memcpy(&target, arp->target, 4);
    set_mapped(w->address.address, target);
    return answer_neighbour(ctx, w);
}

INLINE int step_solicitation(struct xdp_md *ctx, struct work *w)
{
    struct neighbour_solicitation *solicitation = packet_at(ctx, w->l4 & L4_OFFSET_MASK);

    if (PAST_END(ctx, solicitation))
        return leave(ctx, w, XDP_PASS, REASON_PASS_NEIGHBOUR);
    copy_address(w->address.address, solicitation->target);
    return answer_neighbour(ctx, w);
}
