/* A pair of RDMA devices in memory; see fake_nic.h. */
#include "fake_nic.h"

#include "../cmocka_prelude.h"

#include <errno.h>

#define CONTROL_PIECE_BYTES 8

static void violated(struct fake_nic *nic, const char *rule)
{
    if (nic->violation[0] == '\0')
        snprintf(nic->violation, sizeof(nic->violation), "%s", rule);
}

static uint64_t below(struct fake_nic *nic, uint64_t limit)
{
    return test_random(nic->random) % limit;
}

/* ---- writes ---- */

static struct fake_write *write_new(struct fake_nic *nic, const void *data, uint32_t bytes)
{
    for (unsigned i = 0; i < FAKE_NIC_WRITES; i++) {
        struct fake_write *write = &nic->writes[i];

        if (write->used)
            continue;
        if (write->data_room < bytes) {
            write->data = realloc(write->data, bytes);
            write->data_room = bytes;
        }
        memcpy(write->data, data, bytes);
        write->used = true;
        write->bytes = bytes;
        write->placed = write->pieces = 0;
        write->spoiled = false;
        return write;
    }
    abort(); /* as many as can be in use at once */
}

static void write_delete(struct fake_write *write)
{
    if (write != NULL)
        write->used = false;
}

/* Cuts it into pieces and chooses their order; so late that the test can change the address before. */
static void write_begin(struct fake_nic *nic, struct fake_write *write, uint32_t piece_bytes)
{
    write->piece_bytes = piece_bytes;
    write->pieces = (write->bytes + piece_bytes - 1) / piece_bytes;
    write->placed = 0;
    if (write->order_room < write->pieces) {
        write->order = realloc(write->order, write->pieces * sizeof(write->order[0]));
        write->order_room = write->pieces;
    }
    for (uint32_t i = 0; i < write->pieces; i++) {
        uint32_t j = nic->in_order ? i : (uint32_t)below(nic, i + 1);

        write->order[i] = write->order[j];
        write->order[j] = i;
    }
}

/* What the peer's device checks for each packet: NULL unless the write may land. */
static uint8_t *landing(struct fake_nic *nic, const struct fake_write *write)
{
    struct fake_nic *peer = nic->peer;

    if (peer->dead || peer->failed)
        return NULL;
    for (unsigned i = 0; i < FAKE_NIC_REGIONS; i++) {
        const struct fake_region *region = &peer->regions[i];
        uint64_t begin = (uintptr_t)region->mr.addr;

        if (region->open && region->remote && region->mr.rkey == write->rkey)
            return write->address >= begin && write->bytes <= region->mr.length &&
                           write->address - begin <= region->mr.length - write->bytes ?
                       (uint8_t *)(uintptr_t)write->address :
                       NULL;
    }
    return NULL;
}

/* False: refused. */
static bool write_place_piece(struct fake_nic *nic, struct fake_write *write)
{
    uint8_t *to = landing(nic, write);
    uint32_t at, bytes;

    if (to == NULL)
        return false;
    at = write->order[write->placed++] * write->piece_bytes;
    bytes = write->bytes - at < write->piece_bytes ? write->bytes - at : write->piece_bytes;
    memcpy(to + at, write->data + at, bytes);
    return true;
}

/* ---- the send queue ---- */

