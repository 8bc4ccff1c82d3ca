/*
 * Who may answer: the rules of views and of the commit, for Spin.
 *
 *     python tests/model/check.py                  the model, and the model less each rule
 *     python tests/model/check.py --story NAME     the shortest way into what NAME breaks
 *
 * What is modelled
 * ----------------
 * Two nodes and a view register; a client that has one operation under way at a time and sends it,
 * and late copies of it and of earlier ones, to either node; reads by anybody at any time.
 *
 *   - Nothing is timely. Every step may be put off for ever, so each message may be late or lost,
 *     each node paused, each link cut, in one direction too, and each peer suspected wrongly.
 *   - Crash and restart are one step: memory and name (incarnation) are gone. A node that does not
 *     come back is one that takes no further step.
 *   - A proposal stays at the register for as long as it could still win, though its sender may be
 *     dead by then: late and repeated compare-and-sets. A node hears of a view that came to be
 *     after the one it knows at any time or never, of the newest or of one before: late and lost
 *     answers.
 *   - A frame is taken, and its ack is there, in one step. That it was on its way is the same as
 *     that either end put off its next step: a link keeps order and dies with either end, and no
 *     step of one node looks into the other. What a link does not see to is frames and acks of an
 *     epoch that is over: they are rules R2 and R3. For the same reason a join is one step.
 *   - The state is the run of operations executed, each with the epoch in which it was appended:
 *     an operation that is executed twice shows by its two epochs. An answer shows all of it.
 *   - Frames are numbered anew in each epoch. (In the server they are numbered over the life of a
 *     primary, so that there rule R3 is a second lock on a door that is locked already.)
 *
 * Rules
 * -----
 * In capitals the switch that takes the rule away: Spin then has to find a wrong answer.
 *
 *  R1  A reply leaves only when the backup has acknowledged a frame sent at or after the reply's
 *      own turn: the reply to a change (REPLY_BEFORE_ACK) and to a read (READS_WITHOUT_ACK).
 *  R2  A frame of a lower epoch is refused (NO_EPOCH_CHECK).
 *  R3  Acks of another epoch are ignored (EARLIER_EPOCH_ACK_COUNTS).
 *  R4  A primary that lost its member goes on alone only by the register (SOLO_WITHOUT_CAS), and
 *      until that is decided it answers nothing (RELEASE_WHILE_BLOCKED).
 *  R5  A backup is promoted by the register only (PROMOTE_WITHOUT_CAS), and only one that is a
 *      member proposes itself (PROMOTE_NONMEMBER).
 *  R6  A node that lost its memory has a new name (RESTART_KEEPS_IDENTITY).
 *  R7  Before a backup is proposed, its acks are required for every reply (ADMIT_BEFORE_CAUGHT_UP)
 *      and it has acknowledged the first frame sent since (ADMIT_BEFORE_FIRST_ACK).
 *  R8  From when a proposal is sent until it is decided no reply leaves without the backup's ack
 *      (RELEASE_WHILE_PROPOSAL_IN_DOUBT). No answer decides nothing (LOST_CAS_MEANS_FAILED), nor
 *      does reading the epoch that was known before (READING_E_MEANS_FAILED).
 *  R9  A deposed primary loses its name. Of its state it keeps what the new primary finds on its
 *      own history (DEPOSED_KEEPS_STATE), of its held-back replies none (DEPOSED_KEEPS_REPLIES).
 *  R10 The register changes a view from epoch e to e+1 only if e stands (REGISTER_WITHOUT_COMPARE).
 *
 * Invariants
 * ----------
 * I2 durability, I3 one voice, I4 at most once; I6, the commit rule, is R1 to R3. Seen by clients:
 *
 *  I2_answered_is_here       who answers has every operation that was answered before,
 *  I4_executed_once          and has it as it was answered: executed in that epoch.
 *  I3_no_stale_answer        A read shows every operation that was answered before it began: none
 *                            is lost (I2), and a deposed primary answers nothing more.
 *
 * and inside:
 *
 *  I2_members_have_answered  every living member of the view that stands has all that was answered
 *  I3_primary_of_its_epoch   who answers in an epoch is the primary that the register gave it
 *  I3_primary_was_member     a new primary was a member of the view before
 *
 * Bounds
 * ------
 * OPS operations, EPOCHS epochs, NAMES incarnations of each node, FRAMES frames in one epoch, one
 * read of old state held back at a time by each node. Within them the search is exhaustive.
 *
 * Left out
 * --------
 * The inside of snapshots and of the backlog; what is appended during a join is in the first frame
 * after it. Leases and waiters, which are state like any other. How suspicion arises (PEER ASK can
 * only make a node propose less). A planned failover: a backup that proposes itself while its
 * primary is silent, which it may do here at any time. A node that holds no name any more (see
 * NAMES) takes no further step. The start of a history, `view init`, and orders by hand.
 * `fail-stop`, which has no register. Progress: that the good runs exist, and the strange ones, is
 * shown by the switches REACH_..., each of which has to fail.
 */

