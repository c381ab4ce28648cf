# SPDX-License-Identifier: Apache-2.0
"""Backend health: checks run in a process of their own, verdicts agreed between the gateways through the ring.

The way of a verdict: `agreement.checkers` says which gateways try a backend; `checks` tries it; `scheduler` repeats
the tries and judges them; `board` (in lbd) publishes what this gateway saw and combines what all saw.
"""
