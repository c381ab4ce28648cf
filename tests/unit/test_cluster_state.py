# SPDX-License-Identifier: Apache-2.0
"""The replicated state as one gateway knows it, over a real ring of one."""

from netlab.waiting import until

from lb.cluster.ownership import HOLDING_PREFIX, NODE_PREFIX, Holding, NodeFacts, pack
from lb.cluster.placement import Standing
from lb.configuration.model import EMPTY
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


async def test_what_a_gateway_said_before_it_joined_is_not_taken_for_news() -> None:
    """It may be delivered after the view in which it joined: said to nobody else, it was on its way meanwhile."""
    async with ring_of_one() as (ring, state):

        async def tell(joined_in: int) -> int:
            """How fit the other one is taken to be after it has told that it is ready."""
            state.facts.clear()
            facts = NodeFacts(name="other", standing=int(Standing.READY), joined_in=joined_in)
            await ring.data.put(f"{NODE_PREFIX}{OTHER}", pack(facts))
            await until(lambda: OTHER in state.facts)
            return state.cluster(EMPTY).facts[OTHER].standing

        assert state.view is not None
        number = state.view.number + 7
        state.take_view(state.view._replace(number=number, members=(OWN, OTHER), joined=frozenset({OTHER})))
        assert await tell(number - 6) == Standing.JOINING
        state.read_all()
        assert state.cluster(EMPTY).facts[OTHER].standing == Standing.JOINING, "nor when it is read once more"
        assert await tell(number) == Standing.READY
        # One that does not say in which view.
        state.take_view(state.view._replace(number=number + 1))
        assert await tell(0) == Standing.READY
