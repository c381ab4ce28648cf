# SPDX-License-Identifier: Apache-2.0
"""The gateway daemon: VIP ownership, packet-engine control, replication, health, API."""

__version__ = "0.1.0"
