/*
 * The steps of the model in holdfast.pml: what each does, once it may be done. `me` is the node.
 */

/* -- Invariants ------------------------------------------------------------------------------- */

inline check_member(i) {
    check_inside(I2_members_have_answered, !(LIVES(i) && IS_MEMBER_OF(i, stands) && IS_OLD(i)))
}

inline check_members() {
    check_member(0);
    check_member(1)
}

inline answer_stale_read() {
    printf("node %d: answers the read from old state\n", me);
    check(I3_no_stale_answer, false)
}

/* Views that nobody can name any more are forgotten, so that states that differ by them only are
   one state. */
inline forget_views() {
    k = 1;
    do
    :: k < stands && !(LIVES(0) && node[0].epoch <= k) && !(LIVES(1) && node[1].epoch <= k) ->
        view[k].primary = 0;
        view[k].name = 0;
        view[k].other = 0;
        k++
    :: else -> break
    od;
    k = 0
}

/* -- A primary and its client ----------------------------------------------------------------- */

inline append() {
    printf("node %d: appends operation %d in epoch %d\n", me, node[me].count + 1, node[me].epoch);
    node[me].count++;
    node[me].appended[node[me].count] = node[me].epoch;
    if
    :: HAS_LINK(me) ->
        node[me].sent++;
        node[me].carrier[node[me].count] = node[me].sent
    :: else
    fi
}

inline answer() {
    printf("node %d: answers up to operation %d in epoch %d\n", me, node[me].count, node[me].epoch);
    check_inside(I3_primary_of_its_epoch, IS_PRIMARY_OF(me, node[me].epoch));
    check(I2_answered_is_here, !LACKS_ANSWERED(me));
    check(I4_executed_once, !HAS_ANY_OTHERWISE(me));
    answered = node[me].count;
    k = 1;
    do
    :: k <= answered -> answered_as[k] = node[me].appended[k]; k++
    :: else -> break
    od;
    k = 0;
    check_members();
#ifdef REACH_PROMOTED_ANSWERS
    reach(node[me].epoch == 3 && me == 1 && answered_as[1] == 1 && answered_as[2] == 3);
#endif
#ifdef REACH_REJOINED_ANSWERS
    reach(node[me].epoch == 5 && me == 0 && node[me].name > 1 && answered_as[2] == 5);
#endif
#ifdef REACH_THREE_REIGNS_ANSWER
    reach(reigns == 3 && answered_as[1] == 3 && answered_as[2] == 5 && answered_as[3] == 7);
#endif
}

/* Somebody reads here after an operation was answered that is not here. */
inline read_old_state() {
    printf("node %d: computes a read from old state in epoch %d\n", me, node[me].epoch);
#ifdef READS_WITHOUT_ACK
    answer_stale_read();
#endif
    if
    :: HAS_LINK(me) -> node[me].sent++; node[me].stale_read = node[me].sent
    :: !HAS_LINK(me) && node[me].phase == BLOCKED -> node[me].stale_read = FRAMES + 1
    :: else -> answer_stale_read()
    fi;
#ifdef REACH_STALE_READ_HELD_BACK
    reach(true);
#endif
}

/* -- A primary and its backup ----------------------------------------------------------------- */

inline no_backup() {
    node[me].phase = NONE;
    node[me].backup = 0;
    node[me].required = 0;
    node[me].acked = node[me].sent;     /* older frames are nobody's now */
    node[me].carrier[1] = 0;
    node[me].carrier[2] = 0;
    node[me].carrier[3] = 0
}

inline propose(kind, joiner) {
    if
    :: node[me].epoch == stands && stands < EPOCHS ->
        proposal[kind].primary = me;
        proposal[kind].name = node[me].name;
        proposal[kind].other = joiner
    :: else                             /* another view stands: it is refused */
    fi
}

/* The backup, this node, joins its peer: CONTINUE if what it has is on the peer's history, or
   BEGIN, the whole state. */
inline take_name() {
    node[me].name = (node[me].role == EMPTY -> node[me].name : node[me].name + 1);
    node[me].role = BACKUP;
    node[me].epoch = node[PEER].epoch;
    node[PEER].phase = JOINING;
    node[PEER].backup = node[me].name;
    forget_views()
}

inline take_snapshot() {
    node[me].count = node[PEER].count;
    node[me].appended[1] = node[PEER].appended[1];
    node[me].appended[2] = node[PEER].appended[2];
    node[me].appended[3] = node[PEER].appended[3]
}

inline require_acks() {
    printf("node %d: requires acks of name %d\n", me, node[me].backup);
    node[me].phase = REQUIRED;
    node[me].sent++;
    node[me].required = node[me].sent;
    k = 1;
    do
    :: k <= node[me].count -> node[me].carrier[k] = node[me].sent; k++
    :: else -> break
    od;
    k = 0
}

inline propose_joined() {
    printf("node %d: proposes to admit name %d\n", me, node[me].backup);
    node[me].phase = PROPOSED;
    propose(JOINED, node[me].backup)
}

/* This node, a backup, takes the next frame of its peer, and acknowledges it. */
inline take_frame() {
    printf("node %d: takes frame %d of epoch %d\n", me, node[PEER].acked + 1, node[PEER].epoch);
    if
    :: node[me].epoch < node[PEER].epoch -> node[me].epoch = node[PEER].epoch
    :: else
    fi;
    node[PEER].acked++;
    k = node[me].count + 1;
    do
    :: k <= node[PEER].count && node[PEER].carrier[k] <= node[PEER].acked ->
        node[me].appended[k] = node[PEER].appended[k];
        node[me].count = k;
        k++
    :: else -> break
    od;
    k = 0;
    forget_views()
}

