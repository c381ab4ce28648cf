# SPDX-License-Identifier: Apache-2.0
"""Network-namespace laboratory: topologies, faults and links that lose or delay."""
