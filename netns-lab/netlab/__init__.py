# SPDX-License-Identifier: Apache-2.0
"""The namespace lab: networks of clients, switches, gateways and backends on one machine, seen from outside only."""
