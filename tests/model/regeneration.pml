/* SPDX-License-Identifier: Apache-2.0
 *
 * Token regeneration (911), exclusion and return in one ring: at most one token per group, and no deadlock.
 *
 * A token carries its epoch, the epochs it descends from (here the global arrays `parent` and `first_hop`), its hop
 * and its members. Whoever regenerates it begins a new epoch at the hop after the last one it knows. A node accepts
 * a token only if it continues what the node has seen (`EXTENDS`). The model takes the rest as badly as it can be:
 * tokens arrive after their sender was told they had not, timeouts fire for no reason, nodes die at any point, and
 * calls and answers of the 911 overtake each other. Budgets bound how often, so that the state space is finite.
 *
 * Checked: two nodes never hold tokens of one line of history (ONE_TOKEN), and something can always happen until
 * the ring has turned to the hop limit (spin's invalid end states), also from every state faults have led to.
 */
#ifndef NODES
#define NODES 3
#endif
#ifndef HOP_LIMIT
#define HOP_LIMIT 9
#endif
#ifndef LOST_ACKS
#define LOST_ACKS 1       /* "not delivered" although it was, or will be */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef FALSE_ALARMS
#define FALSE_ALARMS 1    /* hungry timeouts although the token lives */
#endif
#define EPOCHS 8
#define NONE 255

#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)

mtype = { EATING, PASSING, HUNGRY, STARVING, DEAD };
mtype = { TOKEN, REFUSE, CALL, ANSWER };
mtype = { YES, NO, REJECTED, LEFT_OUT };

mtype state[NODES];
byte epoch[NODES];        /* of the node's copy of the token, as are hop and members */
byte hop[NODES];
byte members[NODES];
byte invited[NODES];      /* set: members of the copy that have not had the token yet */
byte newcomers[NODES];    /* set: callers to invite at the next visit */
byte waiting[NODES];      /* set: members whose answer to the call is missing; 0 while none is under way */
byte without[NODES];      /* set: members to regenerate without */
byte call[NODES];         /* number of the call, so that answers to an earlier one are told apart */
bool calling[NODES];
byte target[NODES];       /* whom the token was passed to */

byte parent[EPOCHS];
byte first_hop[EPOCHS];
byte epoch_count = 1;

byte lost_acks = LOST_ACKS;
byte deaths = DEATHS;
byte false_alarms = FALSE_ALARMS;
byte dead = 0;            /* set */
bool finished = false;

/* kind, sender, epoch, hop, members, invited | verdict, call number */
chan inbox[NODES] = [4] of { mtype, byte, byte, byte, byte, byte, mtype };

byte other, next;
hidden byte at_epoch, ends;
hidden byte extends;

/* Does a token at (e, h) continue the history of a node last at (e0, h0)? */
inline EXTENDS(of_epoch, of_hop, known_epoch, known_hop) {
    d_step {
        at_epoch = of_epoch; ends = of_hop;
        do
        :: at_epoch == known_epoch -> extends = (known_hop < ends -> 1 : 0); break
        :: at_epoch != known_epoch && at_epoch == 0 -> extends = 0; break
        :: else -> ends = first_hop[at_epoch]; at_epoch = parent[at_epoch]
        od;
        at_epoch = 0; ends = 0
    }
}

/* Two holders: neither's token may continue the other's history. */
inline ONE_TOKEN(me) {
    d_step {
        other = 0;
        do
        :: other < NODES ->
            if
            :: other != me && state[other] == EATING ->
                EXTENDS(epoch[me], hop[me], epoch[other], hop[other]);
                assert(!extends);
                EXTENDS(epoch[other], hop[other], epoch[me], hop[me]);
                assert(!extends)
            :: else
            fi;
            other++
        :: else -> break
        od;
        other = 0; extends = 0
    }
}

inline FORGET_CALL() { calling[self] = false; waiting[self] = 0; without[self] = 0 }

inline EAT() { state[self] = EATING; FORGET_CALL(); ONE_TOKEN(self) }

/* A new epoch that begins with a visit of its creator. */
inline FORK() {
    assert(epoch_count < EPOCHS);
    hop[self]++;
    parent[epoch_count] = epoch[self];
    first_hop[epoch_count] = hop[self];
    epoch[self] = epoch_count;
    epoch_count++;
    EAT()
}

inline EXCLUDE(node) {
    members[self] = members[self] & ~BIT(node); invited[self] = invited[self] & ~BIT(node)
}

