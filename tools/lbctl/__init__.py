# SPDX-License-Identifier: Apache-2.0
"""lbctl: the operator's command. Every command is one call of the HTTP API (docs/api.md)."""
