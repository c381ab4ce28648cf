# SPDX-License-Identifier: Apache-2.0
"""The token ring: membership, ordered multicast, regeneration and merge. No I/O, no clock, no randomness of its own."""
