# SPDX-License-Identifier: Apache-2.0
"""Bounds of the shared data. They are part of the replicated decision: every node must use the same ones."""

CHANNEL = 1  # ordered channel of the commands and peer channel of the snapshot transfer; applications start at 16

BUCKETS = 256  # granularity of digests, of copy-on-write and of repair

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1 << 20
ITEMS_MAX = 2_000_000
STORE_BYTES_MAX = 1 << 30
OPERATIONS_MAX = 1024  # per transaction
CONDITIONS_MAX = 1024  # per transaction
COMMAND_BYTES_MAX = 16 << 20
CHANGES_KEPT = 16_384  # how far back a watch "from version" can be served without a replay of everything

NAME_BYTES_MAX = 256  # of locks, barriers and queues
LOCKS_MAX = 65_536
WAITERS_MAX = 4_096  # per lock, barrier or queue
LEASE_MS_MIN = 100
LEASE_MS_MAX = 86_400_000
BARRIERS_MAX = 4_096
QUEUES_MAX = 4_096
QUEUE_ELEMENTS_MAX = 65_536  # per queue
QUEUE_BYTES_MAX = 16 << 20  # all queues together: they travel in one record of a snapshot

REQUESTS_MAX = 65_536  # of this node, submitted and not answered
DEFERRED_BYTES_MAX = 256 << 20  # commands kept while a snapshot is on its way
PART_BYTES = 256 << 10  # of a snapshot transfer
PARTS_IN_FLIGHT = 4
FETCHES_MAX = 255  # pending requests for a snapshot, one a node
