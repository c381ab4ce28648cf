# SPDX-License-Identifier: Apache-2.0
"""The packet path as the daemon drives it: from a configuration and a cluster state to the maps in the kernel."""
