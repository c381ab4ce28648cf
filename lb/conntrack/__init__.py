# SPDX-License-Identifier: Apache-2.0
"""The kernel's own connection tracking between gateways: what a firewall or a translation of theirs has let begin."""
