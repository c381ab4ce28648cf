# SPDX-License-Identifier: Apache-2.0
"""The XDP packet path, its loader and typed access to its maps."""