#ifndef OPS                     /* at most 3 */
#define OPS 3
#endif
#ifndef EPOCHS
#define EPOCHS 7
#endif
#ifndef NAMES
#define NAMES 4
#endif
#ifndef FRAMES
#define FRAMES 4
#endif

/* Roles. GONE: out of names, takes no further step (a bound, not a rule). */
#define EMPTY   0
#define BACKUP  1
#define PRIMARY 2
#define GONE    3

/* A primary's phases. PROPOSED: the proposal is sent and in doubt. MEMBER: the backup is a member
   as far as this primary knows. BLOCKED: lost after PROPOSED, who goes on is undecided. */
#define NONE     0
#define JOINING  1
#define REQUIRED 2
#define PROPOSED 3
#define MEMBER   4
#define BLOCKED  5

#define PEER (1 - me)

typedef Node {
    byte role;
    byte name;                  /* the incarnation; 0 is nobody */
    byte epoch;                 /* of the newest view it knows */
    byte count;                 /* operations 1..count are executed here, */
    byte appended[4];           /* each in this epoch */
    /* As primary: */
    byte phase;
    byte backup;                /* name of the attached backup */
    byte sent;                  /* frames sent in this epoch, */
    byte acked;                 /* of which acknowledged, in this epoch */
    byte required;              /* the first frame sent since acks are required */
    byte carrier[4];            /* the frame by which the backup has the operation; 0: the join */
    byte stale_read             /* the frame that lets a held-back read go; 0: none. Only reads that
                                   were computed from too old a state are kept account of */
};
Node node[2];

/* The register: the views of all epochs so far. view[0] is nobody's. */
typedef View {
    byte primary;               /* which node, */
    byte name;                  /* by which name */
    byte other                  /* name of the other node if it is a member too, else 0 */
};
View view[EPOCHS + 1];
byte stands = 1;                /* the epoch of the view that stands */
/* Proposals to change the view that stands, by kind; those to change an earlier one can no longer
   win. None: its name is 0. */
#define JOINED   0              /* by the primary of that view: joined by a backup */
#define ALONE    1              /* by the primary of that view: alone */
#define TAKEOVER 2              /* by the other node: alone */
View proposal[3];

/* What the client has seen. */
byte answered;                  /* operations 1..answered were answered, */
byte answered_as[4];            /* as executed in this epoch */

#ifdef REACH_THREE_REIGNS_ANSWER
byte reigns;                    /* how often somebody was promoted */
#endif

/* True until one is found broken, so they tell no two states apart. */
bool I2_answered_is_here = true;
bool I2_members_have_answered = true;
bool I4_executed_once = true;
bool I3_primary_of_its_epoch = true;
bool I3_primary_was_member = true;
bool I3_no_stale_answer = true;
bool views_behind_at_most_2 = true;
bool not_yet_seen = true;       /* what a switch REACH_... looks for */
byte k;                         /* an operation or an epoch in loops, 0 between steps */

#define BROKEN(invariant) invariant = false; assert(invariant)

/* The invariant holds here if `condition` does. */
inline check(invariant, condition) {
    if
    :: condition
    :: else -> BROKEN(invariant)
    fi
}

/* The same for what no client sees. With CLIENTS_JUDGE, a rule that is missing has to lead as far
   as to a wrong answer. */
inline check_inside(invariant, condition) {
#ifndef CLIENTS_JUDGE
    check(invariant, condition)
#else
    skip
#endif
}

/* A run that makes `condition` true here exists: the model with this switch must fail. */
inline reach(condition) {
    if
    :: condition -> BROKEN(not_yet_seen)
    :: else
    fi
}

/* -- What is asked of a state ----------------------------------------------------------------- */

#define IS_PRIMARY_OF(i, e) (view[e].primary == i && view[e].name == node[i].name)
#define IS_OTHER_OF(i, e)   (view[e].primary != i && view[e].other == node[i].name)
#define IS_MEMBER_OF(i, e)  (IS_PRIMARY_OF(i, e) || IS_OTHER_OF(i, e))

#define SAME_PRIMARY (view[stands].primary == view[stands - 1].primary)
#define PRIMARY_WAS_MEMBER \
    ((SAME_PRIMARY && view[stands].name == view[stands - 1].name) \
    || (!SAME_PRIMARY && view[stands].name == view[stands - 1].other))

