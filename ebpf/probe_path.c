// SPDX-License-Identifier: GPL-2.0-only
//
// The way of health checks to backends of `dsr` and `tunnel` services: a check is to reach the VIP on one backend, over
// the same hops as a client's packet, although the VIP may be an address of this very host.
//
// A probe's socket is connected to the backend's own address and carries PROBE_MARK plus the target's id, so that the
// kernel routes it to the backend. On its way out (traffic control, egress) the destination becomes the VIP, and for
// `tunnel` the outer header goes in front; on the answer's way in the source VIP becomes the backend's address again.
// The socket sees nothing of it, and no packet with a source address of our own reaches the kernel's routing, which
// would refuse it. Packets without the mark cost one comparison on the way out, and one lookup on the way in.

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "layout.h"
#include "maps.h"

#define STEP(name) int name(struct __sk_buff *skb)
#define INLINE static __always_inline

#define PROBE_MARK 0x4c420000
#define PROBE_MARK_MASK 0xffff0000
#define PROBE_FLOW_COUNT_MAX 16384
#define L3_OFFSET ETH_HLEN
#define MAPPED_PREFIX bpf_htonl(0xffff)
#define TUNNEL_HOPS 64
#define ICMP_ECHO_REQUEST 8
#define ICMP_ECHO_ANSWER 0
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_ANSWER 129

// What an answer looks like when it comes in, and the backend's own address, which the probe's socket expects.
BPF_TABLE("lru_hash", struct flow_key, struct address_key, probe_flows, PROBE_FLOW_COUNT_MAX);

struct echo {
    u8 type;
    u8 code;
    __be16 sum;
    __be16 id;
};

struct probe {
    struct flow_key key;
    u16 l4;
    bool v6;
};

INLINE bool is_mapped(const __be32 *address)
{
    return !address[0] && !address[1] && address[2] == MAPPED_PREFIX;
}

INLINE void set_mapped(__be32 *address, __be32 v4)
{
    address[0] = address[1] = 0;
    address[2] = MAPPED_PREFIX;
    address[3] = v4;
}

INLINE bool same_address(const __be32 *a, const __be32 *b)
{
    return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

INLINE bool parse_ip(struct __sk_buff *skb, struct probe *p)
{
    struct ipv6hdr ip6;
    struct iphdr ip;

    if (skb->protocol == bpf_htons(ETH_P_IP)) {
        if (bpf_skb_load_bytes(skb, L3_OFFSET, &ip, sizeof(ip)) || ip.ihl < 5)
            return false;
        p->key.protocol = ip.protocol;
        set_mapped(p->key.source, ip.saddr);
        set_mapped(p->key.destination, ip.daddr);
        p->l4 = L3_OFFSET + ip.ihl * 4;
        return true;
    }
    if (skb->protocol != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, L3_OFFSET, &ip6, sizeof(ip6)))
        return false;
    p->v6 = true;
    p->key.protocol = ip6.nexthdr;
    __builtin_memcpy(p->key.source, &ip6.saddr, 16);
    __builtin_memcpy(p->key.destination, &ip6.daddr, 16);
    p->l4 = L3_OFFSET + sizeof(ip6);
    return true;
}

