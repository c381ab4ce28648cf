# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, each with the peer it is compared with."""