#define IS_FAR_BEHIND(i) (LIVES(i) && node[i].epoch + 2 < stands)
#define LIVES(i) (node[i].role == BACKUP || node[i].role == PRIMARY)

#define LACKS_ANSWERED(i) (node[i].count < answered)
#define HAS_OTHERWISE(i, o) \
    (o <= answered && o <= node[i].count && node[i].appended[o] != answered_as[o])
#define HAS_ANY_OTHERWISE(i) (HAS_OTHERWISE(i, 1) || HAS_OTHERWISE(i, 2) || HAS_OTHERWISE(i, 3))
#define SAME_AT(o) (o > node[me].count || node[me].appended[o] == node[PEER].appended[o])
#define IS_ON_HISTORY_OF_PEER \
    (node[me].count <= node[PEER].count && SAME_AT(1) && SAME_AT(2) && SAME_AT(3))
#define IS_OLD(i) (LACKS_ANSWERED(i) || HAS_ANY_OTHERWISE(i))

/* Frames go from REQUIRED on: what was appended before is in the first of them. */
#define HAS_LINK(i) \
    (node[i].phase == REQUIRED || node[i].phase == PROPOSED || node[i].phase == MEMBER)

/* R1, R8: whether replies wait for the backup, and may leave once `frame` is acknowledged. */
#ifdef RELEASE_WHILE_PROPOSAL_IN_DOUBT
#define WAITS_FOR_ACK (node[me].phase == REQUIRED || node[me].phase == MEMBER)
#else
#define WAITS_FOR_ACK HAS_LINK(me)
#endif
#ifdef RELEASE_WHILE_BLOCKED
#define IS_BLOCKED false
#else
#define IS_BLOCKED (node[me].phase == BLOCKED)
#endif
#define MAY_LEAVE(frame) (!IS_BLOCKED && (!WAITS_FOR_ACK || node[me].acked >= frame))

#include "steps.pml"

/* -- Who does what ---------------------------------------------------------------------------- */

#define HAS_ROOM (!HAS_LINK(me) || node[me].sent < FRAMES)

/* Whether the frames of the peer reach this node, its backup; R2 is the last line. */
#define FRAME_COMES \
    (node[PEER].role == PRIMARY && HAS_LINK(PEER) && node[PEER].backup == node[me].name \
    && node[PEER].acked < node[PEER].sent)
#ifdef NO_EPOCH_CHECK
#define FRAME_IS_GOOD LIVES(me)
#else
#define FRAME_IS_GOOD (node[me].role == BACKUP && node[PEER].epoch >= node[me].epoch)
#endif

