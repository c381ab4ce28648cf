// SPDX-License-Identifier: GPL-2.0-only
//
// The short ways, for plain packets (no VLAN tag, no options, no fragment) to a `dsr` or `tunnel` target that is alive
// and resolved, or to this node itself; everything else takes the full path. In order:
//   a flow that was looked up within the last second: packet, settings, flow, target, counter, one cache line each;
//   an established connection of this node, in the large table;
//   the first packet of a connection whose target is a function of the packet: service, table, target.
// What belongs to a `nat` target goes straight to lb_translate, what belongs to another node straight there.
// Each decides as the full path would; none changes anything before the packet is sure to be sent.

#include "connect_flow.h"
#include "forward_packet.h"
#include "steer_packet.h"

#define TCP_CONTROL (TCP_FIN | TCP_SYN | TCP_RST)
// A short way's answer besides a target.
#define NO_TARGET 0
#define TO_THIS_NODE 0xffffffff

struct plain_packet {
    u64 hash;
    u32 ports;
    u16 l3_length;
    u8 protocol;
    bool v6;
    bool first;     // TCP SYN
    bool returned;  // answer of a nat backend
    u16 steered;    // service of a flow that belongs to another node
};

// Protocol, ports and whether it is a first packet; false for the other packets that change a connection's state.
INLINE bool plain_transport(struct xdp_md *ctx, void *l4, u16 l4_length, struct plain_packet *p)
{
    struct tcphdr *tcp = l4;
    struct udphdr *udp = l4;

    if (p->protocol == IPPROTO_TCP) {
        u8 control;

        if (PAST_END(ctx, tcp) || l4_length < sizeof(*tcp))
            return false;
        control = ((u8 *)tcp)[13] & (TCP_CONTROL | TCP_ACK);
        p->first = control == TCP_SYN;
        if (!p->first && (control & TCP_CONTROL))
            return false;
    } else if (p->protocol != IPPROTO_UDP || PAST_END(ctx, udp) || l4_length < sizeof(*udp)) {
        return false;
    }
    __builtin_memcpy(&p->ports, l4, 4);
    return true;
}

INLINE bool plain_ipv4(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct iphdr *ip = packet_at(ctx, ETHERNET_BYTES);

    if (PAST_END(ctx, ip) || *(u8 *)ip != 0x45)
        return false;
    if (ip->frag_off & bpf_htons(IPV4_OFFSET | IPV4_MORE_FRAGMENTS))
        return false;
    p->l3_length = bpf_ntohs(ip->tot_len);
    p->protocol = ip->protocol;
    if (ETHERNET_BYTES + p->l3_length > frame_bytes(ctx) || p->l3_length < sizeof(*ip))
        return false;
    if (!plain_transport(ctx, ip + 1, p->l3_length - sizeof(*ip), p))
        return false;
    p->hash = hash_flow4(s, ip->saddr, ip->daddr, p->ports, p->protocol);
    return true;
}

INLINE bool plain_ipv6(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct ipv6hdr *ip = packet_at(ctx, ETHERNET_BYTES);
    u32 total;

    if (PAST_END(ctx, ip) || (*(u8 *)ip >> 4) != 6)
        return false;
    total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
    if (ETHERNET_BYTES + total > frame_bytes(ctx))
        return false;
    p->l3_length = total;
    p->protocol = ip->nexthdr;
    p->v6 = true;
    if (!plain_transport(ctx, ip + 1, p->l3_length - sizeof(*ip), p))
        return false;
    p->hash = hash_flow6(s, (__be32 *)&ip->saddr, (__be32 *)&ip->daddr, p->ports, p->protocol);
    return true;
}

INLINE bool parse_plain(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p)
{
    struct ethhdr *ethernet = packet_at(ctx, 0);

    if (PAST_END(ctx, ethernet))
        return false;
    if (ethernet->h_proto == bpf_htons(ETH_P_IP))
        return plain_ipv4(ctx, s, p);
    return ethernet->h_proto == bpf_htons(ETH_P_IPV6) && plain_ipv6(ctx, s, p);
}

INLINE bool is_capturing(void)
{
    u32 zero = 0;
    struct capture_control *control = capture_control.lookup(&zero);

    return control && control->until_ns;
}

