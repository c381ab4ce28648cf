# SPDX-License-Identifier: Apache-2.0
"""What the operator says: the node file and the cluster file, their meaning, their checks and where they are kept."""
