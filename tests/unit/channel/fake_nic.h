/*
 * A stand-in for a pair of RDMA devices, for tests of the verbs link: carries out posted RDMA WRITEs in this
 * process, piece by piece in any order, whenever the test says so; checks what a device checks; and can be told to
 * misbehave. No threads, no clock: the same calls give the same bytes.
 */
#ifndef FTVMM_TESTS_FAKE_NIC_H
#define FTVMM_TESTS_FAKE_NIC_H

#include "channel/link_verbs.h"

#define FAKE_NIC_REGIONS    6 /* three of a connection, and of the one before it */
#define FAKE_NIC_STRAGGLERS 8
#define FAKE_NIC_HISTORY    4
#define FAKE_NIC_WRITES     (VERBS_QUEUE_DEPTH + FAKE_NIC_STRAGGLERS + FAKE_NIC_HISTORY)

/* Bytes on their way into the peer's memory. */
struct fake_write {
    bool used;
    uint64_t address; /* in the peer's memory */
    uint32_t rkey, bytes;
    uint32_t piece_bytes, pieces, placed;
    bool spoiled; /* the test has changed `data` */
    uint8_t *data;
    uint32_t *order; /* in which the pieces are placed */
    size_t data_room, order_room;
};

struct fake_operation {
    uint64_t wr_id;
    bool signaled;
    const uint8_t *source; /* NULL: inline, else what a device may have to read again until it completes */
    struct fake_write *write;
};

struct fake_region {
    struct ibv_mr mr;
    bool remote; /* the peer may write */
    bool open;
};

struct fake_nic {
    struct ibv_context context; /* first: how the inline calls of verbs.h find us */
    struct ibv_qp qp;
    struct ibv_cq cq;
    struct rdma_cm_id id;
    struct fake_nic *peer;
    uint64_t *random; /* the test's generator */
    struct fake_region regions[FAKE_NIC_REGIONS];
    unsigned connections;

    /* how it behaves; the test's to change */
    bool in_order;         /* pieces from the front to the end, else at random */
    uint32_t piece_bytes;  /* of writes of records */
    bool dead;             /* power is off: nothing leaves, nothing arrives, nobody is told */
    bool stuck;            /* what is being written never ends */
    bool failed;           /* the queue pair is in the error state */
    unsigned refuse_posts; /* so many of the next posts fail with ENOMEM */
    bool poll_fails;       /* the completion queue cannot be read */

    struct fake_operation queue[VERBS_QUEUE_DEPTH];
    unsigned first, count;
    unsigned occupied; /* entries of the send queue: a reaped completion frees its own and those before it */
    struct {
        struct ibv_wc wc;
        unsigned frees;
    } completions[VERBS_QUEUE_DEPTH];
    unsigned first_completion, completion_count, frees;

    struct fake_write writes[FAKE_NIC_WRITES];
    struct fake_write *stragglers[FAKE_NIC_STRAGGLERS]; /* reported as done, or done before, and yet under way */
    struct fake_write *history[FAKE_NIC_HISTORY];       /* some that were placed whole */

    bool has_failed;       /* some operation has: an ack of what stood behind it would prove nothing */
    uint64_t placed_index; /* highest wr_id of a write of records that was placed whole, with all before it */
    char violation[160];   /* the first rule that the program under test broke; "": none */
};

/* Puts two ends together as joining does: rings of `ring_bytes` at `rings`, control pages at `pages`, both zeroed or
 * not by the caller. Keeps buffers of the last use. operations, keys, addresses are set; nothing is posted. */
void fake_nic_join(struct fake_nic nics[2], struct verbs_link *links[2], uint8_t *rings[2], uint8_t *pages[2],
                   uint64_t ring_bytes, uint64_t key, enum channel_ack ack, uint64_t *random);
/* The same for a connection that is to replace one, as the conversation that resumes does: made[] are its ends. The
 * receiver's end of the old one is gone by now, and what it had under way. */
void fake_nic_join_again(struct fake_nic nics[2], struct verbs_link *links[2], struct verbs_connection made[2]);
/* The queue pair is a new one: what the old one had under way is forgotten. */
void fake_nic_reset(struct fake_nic *nic);
void fake_nic_free(struct fake_nic nics[2]);

/* The next step of the oldest operation: one piece, or its completion. False: nothing to do. */
bool fake_nic_step(struct fake_nic *nic);
/* One piece of some straggler. False: there is none. */
bool fake_nic_straggle(struct fake_nic *nic);
/* The oldest operation, if it is a write of records (or `control`: a control block); else NULL. */
struct fake_operation *fake_nic_front(struct fake_nic *nic, bool control);

/* ---- misbehaviour ---- */

/* The oldest operation is reported as done at once; what it still has to place is placed later, or never (`lost`). */
void fake_nic_complete_early(struct fake_nic *nic, bool lost);
/* The same, with `missing` of its pieces never placed. False: it has too few. */
bool fake_nic_complete_with_holes(struct fake_nic *nic);
/* A write that was placed long ago comes again. False: none is remembered. */
bool fake_nic_repeat(struct fake_nic *nic);
/* The oldest operation ends with `status`; the queue pair goes to error. */
void fake_nic_fail(struct fake_nic *nic, enum ibv_wc_status status);

/* What the fence calls, to be linked in place of ibv_modify_qp and ibv_dereg_mr. */
int fake_nic_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask);
int fake_nic_dereg_mr(struct ibv_mr *mr);

#endif