INLINE u32 find_recent(const struct settings *s, struct plain_packet *p)
{
    struct recent_flow *flow = recent_flow(s, p->hash);

    if (!flow || !is_fresh(flow) || (flow->flags & RECENT_UDP_ONCE))
        return NO_TARGET;
    p->returned = flow->flags & RECENT_RETURN;
    if (flow->flags & RECENT_STEERED)
        p->steered = flow->flags >> RECENT_SERVICE_SHIFT;
    return flow->flags & RECENT_LOCAL ? TO_THIS_NODE : flow->target;
}

INLINE bool plain_key(struct xdp_md *ctx, const struct plain_packet *p, struct flow_key *key)
{
    struct iphdr *ip4 = packet_at(ctx, ETHERNET_BYTES);
    struct ipv6hdr *ip6 = packet_at(ctx, ETHERNET_BYTES);

    __builtin_memcpy(&key->source_port, &p->ports, 4);
    key->protocol = p->protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
    if (p->v6) {
        if (PAST_END(ctx, ip6))
            return false;
        copy_address(key->source, (__be32 *)&ip6->saddr);
        copy_address(key->destination, (__be32 *)&ip6->daddr);
        return !is_mapped(key->source) && !is_mapped(key->destination);
    }
    if (PAST_END(ctx, ip4))
        return false;
    set_mapped(key->source, ip4->saddr);
    set_mapped(key->destination, ip4->daddr);
    return true;
}

INLINE u32 find_established(const struct settings *s, const struct plain_packet *p, struct flow_key *key)
{
    struct connection *c = connections.lookup(key);
    u32 now;

    if (!c || !is_open(c->state) || c->owner != s->node || !is_alive(c->service, c->target))
        return NO_TARGET;
    now = now_s();
    if (c->last_seen_s != now)
        c->last_seen_s = now;
    remember_flow(s, p->hash, c->target, 0);
    return c->target;
}

INLINE bool plain_destination(struct xdp_md *ctx, const struct plain_packet *p, struct endpoint *to)
{
    struct iphdr *ip4 = packet_at(ctx, ETHERNET_BYTES);
    struct ipv6hdr *ip6 = packet_at(ctx, ETHERNET_BYTES);

    to->port = ((const __be16 *)&p->ports)[1];
    to->protocol = p->protocol;
    to->pad = 0;
    if (p->v6) {
        if (PAST_END(ctx, ip6))
            return false;
        copy_address(to->address, (__be32 *)&ip6->daddr);
        return !is_mapped((__be32 *)&ip6->saddr) && !is_mapped(to->address);
    }
    if (PAST_END(ctx, ip4))
        return false;
    set_mapped(to->address, ip4->daddr);
    return true;
}

// As is_settled_first and choose_target for the first choice of a service that keeps no memory of first packets.
INLINE u32 find_first(struct xdp_md *ctx, const struct plain_packet *p)
{
    struct endpoint endpoint;
    struct service *service;
    struct target *t;
    u32 *id, slot;

    if (!plain_destination(ctx, p, &endpoint))
        return NO_TARGET;
    id = services.lookup(&endpoint);
    service = id ? service_table.lookup(id) : 0;
    if (!service || service->scheduler != SCHEDULER_MAGLEV || !service->table_slots)
        return NO_TARGET;
    if ((service->flags & (SERVICE_REMEMBER_NEW | SERVICE_STEERED)) || service->replicate == REPLICATE_ALL)
        return NO_TARGET;
    slot = slot_value(*id, slot_of(p->hash, service->table_slots));
    if (slot & SLOT_MOVED)
        return NO_TARGET;
    t = targets.lookup(&slot);
    return t && takes_new(t) && t->service == *id && !is_full(slot, t) ? slot : NO_TARGET;
}

INLINE u32 find_slowly(struct xdp_md *ctx, const struct settings *s, const struct plain_packet *p)
{
    struct endpoint to;
    struct flow_key key;

    if (p->first)
        return find_first(ctx, p);
    // The small table first: traffic that is not ours must not pay for a look into the large one.
    if (!plain_destination(ctx, p, &to) || !services.lookup(&to) || !plain_key(ctx, p, &key))
        return NO_TARGET;
    return find_established(s, p, &key);
}