static const struct fake_region *region_of(const struct fake_nic *nic, const struct ibv_sge *part)
{
    for (unsigned i = 0; i < FAKE_NIC_REGIONS; i++) {
        const struct fake_region *region = &nic->regions[i];
        uint64_t begin = (uintptr_t)region->mr.addr;

        if (region->open && region->mr.lkey == part->lkey)
            return part->addr >= begin && part->addr + part->length <= begin + region->mr.length ? region : NULL;
    }
    return NULL;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct fake_nic *nic = (struct fake_nic *)qp->context;

    for (; wr != NULL; wr = wr->next) {
        bool is_inline = (wr->send_flags & IBV_SEND_INLINE) != 0;
        struct fake_operation *operation = &nic->queue[(nic->first + nic->count) % VERBS_QUEUE_DEPTH];
        const uint8_t *source;

        *bad = wr;
        if (nic->refuse_posts > 0) {
            nic->refuse_posts--;
            return ENOMEM;
        }
        if (wr->opcode != IBV_WR_RDMA_WRITE || wr->num_sge != 1 || wr->sg_list[0].length == 0) {
            violated(nic, "something else than an RDMA WRITE of one part was posted");
            return EINVAL;
        }
        if (nic->occupied == VERBS_QUEUE_DEPTH) {
            violated(nic, "more was posted than the send queue holds");
            return ENOMEM;
        }
        if (is_inline && wr->sg_list[0].length > VERBS_INLINE_BYTES) {
            violated(nic, "more was posted inline than the queue pair takes");
            return EINVAL;
        }
        if (!is_inline && region_of(nic, &wr->sg_list[0]) == NULL) {
            violated(nic, "the source of a write is not in a registered region");
            return EINVAL;
        }
        source = (const uint8_t *)(uintptr_t)wr->sg_list[0].addr;
        operation->wr_id = wr->wr_id;
        operation->signaled = (wr->send_flags & IBV_SEND_SIGNALED) != 0;
        operation->source = is_inline ? NULL : source;
        operation->write = write_new(nic, source, wr->sg_list[0].length);
        operation->write->address = wr->wr.rdma.remote_addr;
        operation->write->rkey = wr->wr.rdma.rkey;
        nic->count++;
        nic->occupied++;
    }
    return 0;
}

static int poll_cq(struct ibv_cq *cq, int entries, struct ibv_wc *wc)
{
    struct fake_nic *nic = (struct fake_nic *)cq->context;
    int count = 0;

    if (nic->poll_fails)
        return -1;
    for (; count < entries && nic->completion_count > 0; count++) {
        wc[count] = nic->completions[nic->first_completion].wc;
        nic->occupied -= nic->completions[nic->first_completion].frees;
        nic->first_completion = (nic->first_completion + 1) % VERBS_QUEUE_DEPTH;
        nic->completion_count--;
    }
    return count;
}

/* Takes the oldest operation off the queue; its write is the caller's. */
static struct fake_write *operation_end(struct fake_nic *nic, enum ibv_wc_status status)
{
    struct fake_operation *operation = &nic->queue[nic->first];

    nic->frees++;
    if (operation->signaled || status != IBV_WC_SUCCESS) {
        unsigned at = (nic->first_completion + nic->completion_count) % VERBS_QUEUE_DEPTH;

        if (nic->completion_count == VERBS_QUEUE_DEPTH) {
            violated(nic, "more completions than the completion queue holds");
        } else {
            nic->completions[at].wc = (struct ibv_wc){ .wr_id = operation->wr_id, .status = status,
                                                       .opcode = IBV_WC_RDMA_WRITE };
            nic->completions[at].frees = nic->frees;
            nic->completion_count++;
            nic->frees = 0;
        }
    }
    nic->first = (nic->first + 1) % VERBS_QUEUE_DEPTH;
    nic->count--;
    return operation->write;
}

static void begin(struct fake_nic *nic, struct fake_operation *operation)
{
    if (operation->write->pieces == 0)
        write_begin(nic, operation->write, operation->wr_id == VERBS_WR_CONTROL ? CONTROL_PIECE_BYTES :
                                                                                  nic->piece_bytes);
}

bool fake_nic_step(struct fake_nic *nic)
{
    struct fake_operation *operation = &nic->queue[nic->first];
    struct fake_write *write = operation->write;

    if (nic->dead || nic->stuck || nic->count == 0)
        return false;
    if (nic->failed) {
        write_delete(operation_end(nic, IBV_WC_WR_FLUSH_ERR));
        return true;
    }
    begin(nic, operation);
    if (landing(nic, write) == NULL) {
        fake_nic_fail(nic, nic->peer->dead || nic->peer->failed ? IBV_WC_RETRY_EXC_ERR : IBV_WC_REM_ACCESS_ERR);
        return true;
    }
    if (write->placed < write->pieces)
        return write_place_piece(nic, write);
    /* Until it completes a device may have to send it again. */
    if (operation->source != NULL && !write->spoiled &&
        memcmp(operation->source, write->data, write->bytes) != 0)
        violated(nic, "the source of a write changed before its completion");
    if (operation->wr_id != VERBS_WR_CONTROL && operation->signaled && !nic->has_failed)
        nic->placed_index = operation->wr_id;
    operation_end(nic, IBV_WC_SUCCESS);
    if (operation->wr_id != VERBS_WR_CONTROL && below(nic, 2) == 0) {
        struct fake_write **slot = &nic->history[below(nic, FAKE_NIC_HISTORY)];

        write_delete(*slot);
        *slot = write;
    } else {
        write_delete(write);
    }
    return true;
}

