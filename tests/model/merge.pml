/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging rings: NODES nodes start alone, hear each other's beacons at any time, and become one ring.
 *
 * The holder of a token that has heard a beacon of a group of lower rank adds the sender to its token and sends it
 * the token, to be merged. The receiver parks it until its own group's token comes, and makes one of the two. A
 * parked token of a lower rank, or a second one, is refused; after waiting in vain it goes back. Rank is (members,
 * lowest id): it changes while groups grow, so beacons and copies may be stale, and only refusing and giving up keep
 * a circle of groups from waiting for each other.
 *
 * Checked: no node is a member on two tokens that both circulate (ONE_TOKEN), a token is never lost, and the model
 * never comes to rest before all nodes are one ring (spin's invalid end states).
 */
#ifndef NODES
#define NODES 3
#endif
#ifndef IMPATIENCE
#define IMPATIENCE 2      /* parked tokens sent back although the own one would have come */
#endif
#define ALL ((1 << NODES) - 1)
#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)
#define SIZE(set) (HAS(set, 0) + HAS(set, 1) + HAS(set, 2) + HAS(set, 3))
#define LOWEST(set) (HAS(set, 0) -> 0 : (HAS(set, 1) -> 1 : (HAS(set, 2) -> 2 : 3)))
#define RANK(set) (SIZE(set) * 4 + LOWEST(set))

mtype = { TOKEN, TO_BE_MERGED, RETURNED };

byte token[NODES];        /* members on the token the node holds; 0: it holds none */
byte copy[NODES];         /* members on the token when it was last here */
byte parked[NODES];       /* members on the parked token; 0: none */
byte parked_from[NODES];
byte impatience = IMPATIENCE;
bool merged = false;

/* kind, sender, members (of a parked token: without the receiver) */
chan inbox[NODES] = [3] of { mtype, byte, byte };

hidden byte next, other;

/* Tokens that circulate, here and elsewhere, have no member in common. */
inline ONE_TOKEN(me) {
    d_step {
        other = 0;
        do
        :: other < NODES ->
            assert(other == me || (token[me] & token[other]) == 0);
            other++
        :: else -> break
        od;
        other = 0
    }
}

inline HOLD(me, set) {
    assert(token[me] == 0);
    token[me] = set; copy[me] = set; ONE_TOKEN(me)
}

inline PASS(me) {
    d_step {
        next = (me + 1) % NODES;
        do
        :: HAS(token[me], next) -> break
        :: else -> next = (next + 1) % NODES
        od;
        inbox[next]!TOKEN(me, token[me]);
        token[me] = 0; next = 0
    }
}

proctype Node(byte self) {
    byte from, set, peer;

    do
    :: merged -> break

    :: atomic { !merged && token[self] == ALL -> merged = true }

    /* the own group's token comes; with a parked one it becomes one */
    :: atomic { !merged && inbox[self]?[TOKEN] -> inbox[self]?TOKEN(from, set);
        if
        :: parked[self] != 0 ->
            assert((parked[self] & set) == 0);
            set = set | parked[self]; parked[self] = 0; parked_from[self] = 0
        :: else
        fi;
        HOLD(self, set);
        from = 0; set = 0 }
    :: atomic { !merged && token[self] != 0 && parked[self] != 0 ->
        set = token[self] | parked[self]; token[self] = 0; parked[self] = 0; parked_from[self] = 0;
        HOLD(self, set);
        set = 0 }

    /* the token goes on in its group */
    :: atomic { !merged && token[self] != 0 && token[self] != ALL && token[self] != BIT(self) && parked[self] == 0 ->
        PASS(self) }

    /* a beacon of a group of lower rank: what its sender believed of its group may be long past */
    :: atomic { !merged && token[self] != 0 && token[self] != ALL && parked[self] == 0 ->
        select(peer : 0 .. NODES - 1);
        if
        :: HAS(token[self], peer) || RANK(copy[peer]) >= RANK(token[self]) || full(inbox[peer])
        :: !HAS(token[self], peer) && RANK(copy[peer]) < RANK(token[self]) && nfull(inbox[peer]) ->
            inbox[peer]!TO_BE_MERGED(self, token[self]); token[self] = 0
        fi;
        peer = 0 }

    /* a token to be merged comes */
    :: atomic { !merged && inbox[self]?[TO_BE_MERGED] -> inbox[self]?TO_BE_MERGED(from, set);
        if
        :: parked[self] == 0 && RANK(copy[self]) < RANK(set) && !HAS(set, self) ->
            parked[self] = set; parked_from[self] = from
        :: else -> inbox[from]!RETURNED(self, set)
        fi;
        from = 0; set = 0 }

    /* waited in vain: in earnest when nothing else can happen, or out of impatience */
#ifndef BROKEN_NO_GIVING_UP /* a test shows that groups whose ranks change then wait for each other for ever */
    :: atomic { !merged && parked[self] != 0 && token[self] == 0 && timeout ->
        inbox[parked_from[self]]!RETURNED(self, parked[self]); parked[self] = 0; parked_from[self] = 0 }
#endif
    :: atomic { !merged && parked[self] != 0 && token[self] == 0 && impatience > 0 -> impatience--;
        inbox[parked_from[self]]!RETURNED(self, parked[self]); parked[self] = 0; parked_from[self] = 0 }

    /* it comes back: the turn goes on where it stopped */
    :: atomic { !merged && inbox[self]?[RETURNED] -> inbox[self]?RETURNED(from, set);
        HOLD(self, set);
        from = 0; set = 0 }
    od
}

init {
    byte n;
    atomic {
        do
        :: n < NODES -> token[n] = BIT(n); copy[n] = BIT(n); n++
        :: else -> break
        od;
        n = 0;
        do
        :: n < NODES -> run Node(n); n++
        :: else -> break
        od
    }
}