proctype a_node(byte me) {
end:
    do
    /* As primary, with its client. Operation n+1 is sent, and may be sent again, once operation n
       was answered. */
    :: d_step {
        (node[me].role == PRIMARY && node[me].count < OPS && node[me].count <= answered
        && HAS_ROOM);
        append()
    }
    :: d_step {
        (node[me].role == PRIMARY && (node[me].count > answered || HAS_ANY_OTHERWISE(me))
#ifndef REPLY_BEFORE_ACK
        && MAY_LEAVE(node[me].carrier[node[me].count])
#endif
        );
        answer()
    }
    :: d_step {
        node[me].role == PRIMARY && IS_OLD(me) && !node[me].stale_read && HAS_ROOM;
        read_old_state()
    }
    :: d_step {
        node[me].role == PRIMARY && node[me].stale_read && MAY_LEAVE(node[me].stale_read);
        answer_stale_read()
    }

    /* As primary, with its backup. */
    :: d_step {
        node[me].role == PRIMARY && node[me].phase == JOINING && node[me].sent < FRAMES;
        require_acks()
    }
    :: d_step {
        (node[me].role == PRIMARY && node[me].epoch < EPOCHS
#ifdef ADMIT_BEFORE_CAUGHT_UP
        && (node[me].phase == JOINING || node[me].phase == REQUIRED)
#else
        && node[me].phase == REQUIRED
#endif
#ifndef ADMIT_BEFORE_FIRST_ACK
        && node[me].acked >= node[me].required
#endif
        );
        propose_joined()
    }
    :: d_step {
        /* lost before it was proposed: dropped */
        node[me].role == PRIMARY && (node[me].phase == JOINING || node[me].phase == REQUIRED);
        printf("node %d: drops name %d\n", me, node[me].backup);
        no_backup();
        if
        :: node[me].stale_read -> answer_stale_read()
        :: else
        fi
    }
    :: d_step {
        /* lost after that: it may have been promoted */
        node[me].role == PRIMARY && (node[me].phase == PROPOSED || node[me].phase == MEMBER);
        printf("node %d: loses name %d, and is blocked\n", me, node[me].backup);
        no_backup();
#ifndef SOLO_WITHOUT_CAS
        node[me].phase = BLOCKED;
        propose(ALONE, 0);
#endif
    }
#ifdef LOST_CAS_MEANS_FAILED
    :: d_step {
        (node[me].role == PRIMARY && (node[me].phase == PROPOSED || node[me].phase == BLOCKED)
        && IS_PRIMARY_OF(me, node[me].epoch) && !view[node[me].epoch].other);
        printf("node %d: takes its unanswered proposal for failed\n", me);
        no_backup()
    }
#endif
#ifdef READING_E_MEANS_FAILED
    :: d_step {
        (node[me].role == PRIMARY && (node[me].phase == PROPOSED || node[me].phase == BLOCKED)
        && stands == node[me].epoch && !view[node[me].epoch].other);
        printf("node %d: reads epoch %d, and takes its proposal for failed\n", me, stands);
        no_backup()
    }
#endif

    /* As backup, or as a node that would be one. */
    :: d_step {
        FRAME_COMES && FRAME_IS_GOOD;
        take_frame()
    }
#ifdef REACH_OLD_PRIMARY_REFUSED
    :: d_step {
        FRAME_COMES && LIVES(me) && node[PEER].epoch < node[me].epoch;
        printf("node %d: refuses a frame of epoch %d\n", me, node[PEER].epoch);
        reach(node[me].role == PRIMARY && answered > 0 && answered_as[answered] == node[me].epoch)
    }
#endif
    :: d_step {
        ((node[me].role == EMPTY || (node[me].role == BACKUP && node[me].name < NAMES))
        && node[PEER].role == PRIMARY && node[PEER].phase == NONE);
        printf("node %d: joins in epoch %d with a snapshot\n", me, node[PEER].epoch);
#ifdef REACH_DEPOSED_TAIL_IS_REPLACED
        reach(node[me].count == node[PEER].count && !IS_ON_HISTORY_OF_PEER);
#endif
        take_snapshot();
        take_name()
    }
    :: d_step {
        ((node[me].role == EMPTY || (node[me].role == BACKUP && node[me].name < NAMES))
        && node[PEER].role == PRIMARY && node[PEER].phase == NONE
#ifdef DEPOSED_KEEPS_STATE
        && node[me].count <= node[PEER].count
#else
        && IS_ON_HISTORY_OF_PEER
#endif
        );
        printf("node %d: joins in epoch %d, continues\n", me, node[PEER].epoch);
#ifdef REACH_DEPOSED_CONTINUES
        reach(node[me].role == EMPTY && node[me].count == 1 && node[PEER].count == 2);
#endif
        take_name()
    }
    :: d_step {
        (node[me].role == BACKUP && node[me].epoch == stands && stands < EPOCHS
        && !proposal[TAKEOVER].name
#ifdef PROMOTE_NONMEMBER
        && view[stands].primary != me
#else
        && IS_OTHER_OF(me, stands)
#endif
        );
        printf("node %d: proposes itself alone in epoch %d\n", me, stands + 1);
        propose(TAKEOVER, 0)
    }
#ifdef PROMOTE_WITHOUT_CAS
    :: d_step {
        node[me].role == BACKUP && IS_OTHER_OF(me, node[me].epoch) && node[me].epoch < EPOCHS;
        node[me].epoch++;
        promote()
    }
#endif

    /* As either. Nobody is more than two views behind, so that these are all there are to learn. */
    :: d_step { LIVES(me) && node[me].epoch < stands; learn(node[me].epoch + 1) }
    :: d_step { LIVES(me) && node[me].epoch + 1 < stands; learn(stands) }
    :: d_step { LIVES(me); crash() }
    od
}

/* -- The register ----------------------------------------------------------------------------- */

#define CAN_WIN(kind) (stands < EPOCHS && proposal[kind].name)

proctype register() {
end:
    do
    :: d_step { CAN_WIN(JOINED); change_view(JOINED) }
    :: d_step { CAN_WIN(ALONE); change_view(ALONE) }
    :: d_step { CAN_WIN(TAKEOVER); change_view(TAKEOVER) }
    od
}

/* Node 0 has begun a history; node 1 is empty. */
init {
    d_step {
        node[0].role = PRIMARY;
        node[0].name = 1;
        node[0].epoch = 1;
        node[1].role = EMPTY;
        node[1].name = 1;
        view[1].primary = 0;
        view[1].name = 1
    }
    atomic {
        run a_node(0);
        run a_node(1);
        run register()
    }
}
