// SPDX-License-Identifier: GPL-2.0-only
//
// The maps of the path. Those shared with user space exist before the program is compiled (the loader makes and pins
// them, sizes included, see ebpf/map_specs.py): BCC opens the pins. The last two belong to one version of the program.

#define PINNED(kind, key_type, value_type, name) BPF_TABLE_PINNED(kind, key_type, value_type, name, 1, PIN_DIRECTORY #name)

// BCC's own macro for ring buffers knows no pins; the members are the calls that BCC rewrites.
#define PINNED_RING(name)                                                                                              \
    struct name##_ring {                                                                                               \
        u32 key;                                                                                                       \
        u32 leaf;                                                                                                      \
        int (*ringbuf_output)(void *, u64, u64);                                                                       \
        void *(*ringbuf_reserve)(u64);                                                                                 \
        void (*ringbuf_discard)(void *, u64);                                                                          \
        void (*ringbuf_submit)(void *, u64);                                                                           \
        u64 (*ringbuf_query)(u64);                                                                                     \
        u32 max_entries;                                                                                               \
    };                                                                                                                 \
    __attribute__((section("maps/ringbuf:" PIN_DIRECTORY #name))) struct name##_ring name = {.max_entries = 1}

PINNED("array", u32, struct settings, settings);
PINNED("hash", struct endpoint, u32, services);
PINNED("array", u32, struct service, service_table);
PINNED("array", u32, struct target, targets);
PINNED("array_of_maps", u32, u32, tables);
PINNED("hash", struct endpoint, u32, nat_return);
PINNED("array", u32, u64, claims);
PINNED("lru_hash", struct flow_key, struct connection, connections);
PINNED("lru_hash", struct flow_key, struct connection, half_open);
PINNED("lru_hash", struct fragment_key, struct fragment, fragments);
PINNED("lru_hash", struct persistence_key, struct persistence, persistence);
PINNED("hash", struct address_key, struct address_entry, addresses);
PINNED("array", u32, u64, lease);
PINNED("array", u32, struct node_entry, nodes);
PINNED("hash", struct node_path_key, struct node_path, node_paths);
PINNED("array", u32, struct interface_mac, interface_macs);
PINNED("hash", struct mac_key, u32, peer_macs);
PINNED("hash", struct address_key, u32, peer_addresses);
PINNED("array", u32, struct target_load, target_load);
PINNED("percpu_array", u32, struct target_counter, target_counters);
PINNED("percpu_array", u32, struct service_counter, service_counters);
PINNED("percpu_array", u32, struct reason_counter, reason_counters);
PINNED("array", u32, struct capture_control, capture_control);
PINNED("array", u32, struct explain, explain);
PINNED_RING(records);
PINNED_RING(captures);