INLINE u32 send_plain(struct xdp_md *ctx, const struct settings *s, const struct plain_packet *p, u32 id, int *verdict)
{
    struct target *t = targets.lookup(&id);
    u32 frame = frame_bytes(ctx);
    struct next_hop hop;
    u16 overhead;

    if (!t || (t->flags & (TARGET_ALIVE | TARGET_RESOLVED)) != (TARGET_ALIVE | TARGET_RESOLVED))
        return GO_ON;
    if (t->method != METHOD_TUNNEL && (t->method != METHOD_DSR || p->v6 == is_mapped(t->address)))
        return GO_ON;
    overhead = t->method == METHOD_TUNNEL ? tunnel_overhead(t->address) : 0;
    if (t->mtu && p->l3_length + overhead > t->mtu)
        return GO_ON;
    hop_of_target(&hop, t);
    count_target(id, frame);
    if (t->method == METHOD_TUNNEL ? put_tunnel(ctx, s, ETHERNET_BYTES, p->l3_length, p->v6, p->hash, t->address, &hop)
                                   : put_plain(ctx, ETHERNET_BYTES, p->v6, &hop)) {
        note(REASON_DROP_HEADROOM, frame);
        *verdict = XDP_DROP;
        return LEAVE;
    }
    *verdict = send(ctx, &hop);
    return LEAVE;
}

// `nat`: everything the full path would have found, for lb_translate. GO_ON if something is out of the ordinary.
INLINE u32 prepare_translation(struct xdp_md *ctx, struct work *w, const struct plain_packet *p, u32 id)
{
    struct target *t = targets.lookup(&id);
    struct service *service;
    u32 service_id;

    if (!t || !(t->flags & TARGET_ALIVE) || t->method != METHOD_NAT || !plain_key(ctx, p, &w->key))
        return GO_ON;
    service_id = t->service;
    service = service_table.lookup(&service_id);
    if (!service)
        return GO_ON;
    w->flags = (p->v6 ? WORK_V6 : 0) | (p->returned ? WORK_RETURN : 0);
    w->l3 = ETHERNET_BYTES;
    w->l4 = ETHERNET_BYTES + (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
    w->l3_length = p->l3_length;
    w->protocol = p->protocol;
    w->service = service_id;
    w->target = id;
    copy_address(w->connection.destination, service->address);
    w->connection.destination_port = service->port ? service->port : w->key.source_port;
    return GO_TRANSLATE;
}

// To the node a flow was handed to before, unless that has left or the packet comes from a peer.
INLINE u32 steer_plain(struct xdp_md *ctx, const struct plain_packet *p, u32 node, int *verdict)
{
    u32 service = p->steered, frame = frame_bytes(ctx);

    if (!is_member(node) || is_from_peer(ctx) || !put_peer(ctx, node))
        return GO_ON;
    count_steered(service);
    note(REASON_SENT_STEERED, frame);
    *verdict = XDP_TX;
    return LEAVE;
}

// Sends the packet and sets the verdict (LEAVE), or finds the target of a `nat` packet (GO_TRANSLATE), or GO_ON for
// the full path.
INLINE u32 take_short_way(struct xdp_md *ctx, const struct settings *s, struct plain_packet *p, u32 *id, int *verdict)
{
    u32 way;

    if (is_capturing() || !parse_plain(ctx, s, p))
        return GO_ON;
    *id = p->first ? NO_TARGET : find_recent(s, p);
    if (*id == TO_THIS_NODE) {
        note(REASON_PASS_LOCAL, frame_bytes(ctx));
        *verdict = XDP_PASS;
        return LEAVE;
    }
    if (p->steered)
        return steer_plain(ctx, p, *id, verdict);
    if (*id == NO_TARGET)
        *id = find_slowly(ctx, s, p);
    if (*id == NO_TARGET)
        return GO_ON;
    way = p->returned ? GO_ON : send_plain(ctx, s, p, *id, verdict);
    return way == LEAVE ? LEAVE : GO_TRANSLATE;
}
