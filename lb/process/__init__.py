# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: its threads, its children, its memory, and what the service manager is told."""
