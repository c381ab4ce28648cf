# SPDX-License-Identifier: Apache-2.0
"""Raincore: a token ring with ordered reliable multicast, shared data and locks (C. C. Fan, Caltech 2001).

`sync.driver.Ring` is the ring for programs on asyncio; `sync.node.Node` is the same without I/O; `python -m sync` runs
a bare node. Importing this package imports none of them: the sans-I/O core must be usable without an event loop.
"""