struct fake_operation *fake_nic_front(struct fake_nic *nic, bool control)
{
    struct fake_operation *operation = &nic->queue[nic->first];

    return nic->count > 0 && !nic->dead && !nic->failed && (operation->wr_id == VERBS_WR_CONTROL) == control ?
               operation :
               NULL;
}

/* ---- misbehaviour ---- */

static void straggler_add(struct fake_nic *nic, struct fake_write *write)
{
    for (unsigned i = 0; i < FAKE_NIC_STRAGGLERS; i++) {
        if (nic->stragglers[i] == NULL) {
            nic->stragglers[i] = write;
            return;
        }
    }
    write_delete(write);
}

bool fake_nic_straggle(struct fake_nic *nic)
{
    uint64_t from = below(nic, FAKE_NIC_STRAGGLERS);

    for (unsigned i = 0; i < FAKE_NIC_STRAGGLERS; i++) {
        struct fake_write **slot = &nic->stragglers[(from + i) % FAKE_NIC_STRAGGLERS];

        if (*slot == NULL)
            continue;
        if (nic->dead || (*slot)->placed == (*slot)->pieces || !write_place_piece(nic, *slot)) {
            write_delete(*slot);
            *slot = NULL;
        }
        return true;
    }
    return false;
}

void fake_nic_complete_early(struct fake_nic *nic, bool lost)
{
    struct fake_write *write;

    begin(nic, &nic->queue[nic->first]);
    write = operation_end(nic, IBV_WC_SUCCESS);
    if (lost)
        write_delete(write);
    else
        straggler_add(nic, write);
}

bool fake_nic_complete_with_holes(struct fake_nic *nic)
{
    struct fake_operation *operation = &nic->queue[nic->first];
    uint32_t left;

    begin(nic, operation);
    left = operation->write->pieces - operation->write->placed;
    if (left < 2)
        return false;
    operation->write->pieces -= 1 + (uint32_t)below(nic, left - 1); /* the last ones of the order never come */
    fake_nic_complete_early(nic, false);
    return true;
}

bool fake_nic_repeat(struct fake_nic *nic)
{
    struct fake_write **slot = &nic->history[below(nic, FAKE_NIC_HISTORY)], *again;

    if (*slot == NULL)
        return false;
    again = write_new(nic, (*slot)->data, (*slot)->bytes);
    again->address = (*slot)->address;
    again->rkey = (*slot)->rkey;
    write_begin(nic, again, (*slot)->piece_bytes);
    straggler_add(nic, again);
    return true;
}

void fake_nic_fail(struct fake_nic *nic, enum ibv_wc_status status)
{
    nic->failed = nic->has_failed = true;
    write_delete(operation_end(nic, status));
}

/* ---- set-up, and what the fence does ---- */

int fake_nic_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask)
{
    struct fake_nic *nic = (struct fake_nic *)qp->context;

    if (mask != IBV_QP_STATE || attributes->qp_state != IBV_QPS_ERR)
        return EINVAL;
    nic->failed = true;
    return 0;
}

int fake_nic_dereg_mr(struct ibv_mr *mr)
{
    struct fake_region *region = (struct fake_region *)mr;

    region->open = false;
    return 0;
}

static struct ibv_mr *region_open(struct fake_nic *nic, unsigned i, void *memory, size_t bytes, bool remote)
{
    struct fake_region *region = &nic->regions[i];

    *region = (struct fake_region){ .remote = remote, .open = true };
    region->mr = (struct ibv_mr){ .context = &nic->context, .addr = memory, .length = bytes,
                                  .lkey = (uint32_t)test_random(nic->random),
                                  .rkey = (uint32_t)test_random(nic->random) };
    return &region->mr;
}

