# SPDX-License-Identifier: Apache-2.0
"""The connection table between gateways: records, their exchange, whole transfers to a joiner and repair."""
