// SPDX-License-Identifier: GPL-2.0-only
//
// What user space and the packet path share: keys, values, records, and the numbers in them.
//
// This file is the one definition. ebpf/layout.py names the same fields as numpy types; the loader turns those into
// static assertions on size, offset and constants, so that a difference refuses to compile instead of misreading.
//
// Conventions: addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; addresses and ports are in network byte order,
// everything else in host byte order; padding is zero (keys are compared as bytes). Ids are allocated for the whole
// cluster, so an entry or record means the same on every gateway; 0 is never a valid service, target or node.

#define LAYOUT_VERSION 1

#define SERVICE_COUNT_MAX 4096
#define TARGET_COUNT_MAX 16384
#define NODE_COUNT_MAX 256
#define INTERFACE_COUNT_MAX 256

// Lookup tables: one array of lines per service, a line is one cache line of slots.
#define TABLE_LINE_SLOTS 32
#define TABLE_LINES 2049
#define TABLE_SLOTS_DEFAULT 65537
// The table of this "service" holds node ids instead of target ids: the steering table.
#define STEERING_TABLE 0
// A slot whose target differs from an earlier table's: connections of that table may still live elsewhere.
#define SLOT_MOVED 0x8000
#define SLOT_TARGET_MASK 0x7fff

// One bit per endpoint of `services` and `nat_return`, by its hash: what has none is nobody's, without another look.
#define CLAIM_WORDS 2048
#define CLAIM_BITS_LOG2 17

// How a service reaches its targets.
#define METHOD_DSR 1
#define METHOD_TUNNEL 2
#define METHOD_NAT 3
#define METHOD_LOCAL 4

// How a service chooses.
#define SCHEDULER_MAGLEV 1
#define SCHEDULER_ROUND_ROBIN 2
#define SCHEDULER_LEAST_CONNECTIONS 3
#define SCHEDULER_SOURCE 4

// Which connections a service replicates.
#define REPLICATE_NONE 0
#define REPLICATE_ESTABLISHED 1
#define REPLICATE_ALL 2

// State of a connection as seen by a gateway that may see one direction only.
#define STATE_SYN 1
#define STATE_UDP_ONCE 2
#define STATE_ESTABLISHED 3
#define STATE_UDP 4
#define STATE_FIN_CLIENT 5
#define STATE_FIN_SERVER 6
#define STATE_CLOSING 7
#define STATE_RESET 8

// settings.flags: what the configuration makes use of; a lookup for something unused is never paid for.
#define SETTING_ANY_PORT 0x1
#define SETTING_NAT 0x2
#define SETTING_ROUTED 0x4
#define SETTING_STEERING 0x8
#define SETTING_RECORDS 0x10

// service.flags
// The target of a new connection is not a function of the packet: remember it from the first packet on. Set it for
// round robin, least connections, persistence, nat, and targets with a maximum of connections.
#define SERVICE_REMEMBER_NEW 0x1
// Connections of a dead backend: choose again (else TCP is reset).
#define SERVICE_RECHOOSE_DEAD 0x2
// New connections belong to a node of the steering table, not to whoever receives them.
#define SERVICE_STEERED 0x4

// target.flags
#define TARGET_ALIVE 0x1
#define TARGET_DRAINING 0x2
// mac, source_mac and ifindex are valid; otherwise the path asks the kernel's routing table per packet.
#define TARGET_RESOLVED 0x4
// At its maximum of connections by user space's count.
#define TARGET_FULL 0x8
// Active connections are counted in target_load (needed by least connections and connections_max).
#define TARGET_COUNTED 0x10

// address_entry.flags
#define ADDRESS_VIP 0x1
// The gateway's own address: never balanced, never steered.
#define ADDRESS_OWN 0x2
// A VIP this gateway holds; it answers for it while the lease lasts.
#define ADDRESS_HELD 0x4

// node_entry.flags
#define NODE_MEMBER 0x1

// record.kind
#define RECORD_OPENED 1
#define RECORD_CLOSED 2
#define RECORD_MOVED 3

#define CAPTURE_BYTES 256

struct flow_key {
    __be32 source[4];
    __be32 destination[4];
    __be16 source_port;
    __be16 destination_port;
    __u8 protocol;
    __u8 pad[3];
};

// An address with port and protocol: a service as clients see it, or a nat backend as its answers show it.
// Port 0 is any port; address, port and protocol all zero in `services` is "routed through me".
struct endpoint {
    __be32 address[4];
    __be16 port;
    __u8 protocol;
    __u8 pad;
};

// The client's direction is the key of a connection; a nat answer finds it through `nat_return`, so that one entry
// (and one record) carries both directions. Routed connections have their endpoints sorted instead.
struct connection {
    __u32 last_seen_s;  // CLOCK_MONOTONIC of this gateway, whole seconds
    __u16 target;
    __u8 owner;  // node that handles the connection
    __u8 state;
    __u16 service;
    __u8 origin;  // node that accepted it; 0: not known
    __u8 pad;
    __u32 opened_s;  // as last_seen_s
};

