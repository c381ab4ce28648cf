# SPDX-License-Identifier: Apache-2.0
"""The replicated state as one gateway knows it, over a real ring of one."""

from netlab.waiting import until

from lb.cluster.ownership import HOLDING_PREFIX, Holding, pack
from tests.unit.test_cluster_planned_restart import OTHER, OWN, ring_of_one

ADDRESS = "10.0.1.100"


async def test_what_was_held_before_is_doubtful_until_somebody_writes_it_anew() -> None:
    async with ring_of_one() as (ring, state):

        async def write(owner: int, term: int) -> None:
            await ring.data.put(f"{HOLDING_PREFIX}{ADDRESS}", pack(Holding(owner=owner, term=term)))
            await until(lambda: ADDRESS in state.holdings and state.holdings[ADDRESS].term == term)

        await write(OWN, 1)
        state.unconfirmed = set(state.holdings)  # as when the gateway is shut out of the ring
        state.read_all()  # back in a view, perhaps alone
        assert state.unconfirmed == {ADDRESS}, "reading it once more does not make it true"
        assert state.doubts_own
        await write(OTHER, 2)
        assert not state.unconfirmed
        # What others hold is for them to confirm.
        state.unconfirmed = set(state.holdings)
        assert (state.doubts_own, len(state.unconfirmed)) == (False, 1)
        await write(OTHER, 3)
        state.read_all()
        assert not state.unconfirmed