// Ports, or for an echo its id where the probing side has its port.
INLINE bool parse_ports(struct __sk_buff *skb, struct probe *p)
{
    struct echo echo;
    __be16 ports[2];

    if (p->key.protocol == IPPROTO_TCP || p->key.protocol == IPPROTO_UDP) {
        if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
            return false;
        p->key.source_port = ports[0];
        p->key.destination_port = ports[1];
        return true;
    }
    if (p->key.protocol != (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) ||
        bpf_skb_load_bytes(skb, p->l4, &echo, sizeof(echo)))
        return false;
    if (echo.type == (p->v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
        p->key.source_port = echo.id;
    else if (echo.type == (p->v6 ? ICMPV6_ECHO_ANSWER : ICMP_ECHO_ANSWER))
        p->key.destination_port = echo.id;
    else
        return false;
    return true;
}

// Corrects the transport's checksum for a changed address; echoes over IPv4 do not cover addresses.
INLINE int correct_sum(struct __sk_buff *skb, const struct probe *p, __be32 *from, __be32 *to)
{
    u64 flags = BPF_F_PSEUDO_HDR;
    u16 at;

    if (p->key.protocol == IPPROTO_TCP)
        at = __builtin_offsetof(struct tcphdr, check);
    else if (p->key.protocol == IPPROTO_UDP)
        at = __builtin_offsetof(struct udphdr, check);
    else
        at = __builtin_offsetof(struct echo, sum);
    if (p->key.protocol == IPPROTO_UDP)
        flags |= BPF_F_MARK_MANGLED_0;
    if (p->key.protocol == IPPROTO_ICMP)
        return 0;
    return bpf_l4_csum_replace(skb, p->l4 + at, 0, bpf_csum_diff(from, 16, to, 16, 0), flags);
}

// Replaces the address at `at4` or `at6` of the IP header.
INLINE int replace_address(struct __sk_buff *skb, const struct probe *p, __be32 *from, __be32 *to, u16 at4, u16 at6)
{
    if (correct_sum(skb, p, from, to))
        return -1;
    if (p->v6)
        return bpf_skb_store_bytes(skb, L3_OFFSET + at6, to, 16, 0);
    if (bpf_l3_csum_replace(skb, L3_OFFSET + __builtin_offsetof(struct iphdr, check), from[3], to[3], 4))
        return -1;
    return bpf_skb_store_bytes(skb, L3_OFFSET + at4, &to[3], 4, 0);
}

INLINE u16 header_sum(struct iphdr *ip)
{
    u32 sum = bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0);

    sum = (sum & 0xffff) + (sum >> 16);
    return ~((sum & 0xffff) + (sum >> 16));
}

// As fill_outer4 and fill_outer6 of the packet path, for the one family that a probe and its backend share.
INLINE int encapsulate4(struct __sk_buff *skb, const struct settings *s, const struct probe *p, __be32 destination)
{
    struct iphdr outer = {.version = 4, .ihl = 5, .ttl = TUNNEL_HOPS, .protocol = IPPROTO_IPIP};

    outer.tot_len = bpf_htons(skb->len - ETH_HLEN + sizeof(outer));
    outer.saddr = s->tunnel_source4 | (bpf_htonl(p->key.source_port) & s->tunnel_vary4);
    outer.daddr = destination;
    outer.check = header_sum(&outer);
    if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
                            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
        return -1;
    return bpf_skb_store_bytes(skb, L3_OFFSET, &outer, sizeof(outer), 0);
}

INLINE int encapsulate6(struct __sk_buff *skb, const struct settings *s, const struct probe *p, __be32 *destination)
{
    struct ipv6hdr outer = {.version = 6, .hop_limit = TUNNEL_HOPS, .nexthdr = IPPROTO_IPV6};
    __be32 source[4];

    __builtin_memcpy(source, s->tunnel_source6, 16);
    source[3] |= bpf_htonl(p->key.source_port) & s->tunnel_vary6;
    outer.payload_len = bpf_htons(skb->len - ETH_HLEN);
    __builtin_memcpy(&outer.saddr, source, 16);
    __builtin_memcpy(&outer.daddr, destination, 16);
    if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
                            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
        return -1;
    return bpf_skb_store_bytes(skb, L3_OFFSET, &outer, sizeof(outer), 0);
}

INLINE int encapsulate(struct __sk_buff *skb, const struct probe *p, struct target *t)
{
    u32 zero = 0;
    struct settings *s = settings.lookup(&zero);

    if (!s)
        return -1;
    return p->v6 ? encapsulate6(skb, s, p, t->address) : encapsulate4(skb, s, p, t->address[3]);
}

INLINE void remember_answer(const struct probe *p, const struct service *service, const struct target *t)
{
    struct flow_key answer = {};
    struct address_key backend;

    __builtin_memcpy(answer.source, service->address, 16);
    __builtin_memcpy(answer.destination, p->key.source, 16);
    answer.source_port = p->key.destination_port;
    answer.destination_port = p->key.source_port;
    answer.protocol = p->key.protocol;
    __builtin_memcpy(backend.address, t->address, 16);
    probe_flows.update(&answer, &backend);
}

// A marked packet that cannot go this way is dropped: a check that took another way would say what is not known.
STEP(probe_send)
{
    u32 id = skb->mark & ~PROBE_MARK_MASK, service_id;
    struct probe p = {};
    struct service *service;
    struct target *t;
    u16 at4 = __builtin_offsetof(struct iphdr, daddr), at6 = __builtin_offsetof(struct ipv6hdr, daddr);

    if ((skb->mark & PROBE_MARK_MASK) != PROBE_MARK)
        return TC_ACT_UNSPEC;
    t = targets.lookup(&id);
    if (!t || !parse_ip(skb, &p) || !parse_ports(skb, &p) || !same_address(p.key.destination, t->address))
        return TC_ACT_SHOT;
    service_id = t->service;
    service = service_table.lookup(&service_id);
    if (!service || is_mapped(service->address) == p.v6 || (t->method != METHOD_DSR && t->method != METHOD_TUNNEL))
        return TC_ACT_SHOT;
    remember_answer(&p, service, t);
    if (replace_address(skb, &p, t->address, service->address, at4, at6))
        return TC_ACT_SHOT;
    if (t->method == METHOD_TUNNEL && encapsulate(skb, &p, t))
        return TC_ACT_SHOT;
    return TC_ACT_UNSPEC;
}

STEP(probe_receive)
{
    struct probe p = {};
    struct address_key source = {};
    struct address_entry *entry;
    struct address_key *backend;
    u16 at4 = __builtin_offsetof(struct iphdr, saddr), at6 = __builtin_offsetof(struct ipv6hdr, saddr);

    if (!parse_ip(skb, &p))
        return TC_ACT_UNSPEC;
    __builtin_memcpy(source.address, p.key.source, 16);
    entry = addresses.lookup(&source);
    if (!entry || !(entry->flags & ADDRESS_VIP) || !parse_ports(skb, &p))
        return TC_ACT_UNSPEC;
    backend = probe_flows.lookup(&p.key);
    if (!backend)
        return TC_ACT_UNSPEC;
    if (replace_address(skb, &p, source.address, backend->address, at4, at6))
        return TC_ACT_SHOT;
    return TC_ACT_UNSPEC;
}
