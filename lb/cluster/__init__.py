# SPDX-License-Identifier: Apache-2.0
"""A gateway among others: who owns which VIP, who steers where, what all of them agree on."""