void fake_nic_join(struct fake_nic nics[2], struct verbs_link *links[2], uint8_t *rings[2], uint8_t *pages[2],
                   uint64_t ring_bytes, uint64_t key, enum channel_ack ack, uint64_t *random)
{
    for (int i = 0; i < 2; i++) {
        struct fake_nic *nic = &nics[i];
        struct verbs_link *link = links[i];
        struct fake_write writes[FAKE_NIC_WRITES];

        memcpy(writes, nic->writes, sizeof(writes)); /* their buffers */
        memset(nic, 0, sizeof(*nic));
        memcpy(nic->writes, writes, sizeof(writes));
        for (unsigned j = 0; j < FAKE_NIC_WRITES; j++)
            nic->writes[j].used = false;
        nic->context.ops.post_send = post_send;
        nic->context.ops.poll_cq = poll_cq;
        nic->qp.context = nic->cq.context = nic->id.verbs = &nic->context;
        nic->id.qp = &nic->qp;
        nic->peer = &nics[1 - i];
        nic->random = random;
        nic->piece_bytes = 64;

        memset(link, 0, sizeof(*link));
        link->channel.operations = &verbs_operations;
        link->channel.is_sender = i == 0;
        link->channel.credit = &link->channel.own_credit;
        snprintf(link->name, sizeof(link->name), "fake");
        link->now.id = &nic->id;
        link->now.cq = &nic->cq;
        link->key = key;
        link->ring = rings[i];
        link->ring_bytes = ring_bytes;
        link->control_page = pages[i];
        link->in = (struct control_block *)pages[i];
        link->out = (struct control_block *)(pages[i] + 512);
        link->now.inline_bytes = test_random(random) % 4 == 0 ? 0 : VERBS_INLINE_BYTES;
        link->turn.in_flight_limit = VERBS_WRITES_IN_FLIGHT;
        memset(link->in, 0, sizeof(*link->in));
        link->now.ring_mr = region_open(nic, 0, rings[i], ring_bytes, i == 1);
        link->now.in_mr = region_open(nic, 1, link->in, sizeof(*link->in), true);
        link->now.out_mr = region_open(nic, 2, link->out, sizeof(*link->out), false);
    }
    links[0]->now.peer.ring_address = (uintptr_t)rings[1];
    links[0]->now.peer.ring_rkey = links[1]->now.ring_mr->rkey;
    for (int i = 0; i < 2; i++) {
        links[i]->now.peer.control_address = (uintptr_t)links[1 - i]->in;
        links[i]->now.peer.control_rkey = links[1 - i]->now.in_mr->rkey;
        verbs_requests_init(links[i]);
    }
    send_ring_init(&links[0]->channel.send, rings[0], ring_bytes, key, links[0]->channel.credit);
    links[0]->channel.ack = ack;
    link_receive_init(&links[1]->channel, rings[1], ring_bytes, key, ack);
}

void fake_nic_reset(struct fake_nic *nic)
{
    for (; nic->count > 0; nic->count--) {
        write_delete(nic->queue[nic->first].write);
        nic->first = (nic->first + 1) % VERBS_QUEUE_DEPTH;
    }
    nic->occupied = nic->completion_count = nic->frees = 0;
    nic->failed = nic->has_failed = nic->poll_fails = nic->stuck = false;
    nic->refuse_posts = 0;
}

void fake_nic_join_again(struct fake_nic nics[2], struct verbs_link *links[2], struct verbs_connection made[2])
{
    for (int i = 0; i < 2; i++) {
        unsigned first = ++nics[i].connections % 2 * 3;
        struct verbs_link *link = links[i];

        made[i] = (struct verbs_connection){ .id = &nics[i].id, .cq = &nics[i].cq, .inline_bytes = VERBS_INLINE_BYTES };
        made[i].ring_mr = region_open(&nics[i], first, link->ring, link->ring_bytes, i == 1);
        made[i].in_mr = region_open(&nics[i], first + 1, link->in, sizeof(*link->in), true);
        made[i].out_mr = region_open(&nics[i], first + 2, link->out, sizeof(*link->out), false);
    }
    made[0].peer.ring_address = (uintptr_t)links[1]->ring;
    made[0].peer.ring_rkey = made[1].ring_mr->rkey;
    for (int i = 0; i < 2; i++) {
        made[i].peer.control_address = (uintptr_t)links[1 - i]->in;
        made[i].peer.control_rkey = made[1 - i].in_mr->rkey;
    }
    fake_nic_reset(&nics[1]);
}

void fake_nic_free(struct fake_nic nics[2])
{
    for (int i = 0; i < 2; i++) {
        for (unsigned j = 0; j < FAKE_NIC_WRITES; j++) {
            free(nics[i].writes[j].data);
            free(nics[i].writes[j].order);
        }
    }
}