/* -- Views come to be known ------------------------------------------------------------------- */

inline go_on_alone() {
    no_backup();
    if
    :: node[me].stale_read -> answer_stale_read()
    :: else
    fi;
    node[me].sent = 0;
    node[me].acked = 0
}

inline tell_backup_of_view() {
    node[me].phase = MEMBER;
    node[me].required = 0;
#ifdef EARLIER_EPOCH_ACK_COUNTS
    /* what was acknowledged in the epoch before is still counted */
#else
    node[me].acked = 0;
#endif
    node[me].sent = 1;                  /* VIEW: behind all that was appended before it */
    node[me].carrier[1] = (node[me].count >= 1 -> 1 : 0);
    node[me].carrier[2] = (node[me].count >= 2 -> 1 : 0);
    node[me].carrier[3] = (node[me].count >= 3 -> 1 : 0);
    node[me].stale_read = (node[me].stale_read -> 1 : 0)
}

/* Its own proposal, whose answer was lost, had won, and the backup was lost meanwhile. */
inline go_on_blocked() {
    no_backup();
    node[me].phase = BLOCKED;
    node[me].sent = 0;
    node[me].acked = 0;
    propose(ALONE, 0);
#ifdef REACH_LOST_ANSWER_HAD_WON
    reach(true);
#endif
}

inline stand_down() {
    printf("node %d: is deposed\n", me);
#ifdef REACH_DEPOSED_WHILE_HOLDING_BACK
    reach(node[me].stale_read && node[me].count > 1);
#endif
    no_backup();
    node[me].sent = 0;
    node[me].acked = 0;
#ifndef DEPOSED_KEEPS_REPLIES
    node[me].stale_read = 0;
#endif
    node[me].epoch = 0;
    lose_name()
}

inline promote() {
    printf("node %d: is promoted in epoch %d\n", me, node[me].epoch);
    node[me].role = PRIMARY;
#ifdef REACH_THREE_REIGNS_ANSWER
    reigns++;
#endif
#ifdef REACH_ADMITTED_WITHOUT_BEING_TOLD
    reach(node[PEER].role == PRIMARY && node[PEER].phase == PROPOSED);
#endif
    if
    :: node[me].stale_read -> answer_stale_read()
    :: else
    fi
}

inline lose_name() {
    if
    :: node[me].name < NAMES -> node[me].name++; node[me].role = EMPTY
    :: else -> node[me].role = GONE; forget_state()
    fi
}

inline forget_state() {
    node[me].count = 0;
    node[me].appended[1] = 0;
    node[me].appended[2] = 0;
    node[me].appended[3] = 0
}

#define IS_NAMED_PRIMARY IS_PRIMARY_OF(me, node[me].epoch)

inline learn(which) {
    node[me].epoch = which;             /* the text of `which` may name the epoch: not used again */
    printf("node %d: learns the view of epoch %d\n", me, node[me].epoch);
    if
    :: node[me].role == PRIMARY && !IS_NAMED_PRIMARY -> stand_down()
    :: node[me].role == PRIMARY && IS_NAMED_PRIMARY ->
        if
        :: !view[node[me].epoch].other -> go_on_alone()
        :: view[node[me].epoch].other && node[me].phase == PROPOSED -> tell_backup_of_view()
        :: else -> go_on_blocked()
        fi
    :: node[me].role == BACKUP && IS_NAMED_PRIMARY -> promote()
    :: else                             /* a backup: a member of this view, or no longer one */
    fi;
    forget_views()
}

inline crash() {
    printf("node %d: crashes and restarts\n", me);
    forget_state();
    no_backup();
    node[me].sent = 0;
    node[me].acked = 0;
    node[me].stale_read = 0;
#ifndef RESTART_KEEPS_IDENTITY
    node[me].epoch = 0;
    lose_name();
#endif
    forget_views()
}

/* -- The register ----------------------------------------------------------------------------- */

inline change_view(kind) {
    stands++;
    view[stands].primary = proposal[kind].primary;
    view[stands].name = proposal[kind].name;
    view[stands].other = proposal[kind].other;
    say_view();
#ifdef REACH_PROPOSAL_OF_THE_DEAD_WINS
    reach(node[view[stands].primary].name != view[stands].name);
#endif
#ifndef REGISTER_WITHOUT_COMPARE
    forget_proposal(JOINED);
    forget_proposal(ALONE);
    forget_proposal(TAKEOVER);
#endif
    check_inside(I3_primary_was_member, PRIMARY_WAS_MEMBER);
    check_inside(views_behind_at_most_2, !IS_FAR_BEHIND(0) && !IS_FAR_BEHIND(1));
    check_members();
    forget_views()
}

inline say_view() {
    if
    :: view[stands].other ->
        printf("register: epoch %d: node %d, and name %d of the other\n",
            stands, view[stands].primary, view[stands].other)
    :: else -> printf("register: epoch %d: node %d alone\n", stands, view[stands].primary)
    fi
}

inline forget_proposal(kind) {
    proposal[kind].primary = 0;
    proposal[kind].name = 0;
    proposal[kind].other = 0
}
