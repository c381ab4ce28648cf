# SPDX-License-Identifier: Apache-2.0
"""Raincore: a token ring with ordered reliable multicast, shared data and locks (C. C. Fan, Caltech 2001)."""
