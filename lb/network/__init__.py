# SPDX-License-Identifier: Apache-2.0
"""The gateway's network: interfaces, addresses, neighbours, and what is announced on the wire."""
