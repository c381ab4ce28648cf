// SPDX-License-Identifier: GPL-2.0-only
//
// For the benchmark only: about the least a balancer can do (IPv4 TCP, `tunnel`): service from a hash, connection from
// the LRU table, else a slot of the table, two counters, the outer header. No checks, no features. What a machine
// needs for this is the yardstick that makes figures of different machines comparable.

#include "fast_path.h"

STEP(yardstick)
{
    struct iphdr *ip = packet_at(ctx, ETHERNET_BYTES);
    struct tcphdr *tcp = (void *)(ip + 1);
    struct endpoint endpoint = {.protocol = IPPROTO_TCP};
    struct next_hop hop = {};
    struct flow_key key = {.protocol = IPPROTO_TCP};
    struct connection *c = 0;
    struct settings *s;
    struct target *t;
    u32 zero = 0, *service, target;
    u64 hash;

    if (PAST_END(ctx, tcp))
        return XDP_DROP;
    set_mapped(endpoint.address, ip->daddr);
    endpoint.port = tcp->dest;
    service = services.lookup(&endpoint);
    s = settings.lookup(&zero);
    if (!service || !s)
        return XDP_PASS;
    set_mapped(key.source, ip->saddr);
    set_mapped(key.destination, ip->daddr);
    __builtin_memcpy(&key.source_port, tcp, 4);
    hash = hash_flow4(s, ip->saddr, ip->daddr, ports_of(&key), IPPROTO_TCP);
    if (!(((u8 *)tcp)[13] & TCP_SYN))
        c = connections.lookup(&key);
    target = c ? c->target : slot_value(*service, slot_of(hash, TABLE_SLOTS_DEFAULT));
    t = targets.lookup(&target);
    if (!t)
        return XDP_DROP;
    count_target(target, frame_bytes(ctx));
    note(REASON_SENT_FORWARDED, frame_bytes(ctx));
    hop_of_target(&hop, t);
    if (put_tunnel(ctx, s, ETHERNET_BYTES, bpf_ntohs(ip->tot_len), false, hash, t->address, &hop))
        return XDP_DROP;
    return XDP_TX;
}