inline PASS() {
    d_step {
        newcomers[self] = newcomers[self] & ~members[self];
        members[self] = members[self] | newcomers[self];
        invited[self] = invited[self] | newcomers[self];
        newcomers[self] = 0;
        next = (self + 1) % NODES;
        do
        :: HAS(members[self], next) -> break
        :: else -> next = (next + 1) % NODES
        od;
        target[self] = next; state[self] = PASSING;
        if
        :: nfull(inbox[next]) -> inbox[next]!TOKEN(self, epoch[self], hop[self] + 1, members[self], invited[self], YES)
        :: full(inbox[next])
        fi;
        next = 0
    }
}

inline START_CALL() {
    d_step {
        state[self] = STARVING; calling[self] = true; call[self] = (call[self] + 1) % 4;
        waiting[self] = members[self] & ~BIT(self) & ~invited[self];
        without[self] = invited[self];
        other = 0;
        do
        :: other < NODES ->
            if
            :: !HAS(waiting[self], other) || full(inbox[other])
            :: HAS(waiting[self], other) && nfull(inbox[other]) ->
                inbox[other]!CALL(self, epoch[self], hop[self], 0, call[self], YES)
            fi;
            other++
        :: else -> break
        od;
        other = 0
    }
}

/* recovery.judge: what a node thinks of a call from one that was last at (its_epoch, its_hop). */
inline JUDGE(caller, its_epoch, its_hop) {
    EXTENDS(epoch[self], hop[self], its_epoch, its_hop);
    if
    :: !HAS(members[self], caller) || HAS(invited[self], caller) ->
        if
        :: extends || its_epoch < epoch[self] -> verdict = REJECTED
        :: else -> verdict = LEFT_OUT
        fi
    :: else ->
        if
        :: state[self] == EATING || state[self] == PASSING -> verdict = NO
        :: else ->
            if
            :: its_epoch == epoch[self] && its_hop < hop[self] -> verdict = NO
            :: its_epoch == epoch[self] && its_hop >= hop[self] -> verdict = YES
            :: its_epoch != epoch[self] && extends -> verdict = NO
            :: its_epoch != epoch[self] && !extends && its_epoch > epoch[self] -> verdict = YES
            :: its_epoch != epoch[self] && !extends && its_epoch < epoch[self] -> verdict = REJECTED
            fi
        fi
    fi;
    extends = 0
}