// What a gateway tells its peers. A receiver writes key and value into its own map, times replaced by its own.
struct record {
    struct flow_key key;
    struct connection value;
    __u8 kind;
    __u8 node;
    __u8 replicate;
    __u8 pad[5];
};

struct service {
    __be32 address[4];
    __be16 port;
    __u8 protocol;
    __u8 method;
    __u8 scheduler;
    __u8 replicate;
    __u16 flags;
    __u32 table_slots;  // 0: no target at all
    __u32 persistence_s;
    __u8 pad[32];
};

struct target {
    __be32 address[4];
    __u8 mac[6];
    __u8 source_mac[6];
    __u32 ifindex;
    __be16 port;  // nat: 0 keeps the client's destination port
    __u16 service;
    __u8 flags;
    __u8 method;  // of its service, for the short way
    __u16 mtu;  // of the way out; 0: not known, not checked
    __u32 connections_max;  // 0: no maximum
    __u16 weight;
    __u16 nat_next;  // next target with the same backend address, port and protocol; 0: none
    __be16 vlan;  // tag to leave with; 0: untagged
    __u8 pad[14];
};

struct settings {
    __u64 hash_seed[2];  // the cluster's, equal on every gateway, kept secret
    __u64 epoch;  // add one after any change of services, targets, tables: forgets the short-cuts
    __u32 flags;
    __u8 node;
    __u8 pad[3];
    __be32 tunnel_source4;
    __be32 tunnel_vary4;  // bits of the outer source that vary by flow
    __be32 tunnel_source6[4];
    __u32 tunnel_vary6;  // bits of the last word
    __u32 admissions_per_s;  // unproven connections that may enter the table, per CPU; 0: no limit
    __u32 layout;
    __u8 pad2[12];
};

struct table_line {
    __u16 slot[TABLE_LINE_SLOTS];
};

struct address_entry {
    __u64 lease_until_ns;  // CLOCK_MONOTONIC; 0: the node's lease holds
    __u32 flags;
    __u32 pad;
};

struct node_entry {
    __be32 address[4];  // for steering by tunnel
    __u32 flags;
    __u32 pad;
};

// How a peer is reached on the segment of an interface.
struct node_path_key {
    __u32 ifindex;
    __u32 node;
};

struct node_path {
    __u8 mac[6];
    __u8 source_mac[6];
    __u32 pad;
};

// The MAC address of an interface the path is attached to, at ifindex modulo INTERFACE_COUNT_MAX. Unicast frames for
// another address are not ours: a switch that floods them, or a promiscuous port, shows them to every gateway.
struct interface_mac {
    __u32 ifindex;  // 0: not known, not checked
    __u8 mac[6];
    __u8 pad[2];
};

struct mac_key {
    __u8 mac[6];
    __u8 pad[2];
};

struct address_key {
    __be32 address[4];
};

struct target_counter {
    __u64 packets;
    __u64 bytes;
    __u64 opened;
    __u64 closed;
    __u64 refused;  // nat: resets that answered a first packet
    __u64 unreachable;  // ICMP "unreachable" about it: from its side (nat), or to the outer header (tunnel)
};

struct service_counter {
    __u64 opened;
    __u64 refused;  // packets without a target
    __u64 steered;
    __u64 round;  // round robin's position on this CPU
};

struct reason_counter {
    __u64 packets;
    __u64 bytes;
};

struct target_load {
    __u32 active;
    __u32 pad;
};

struct fragment_key {
    __be32 source[4];
    __be32 destination[4];
    __be32 id;
    __u8 protocol;
    __u8 pad[3];
};

struct fragment {
    __be16 source_port;
    __be16 destination_port;
    __u32 seen_s;
};

struct persistence_key {
    __be32 client[4];
    __u16 service;
    __u16 pad;
};

struct persistence {
    __u32 seen_s;
    __u16 target;
    __u16 pad;
};

struct capture {
    __u64 time_ns;
    __u32 length;  // of the packet as it leaves
    __u16 kept;  // bytes of it here
    __u8 verdict;  // XDP_*
    __u8 reason;
    __u32 ifindex;  // where it came in
    __u16 service;
    __u16 target;
    __u8 bytes[CAPTURE_BYTES];
};

// The mirror: on while until_ns lies in the future; the path clears it afterwards.
struct capture_control {
    __u64 until_ns;  // CLOCK_MONOTONIC
    __u32 service;  // 0: every packet
    __u32 pad;
};

// What lb_where found out about a packet.
struct explain {
    __u8 verdict;
    __u8 reason;
    __u16 service;
    __u16 target;
    __u8 owner;
    __u8 state;  // 0: no connection known
};
