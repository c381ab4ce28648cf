// SPDX-License-Identifier: GPL-2.0-only
//
// Why a packet left the path where it did, and what is worth counting on the way: the single list. The C enum, the
// Python names (ebpf/reasons.py) and the table in docs/packet-path.md come from here.
//
// REASON(name, class, meaning). Classes: pass = handed to the kernel untouched; sent = answered or forwarded off the
// short way; drop = dropped, normal in small numbers; alarm = dropped or lost, someone should look; note = counted
// besides the packet's own verdict.

#define REASONS(REASON)                                                                                                \
    REASON(NONE, note, "unused")                                                                                       \
    REASON(PASS_NOT_IP, pass, "neither IPv4 nor IPv6 nor ARP")                                                         \
    REASON(PASS_OTHER_HOST, pass, "unicast frame for another MAC address, flooded by a switch")                        \
    REASON(PASS_NOT_OURS, pass, "no service matches")                                                                  \
    REASON(PASS_PROTOCOL, pass, "a protocol that is not balanced")                                                     \
    REASON(PASS_OWN_ADDRESS, pass, "to or from an address of the gateway itself")                                      \
    REASON(PASS_LOCAL, pass, "connection of a local service that belongs to this node")                                \
    REASON(PASS_NEIGHBOUR, pass, "ARP or neighbour discovery the kernel may answer")                                   \
    REASON(PASS_ICMP, pass, "ICMP that concerns no service")                                                           \
    REASON(PASS_NEIGHBOUR_UNKNOWN, pass, "translated; the kernel resolves the next hop and sends it")                  \
    REASON(SENT_FORWARDED, sent, "forwarded to a backend")                                                             \
    REASON(SENT_RETURNED, sent, "answer of a nat backend, translated back")                                            \
    REASON(SENT_STEERED, sent, "handed to the node its connection belongs to")                                         \
    REASON(SENT_STEERED_TUNNEL, sent, "as above, by tunnel: no common segment")                                        \
    REASON(SENT_ECHO, sent, "echo request to a VIP answered")                                                          \
    REASON(SENT_ICMP_ERROR, sent, "ICMP error delivered to the backend or client of its connection")                   \
    REASON(SENT_TOO_BIG, sent, "does not fit the way to the backend: sender told its size")                            \
    REASON(SENT_TIME_EXCEEDED, sent, "time to live ran out: sender told")                                              \
    REASON(SENT_RESET, sent, "TCP connection of a dead backend reset")                                                 \
    REASON(DROP_MALFORMED_IPV4, drop, "IPv4 lengths contradict each other or the frame")                               \
    REASON(DROP_MALFORMED_IPV6, drop, "IPv6 lengths or extension headers contradict the frame")                        \
    REASON(DROP_MALFORMED_TRANSPORT, drop, "frame ends inside the TCP, UDP or ICMP header")                            \
    REASON(DROP_EXTENSION_HEADERS, drop, "more IPv6 extension headers than the path follows")                          \
    REASON(DROP_FRAGMENT_UNKNOWN, drop, "fragment to a VIP whose first part was not seen")                             \
    REASON(DROP_LEASE_EXPIRED, drop, "request for a VIP this gateway may not answer for now")                          \
    REASON(DROP_ANSWER_EARLY, drop, "answer of a nat backend whose connection is not known here yet")                  \
    REASON(DROP_ICMP_UNMATCHED, drop, "ICMP error to a VIP that quotes no connection")                                 \
    REASON(DROP_TTL, drop, "time to live ran out in an answer or an ICMP error")                                       \
    REASON(DROP_TOO_BIG, drop, "does not fit the way out and may not be answered")                                     \
    REASON(DROP_NO_TARGET, alarm, "the service has no backend to choose")                                              \
    REASON(DROP_TARGET_DEAD, drop, "connection of a dead backend that cannot be reset")                                \
    REASON(DROP_FAMILY, alarm, "the method cannot cross between IPv4 and IPv6")                                        \
    REASON(DROP_NO_ROUTE, alarm, "no route to the backend")                                                            \
    REASON(DROP_NEIGHBOUR_UNKNOWN, alarm, "next hop of the backend not resolved yet")                                  \
    REASON(DROP_NODE_UNREACHABLE, alarm, "no way known to the node the connection belongs to")                         \
    REASON(DROP_HEADROOM, alarm, "no room for another header in front of the frame")                                   \
    REASON(DROP_INTERNAL, alarm, "state the path should never be in: please report")                                   \
    REASON(NOTE_NOT_ADMITTED, note, "new connection forwarded without memory: rate of entries at its limit")           \
    REASON(NOTE_RECORD_SHED, note, "replication record lost: ring buffer full")                                        \
    REASON(NOTE_CAPTURE_SHED, note, "captured packet lost: ring buffer full")                                          \
    REASON(NOTE_OVERFLOW, note, "first choice at its maximum of connections, next one taken")                          \
    REASON(NOTE_RECHOSEN, note, "connection of a dead backend given another one")                                      \
    REASON(NOTE_TAKEN_OVER, note, "connection of another node handled here from now on")                               \
    REASON(NOTE_NOT_STEERED_TWICE, note, "a peer sent it here: handled although the table says another node")          \
    REASON(NOTE_TABLE_FULL, note, "entry could not be written")