proctype Node(byte self) {
    byte from, e, h, m, x;
    mtype verdict;

    do
    :: finished -> break

    /* ---- the token comes */
    :: atomic { !finished && inbox[self]?[TOKEN] -> inbox[self]?TOKEN(from, e, h, m, x, verdict);
        EXTENDS(e, h, epoch[self], hop[self]);
#ifdef BROKEN_SEQUENCE_ONLY
        /* the thesis as printed: a token is valid if its sequence number is higher; a test shows that this fails */
        extends = (h > hop[self] -> 1 : 0);
#endif
        if
        :: state[self] == DEAD
        :: state[self] != DEAD && HAS(m, self) && (extends || (HAS(x, self) && state[self] == STARVING)) ->
            /* while it holds a token itself, no other continues its history */
            assert(state[self] != EATING);
            epoch[self] = e; hop[self] = h; members[self] = m; invited[self] = x & ~BIT(self);
            if
            :: state[from] == PASSING && target[from] == self && epoch[from] == e && hop[from] + 1 == h ->
                state[from] = HUNGRY
            :: else
            fi;
            EAT()
        :: else ->
            if
            :: nfull(inbox[from]) -> inbox[from]!REFUSE(self, e, h, epoch[self], 0, NO)
            :: full(inbox[from])
            fi
        fi;
        extends = 0; from = 0; e = 0; h = 0; m = 0; x = 0; verdict = YES }

    /* ---- the token goes: to others, or nowhere while alone */
    :: atomic { !finished && state[self] == EATING && hop[self] < HOP_LIMIT &&
                ((members[self] | newcomers[self]) != BIT(self)) -> PASS() }
    :: atomic { !finished && state[self] == EATING && hop[self] >= HOP_LIMIT -> finished = true }
    :: atomic { !finished && state[self] == EATING && members[self] == BIT(self) && newcomers[self] == 0 && timeout ->
        finished = true }

    /* ---- failure on delivery: true (the peer is dead), or false (the token is there, or still under way) */
    :: atomic { !finished && state[self] == PASSING && (HAS(dead, target[self]) || timeout) ->
        EXCLUDE(target[self]); FORK() }
    :: atomic { !finished && state[self] == PASSING && state[target[self]] != DEAD && lost_acks > 0 ->
        lost_acks--; EXCLUDE(target[self]); FORK() }
    :: atomic { !finished && state[self] == HUNGRY && target[self] != NONE && lost_acks > 0 &&
                epoch[target[self]] == epoch[self] && hop[target[self]] == hop[self] + 1 ->
        lost_acks--; EXCLUDE(target[self]); FORK() }

    /* ---- the token is refused: of two branches the newer one lives */
    :: atomic { !finished && inbox[self]?[REFUSE] -> inbox[self]?REFUSE(from, e, h, m, x, verdict);
        if
        :: state[self] == PASSING && target[self] == from && epoch[self] == e && hop[self] + 1 == h ->
            if
            :: m > e -> START_CALL()
            :: else -> EXCLUDE(from); FORK()
            fi
        :: else
        fi;
        from = 0; e = 0; h = 0; m = 0; x = 0; verdict = YES }

    /* ---- hungry: in earnest when nothing else can happen, or for no reason */
    :: atomic { !finished && state[self] == HUNGRY && timeout -> START_CALL() }
    :: atomic { !finished && state[self] == HUNGRY && false_alarms > 0 -> false_alarms--; START_CALL() }
    :: atomic { !finished && state[self] == STARVING && !calling[self] && timeout -> START_CALL() }

    /* ---- 911: somebody calls */
    :: atomic { !finished && inbox[self]?[CALL] -> inbox[self]?CALL(from, e, h, m, x, verdict);
        if
        :: state[self] != DEAD ->
            JUDGE(from, e, h);
            if
            :: verdict == REJECTED -> newcomers[self] = newcomers[self] | BIT(from)
            :: else
            fi;
            if
            :: nfull(inbox[from]) -> inbox[from]!ANSWER(self, 0, 0, 0, x, verdict)
            :: full(inbox[from])
            fi;
            if
            :: verdict == NO && state[self] == HUNGRY -> START_CALL()
            :: else
            fi
        :: else
        fi;
        from = 0; e = 0; h = 0; m = 0; x = 0; verdict = YES }

    /* ---- 911: an answer */
    :: atomic { !finished && inbox[self]?[ANSWER] -> inbox[self]?ANSWER(from, e, h, m, x, verdict);
        if
        :: state[self] == STARVING && calling[self] && x == call[self] ->
            if
            :: verdict == YES -> waiting[self] = waiting[self] & ~BIT(from)
            :: verdict == NO -> FORGET_CALL(); state[self] = HUNGRY
            :: verdict == REJECTED -> FORGET_CALL()
            :: verdict == LEFT_OUT ->
                waiting[self] = waiting[self] & ~BIT(from); without[self] = without[self] | BIT(from)
            fi
        :: else
        fi;
        from = 0; e = 0; h = 0; m = 0; x = 0; verdict = YES }

    /* ---- 911: a member is dead; an answer never comes; or all have agreed */
    :: atomic { !finished && state[self] == STARVING && calling[self] && (waiting[self] & dead) != 0 ->
        without[self] = without[self] | (waiting[self] & dead); waiting[self] = waiting[self] & ~dead }
    :: atomic { !finished && state[self] == STARVING && calling[self] && waiting[self] != 0 && timeout ->
        FORGET_CALL() }
    :: atomic { !finished && state[self] == STARVING && calling[self] && waiting[self] == 0 ->
        members[self] = members[self] & ~without[self]; invited[self] = invited[self] & ~without[self];
        FORK() }

    /* ---- death at any point */
    :: atomic { !finished && state[self] != DEAD && deaths > 0 ->
        deaths--; state[self] = DEAD; dead = dead | BIT(self); FORGET_CALL() }
    od
}

init {
    byte n;
    atomic {
        do
        :: n < NODES ->
            state[n] = HUNGRY; epoch[n] = 0; members[n] = BIT(NODES) - 1; target[n] = NONE;
            /* one quiet turn lies behind: node n had the token at hop n + 1 */
            hop[n] = n + 1;
            n++
        :: else -> break
        od;
        state[NODES - 1] = EATING;
        n = 0;
        do
        :: n < NODES -> run Node(n); n++
        :: else -> break
        od
    }
}
