# SPDX-License-Identifier: Apache-2.0
"""The packet path a second time, in plain Python, written from its documented behaviour to be compared with it.

`headers` reads frames, `world` is a configuration, `path` decides and rewrites (its steps, from the first to the last:
`path`, `returning`, `connecting`, `choosing`, `sending`), `traffic` makes random and mutated packets, `compare` runs
both and holds verdicts and bytes against each other. `python -m tests.packet.oracle` runs it.
"""
