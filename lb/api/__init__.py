# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: a process of its own between lbd's control socket and everyone who asks (lbctl, the page, scripts)."""
