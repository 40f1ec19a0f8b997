/*
 * Damage of the log is found and never applied: both ends of the verbs link on devices that misbehave by seed
 * (fake_nic.h). What holds in every world, whatever was done to it:
 *
 *   - what the receiver delivers is what was committed, in order, byte for byte;
 *   - once it has said -EBADMSG, it says so for ever;
 *   - with a living sender nothing stays missing: it is delivered, or the receiver stops;
 *   - after the sender's death, fence and drain, all that was acked is there, or the receiver has stopped. Except when
 *     the device lied (said "done" of what never arrived) and the sender died before it could tell: nobody is left who
 *     knows. Such worlds are counted, and each is checked to be one;
 *   - a connection that is cut while both live is resumed, at whatever step of its life or of resuming: then nothing is
 *     lost, and the receiver never stops for it;
 *   - nothing lands after the fence, and a sender that was only frozen and wakes gets no ack for what did not land
 *     before; no source of a write changes before its completion.
 *
 * FTVMM_TEST_SOAK=N makes N times as many worlds.
 */
#include "fake_nic.h"

#include "base/report.h"

#include "../cmocka_prelude.h"

#include <errno.h>

#define RING_MAX_BYTES (512u << 10)
#define PAGE_BYTES     4096u
#define RECORDS_MAX    256u
#define DEATHS_OF      150u  /* worlds in which the sender dies at every step, one after the other */
#define RESUMED_WORLDS 3000u
#ifndef INJECTIONS
#define INJECTIONS 100000u /* at least so many, over all faults */
#endif

/* ---- in place of the world outside; linked with --wrap ---- */

static uint64_t now_ns;
static char last_error[512], last_warning[512];
static bool modify_fails, dereg_fails;

int __wrap_clock_gettime(clockid_t id, struct timespec *time);
int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask);
int __wrap_ibv_dereg_mr(struct ibv_mr *mr);
int __wrap_rdma_disconnect(struct rdma_cm_id *id);
int __wrap_rdma_get_cm_event(struct rdma_event_channel *events, struct rdma_cm_event **event);
void __wrap_report_warning(const char *format, ...);
void __wrap_report_error(const char *format, ...);

int __wrap_clock_gettime(clockid_t id, struct timespec *time)
{
    (void)id;
    time->tv_sec = (time_t)(now_ns / NS_PER_S);
    time->tv_nsec = (long)(now_ns % NS_PER_S);
    return 0;
}

int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask)
{
    return modify_fails ? EINVAL : fake_nic_modify_qp(qp, attributes, mask);
}

int __wrap_ibv_dereg_mr(struct ibv_mr *mr)
{
    return dereg_fails ? EBUSY : fake_nic_dereg_mr(mr);
}

int __wrap_rdma_disconnect(struct rdma_cm_id *id)
{
    (void)id;
    return 0;
}

int __wrap_rdma_get_cm_event(struct rdma_event_channel *events, struct rdma_cm_event **event)
{
    (void)events;
    (void)event;
    errno = EAGAIN;
    return -1;
}

void __wrap_report_warning(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(last_warning, sizeof(last_warning), format, arguments);
    va_end(arguments);
}

void __wrap_report_error(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(last_error, sizeof(last_error), format, arguments);
    va_end(arguments);
}

/* ---- a world ---- */

enum fault {
    FAULT_FLIP_ON_WAY,   /* bits of a write, between the sender's memory and the receiver's */
    FAULT_FLIP_IN_RING,  /* bits of what lies in the receiver's ring, not yet looked at */
    FAULT_FLIP_TOLD,     /* bits of the control block that the sender wrote */
    FAULT_FLIP_CREDIT,   /* bits of the control block that the receiver wrote */
    FAULT_LOST,          /* reported as done and never placed */
    FAULT_LOST_CONTROL,  /* the same of a control block, of either end */
    FAULT_STALE,         /* reported as done, and some pieces never placed: bytes of an earlier lap stay */
    FAULT_LATE,          /* reported as done, placed later, perhaps behind what was written after it */
    FAULT_REPEATED,      /* an old write comes again, before or after its place was used anew */
    FAULT_MISPLACED,     /* lands somewhere else in the ring */
    FAULT_RKEY,          /* bears a key that is not the ring's */
    FAULT_RANGE,         /* reaches beyond the ring's end, or begins before its start */
    FAULT_ERROR,         /* ends with an error after any part of it was placed */
    FAULT_ERROR_IGNORED, /* the same, and the device calls what is behind it a success */
    FAULT_POST_REFUSED,  /* the device takes no more */
    FAULT_QUEUE_BROKEN,  /* completions cannot be read */
    FAULT_STUCK,         /* a write that never ends */
    FAULT_SENDER_DIES,
    FAULT_RECEIVER_DIES,
    FAULTS
};

static const char *const fault_names[FAULTS] = {
    [FAULT_FLIP_ON_WAY] = "bits flipped on the way",
    [FAULT_FLIP_IN_RING] = "bits flipped in the ring",
    [FAULT_FLIP_TOLD] = "bits flipped in the sender's control block",
    [FAULT_FLIP_CREDIT] = "bits flipped in the receiver's control block",
    [FAULT_LOST] = "write lost, called done",
    [FAULT_LOST_CONTROL] = "control block lost, called done",
    [FAULT_STALE] = "stale bytes stay, called done",
    [FAULT_LATE] = "called done, placed later",
    [FAULT_REPEATED] = "old write repeated",
    [FAULT_MISPLACED] = "write misplaced",
    [FAULT_RKEY] = "wrong rkey",
    [FAULT_RANGE] = "address out of range",
    [FAULT_ERROR] = "error completion",
    [FAULT_ERROR_IGNORED] = "success behind an error",
    [FAULT_POST_REFUSED] = "post refused",
    [FAULT_QUEUE_BROKEN] = "completion queue broken",
    [FAULT_STUCK] = "write never ends",
    [FAULT_SENDER_DIES] = "sender dies",
    [FAULT_RECEIVER_DIES] = "receiver dies",
};

/* After these an ack proves nothing: the device said "done" of bytes that are not there, or they changed since. */
static bool fault_is_a_lie(enum fault fault)
{
    return fault == FAULT_FLIP_ON_WAY || fault == FAULT_FLIP_IN_RING || fault == FAULT_LOST || fault == FAULT_STALE ||
           fault == FAULT_LATE || fault == FAULT_REPEATED || fault == FAULT_MISPLACED;
}

struct world {
    uint64_t seed, random;
    struct fake_nic nics[2];
    struct verbs_link *links[2];
    uint8_t *rings[2], *pages[2];
    struct channel *sender, *receiver;
    uint64_t ring_bytes;
    uint32_t sizes[RECORDS_MAX + 1]; /* of payloads, by LSN */
    unsigned records;                /* to be committed at most */
    unsigned weights[9], weight_sum; /* of what may happen next */
    uint64_t delivered;
    uint64_t told;     /* highest acked LSN that a whole control block has told the receiver */
    bool holds;        /* the receiver has looked at a record and not consumed it */
    bool sender_alive, receiver_alive;
    bool lied, spoiled; /* by a fault that is a lie; by any but a death */
    bool filled;        /* the ring was full to the last byte */
    bool heals;         /* a broken connection is resumed */
    int end;            /* -EBADMSG, -ENODATA; 0: all was delivered to the living */
    struct {
        enum { NOT_RESUMING, HELD, GRANTED, TAKEN, UP_FIRST } stage;
        struct verbs_connection made[2];
        struct handshake_log log;
    } resume;
};

static struct {
    uint64_t worlds, records, torn, damaged, filled;
    uint64_t injected[FAULTS], stopped[FAULTS], gone[FAULTS];
} totals;

static uint64_t below(struct world *world, uint64_t limit)
{
    return test_random(&world->random) % limit;
}

#define world_check(world, what)                                                                                       \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            fail_msg("world 0x%llx: not so: %s (delivered %llu, acked %llu, committed %llu; %s)",                      \
                     (unsigned long long)(world)->seed, #what, (unsigned long long)(world)->delivered,                 \
                     (unsigned long long)channel_acked_lsn((world)->sender),                                           \
                     (unsigned long long)channel_committed_lsn((world)->sender), last_error);                          \
    } while (0)

static struct world *world_new(void)
{
    struct world *world = calloc(1, sizeof(*world));

    for (int i = 0; i < 2; i++) {
        world->rings[i] = aligned_alloc(PAGE_BYTES, RING_MAX_BYTES);
        world->pages[i] = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
        world->links[i] = link_allocate(sizeof(struct verbs_link));
        memset(world->rings[i], 0, RING_MAX_BYTES);
        memset(world->pages[i], 0, PAGE_BYTES);
    }
    world->sender = &world->links[0]->channel;
    world->receiver = &world->links[1]->channel;
    return world;
}

static void world_delete(struct world *world)
{
    fake_nic_free(world->nics);
    for (int i = 0; i < 2; i++) {
        free(world->rings[i]);
        free(world->pages[i]);
        free(world->links[i]);
    }
    free(world);
}

static void world_begin(struct world *world, uint64_t seed)
{
    world->seed = world->random = seed;
    /* Mostly small, so that laps are short; now and then with room for the largest records. */
    world->ring_bytes = below(world, 200) == 0 ? RING_MAX_BYTES : UINT64_C(4096) << below(world, 4);
    /* What lies in the rings: of the last world (an earlier generation), nothing, or ones. */
    for (int i = 0; i < 2; i++) {
        uint64_t what = below(world, 3);

        if (what > 0)
            memset(world->rings[i], what == 1 ? 0 : 0xff, world->ring_bytes);
    }
    fake_nic_join(world->nics, world->links, world->rings, world->pages, world->ring_bytes,
                  test_random(&world->random) | 1, below(world, 2) == 0 ? CHANNEL_ACK_PLACED : CHANNEL_ACK_SEEN,
                  &world->random);
    for (int i = 0; i < 2; i++) {
        world->nics[i].in_order = below(world, 2) == 0;
        world->nics[i].piece_bytes = world->ring_bytes == RING_MAX_BYTES ? 4096 : 64u >> below(world, 4);
    }
    world->records = 1 + (unsigned)below(world, world->ring_bytes == RING_MAX_BYTES ? 24 : RECORDS_MAX);
    world->weight_sum = 0;
    for (unsigned i = 0; i < sizeof(world->weights) / sizeof(world->weights[0]); i++)
        world->weight_sum += world->weights[i] = 1 + (unsigned)below(world, 8);
    world->weight_sum += 30; /* devices are busier than programs: most of a write's steps are theirs */
    world->weights[2] += 30;
    world->delivered = world->told = 0;
    world->holds = world->lied = world->spoiled = world->filled = false;
    world->sender_alive = world->receiver_alive = true;
    world->end = 0;
    world->resume.stage = NOT_RESUMING;
    world->heals = below(world, 2) == 0;
    now_ns = NS_PER_S;
    last_error[0] = '\0';
    modify_fails = dereg_fails = false;
}

/* Payload of a record: what the world's seed and the LSN make it. */
static uint64_t content(const struct world *world, uint64_t lsn, uint64_t word)
{
    return (world->seed ^ lsn << 32 ^ word) * UINT64_C(0x9e3779b97f4a7c15);
}

static void content_fill(const struct world *world, uint64_t lsn, uint8_t *payload, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += 8) {
        uint64_t word = content(world, lsn, i);

        memcpy(payload + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

static bool content_is(const struct world *world, uint64_t lsn, const uint8_t *payload, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += 8) {
        uint64_t word = content(world, lsn, i);

        if (memcmp(payload + i, &word, bytes - i < 8 ? bytes - i : 8) != 0)
            return false;
    }
    return true;
}

/* ---- what happens ---- */

static uint32_t size_choose(struct world *world)
{
    struct send_ring *ring = &world->sender->send;
    uint64_t most = world->ring_bytes == RING_MAX_BYTES ? CHANNEL_PAYLOAD_MAX_BYTES : world->ring_bytes / 4;
    uint64_t left = ring->ring_bytes - (ring->head - atomic_load(&ring->credit->bytes));
    uint64_t to_end = ring->ring_bytes - (ring->head & (ring->ring_bytes - 1));

    if (left > to_end)
        left = to_end;
    /* Sometimes the one that fills what is left, to the credit or to the ring's end. */
    if (left >= FRAME_ALIGN_BYTES && left - 40 <= most && below(world, 4) == 0)
        return (uint32_t)(left - 40);
    return (uint32_t)(below(world, 16) == 0 ? below(world, most + 1) : below(world, 200));
}

static void sender_commits(struct world *world)
{
    uint64_t lsn = channel_committed_lsn(world->sender) + 1;
    void *payload;
    uint32_t bytes;
    int result;

    if (lsn > world->records)
        return;
    bytes = size_choose(world);
    result = channel_reserve(world->sender, (uint16_t)(lsn * 7), lsn * 3, bytes, &payload);
    if (result != 0) {
        world_check(world, result == -EAGAIN || (result == -EPIPE && atomic_load(&world->sender->down)));
        return;
    }
    world->sizes[lsn] = bytes;
    content_fill(world, lsn, payload, bytes);
    world_check(world, channel_commit(world->sender) == lsn);
    world->filled |= world->sender->send.head - atomic_load(&world->sender->send.credit->bytes) == world->ring_bytes;
}

static void acks_check(struct world *world)
{
    uint64_t acked = channel_acked_lsn(world->sender);

    world_check(world, acked <= channel_committed_lsn(world->sender));
    /* Without a lie: acked means that every byte was placed. */
    if (!world->lied)
        world_check(world, world->links[0]->completed <= world->nics[0].placed_index);
}

/* Is the block that lies in the receiver's memory whole, what does it tell? Not through the code under test. */
static void told_look(struct world *world)
{
    const struct control_block *block = world->links[1]->in;

    if (block->counter != 0 && block->lsn > world->told &&
        block->crc == crc32c_keyed(world->links[1]->key, block, offsetof(struct control_block, crc)))
        world->told = block->lsn;
}

static void receiver_beats(struct world *world)
{
    told_look(world);
    channel_poll(world->receiver);
    channel_heartbeat(world->receiver);
}

/* May the receiver find damage? Only where there is some, or something that looks like it: a write that was cut off, by
 * a device that does not place whole lines in order. */
static bool may_stop(const struct world *world)
{
    return world->spoiled ||
           (!world->sender_alive && (!world->nics[0].in_order || world->nics[0].piece_bytes < 64));
}

/* Looks; what it finds must be the record that is due. Keeps it unconsumed for a while only in a world that nobody
 * has spoiled: between look and consume the ring's bytes are trusted, by design. */
static int receiver_looks(struct world *world)
{
    struct channel_record record;
    uint64_t lsn = world->delivered + 1;
    int result = channel_next(world->receiver, &record);

    if (result != 0) {
        world_check(world, !world->holds);
        world_check(world, result == -EAGAIN || (result == -EBADMSG && may_stop(world)) ||
                               (result == -ENODATA && world->links[1]->fenced));
        return result;
    }
    world_check(world, lsn <= channel_committed_lsn(world->sender));
    world_check(world, record.lsn == lsn && record.kind == (uint16_t)(lsn * 7) && record.position == lsn * 3);
    world_check(world, record.bytes == world->sizes[lsn]);
    world_check(world, content_is(world, lsn, record.payload, record.bytes));
    world->holds = !world->spoiled && below(world, 4) == 0;
    if (!world->holds) {
        channel_consume(world->receiver);
        world->delivered = lsn;
    }
    return 0;
}

static void resume_step(struct world *world);

static void step(struct world *world)
{
    uint64_t at = below(world, world->weight_sum);
    unsigned what = 0;

    while (at >= world->weights[what])
        at -= world->weights[what++];
    switch (what) {
    case 0:
    case 1:
        if (world->sender_alive)
            sender_commits(world);
        break;
    case 2:
        fake_nic_step(&world->nics[0]);
        break;
    case 3:
        if (world->sender_alive)
            channel_poll(world->sender);
        break;
    case 4:
        if (world->sender_alive)
            channel_heartbeat(world->sender);
        break;
    case 5:
        fake_nic_step(&world->nics[1]);
        break;
    case 6:
        if (world->receiver_alive)
            receiver_looks(world);
        break;
    case 7:
        if (world->receiver_alive)
            receiver_beats(world);
        break;
    default:
        fake_nic_straggle(&world->nics[below(world, 2)]);
        if (world->heals && world->sender_alive && world->receiver_alive)
            resume_step(world);
        now_ns += below(world, 100 * NS_PER_US); /* the longest write takes less than VERBS_DAMAGE_NS, as it should */
        break;
    }
    acks_check(world);
}

/* ---- faults ---- */

static void flip(struct world *world, uint8_t *bytes, uint64_t count)
{
    uint64_t bits = below(world, 3) == 0 ? 1 + below(world, 64) : 1 + below(world, 3);

    /* A bit may be flipped back; one must stay. */
    bytes[0] ^= 1;
    for (uint64_t i = 1; i < bits; i++) {
        uint64_t bit = 1 + below(world, count * 8 - 1);

        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* Of one frame, a chosen part: header, payload, checksum, sequence word, padding, or anything. */
static void flip_frame(struct world *world, uint8_t *frame)
{
    const struct frame_header *header = (const struct frame_header *)frame;
    uint64_t whole = header->flags == FRAME_FLAG_PAD ? FRAME_ALIGN_BYTES : frame_bytes(header->bytes);
    uint64_t payload = header->flags == FRAME_FLAG_PAD ? 0 : header->bytes, from = 0, count = whole, at;

    switch (below(world, 6)) {
    case 0: count = sizeof(*header) - 4; break;
    case 1: from = sizeof(*header); count = payload; break;
    case 2: from = sizeof(*header) - 4; count = 4; break;
    case 3: from = whole - 8; count = 8; break;
    case 4: from = sizeof(*header) + payload; count = whole - 8 - from; break;
    default: break;
    }
    if (count == 0) {
        from = 0;
        count = whole;
    }
    at = below(world, count);
    flip(world, frame + from + at, count - at);
}

static uint32_t other(struct world *world, uint32_t key)
{
    uint32_t wrong = (uint32_t)test_random(&world->random);

    return wrong == key || wrong == world->links[1]->now.in_mr->rkey ? key ^ 1 : wrong;
}

static bool inject(struct world *world, enum fault fault)
{
    static const enum ibv_wc_status statuses[] = { IBV_WC_LOC_LEN_ERR, IBV_WC_LOC_QP_OP_ERR, IBV_WC_LOC_PROT_ERR,
                                                   IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_REM_OP_ERR,
                                                   IBV_WC_RETRY_EXC_ERR, IBV_WC_FATAL_ERR, IBV_WC_GENERAL_ERR };
    struct fake_nic *nic = &world->nics[0];
    struct send_ring *send = &world->sender->send;
    struct receive_ring *receive = &world->receiver->receive;
    struct fake_operation *front = fake_nic_front(nic, false);
    uint64_t committed = atomic_load(&send->committed), index;
    struct fake_write *write = front != NULL ? front->write : NULL;

    if (world->holds)
        return false; /* see receiver_looks */
    switch (fault) {
    case FAULT_FLIP_ON_WAY:
        if (write == NULL || (write->pieces != 0 && write->placed == write->pieces))
            return false;
        write->spoiled = true;
        if (below(world, 2) == 0) {
            flip(world, write->data, write->bytes);
        } else {
            uint64_t at = below(world, write->bytes);

            flip(world, write->data + at, write->bytes - at);
        }
        break;
    case FAULT_FLIP_IN_RING:
        if (committed == receive->index)
            return false;
        /* Some frame from the one that is due to the last; the sender's ring knows where they begin. */
        for (index = receive->index; below(world, 3) != 0;) {
            const struct frame_header *header = (const struct frame_header *)send_ring_at(send, index);
            uint64_t next = index + (header->flags == FRAME_FLAG_PAD ? header->bytes : frame_bytes(header->bytes));

            if (next >= committed)
                break;
            index = next;
        }
        {
            uint8_t *frame = world->rings[1] + (index & (world->ring_bytes - 1));

            /* A frame that has not arrived: flips in what lies there, which the arriving one will cover. */
            if (memcmp(frame, send_ring_at(send, index), sizeof(struct frame_header)) == 0)
                flip_frame(world, frame);
            else
                flip(world, frame, FRAME_ALIGN_BYTES);
        }
        break;
    case FAULT_FLIP_TOLD:
        flip(world, (uint8_t *)world->links[1]->in, sizeof(struct control_block));
        break;
    case FAULT_FLIP_CREDIT:
        index = below(world, sizeof(struct control_block));
        flip(world, (uint8_t *)world->links[0]->in + index, sizeof(struct control_block) - index);
        break;
    case FAULT_LOST:
        if (write == NULL)
            return false;
        fake_nic_complete_early(nic, true);
        break;
    case FAULT_LOST_CONTROL:
        nic = &world->nics[below(world, 2)];
        if (fake_nic_front(nic, true) == NULL)
            return false;
        fake_nic_complete_early(nic, true);
        break;
    case FAULT_STALE:
        if (write == NULL || !fake_nic_complete_with_holes(nic))
            return false;
        break;
    case FAULT_LATE:
        if (write == NULL)
            return false;
        fake_nic_complete_early(nic, false);
        break;
    case FAULT_REPEATED:
        if (!fake_nic_repeat(nic))
            return false;
        break;
    case FAULT_MISPLACED:
        if (write == NULL || write->placed != 0 || write->bytes >= world->ring_bytes)
            return false;
        index = write->address;
        write->address = world->links[0]->now.peer.ring_address +
                         below(world, (world->ring_bytes - write->bytes) / FRAME_ALIGN_BYTES + 1) * FRAME_ALIGN_BYTES;
        if (write->address == index)
            return false;
        break;
    case FAULT_RKEY:
        if (write == NULL || write->placed != 0)
            return false;
        write->rkey = other(world, write->rkey);
        break;
    case FAULT_RANGE:
        if (write == NULL || write->placed != 0)
            return false;
        write->address = world->links[0]->now.peer.ring_address +
                         (below(world, 2) == 0 ? world->ring_bytes - write->bytes + 1 + below(world, write->bytes) :
                                                 -1 - below(world, world->ring_bytes));
        break;
    case FAULT_ERROR:
    case FAULT_ERROR_IGNORED:
        if (nic->count == 0 || nic->dead || nic->failed || (fault == FAULT_ERROR_IGNORED && nic->count < 2))
            return false;
        fake_nic_fail(nic, statuses[below(world, sizeof(statuses) / sizeof(statuses[0]))]);
        if (fault == FAULT_ERROR_IGNORED)
            nic->failed = false;
        break;
    case FAULT_POST_REFUSED:
        nic->refuse_posts = 1;
        break;
    case FAULT_QUEUE_BROKEN:
        world->nics[0].poll_fails = true;
        break;
    case FAULT_STUCK:
        if (nic->count == 0)
            return false;
        nic->stuck = true;
        break;
    case FAULT_SENDER_DIES:
        world->sender_alive = false;
        if (below(world, 2) == 0) /* the host, at once; else the process: what is queued may still go a bit */
            nic->dead = true;
        break;
    case FAULT_RECEIVER_DIES:
        world->receiver_alive = false;
        world->nics[1].dead = true;
        break;
    case FAULTS:
        return false;
    }
    world->lied |= fault_is_a_lie(fault);
    world->spoiled |= fault != FAULT_SENDER_DIES && fault != FAULT_RECEIVER_DIES;
    return true;
}

/* ---- a connection that is cut, and resumed ---- */

static bool is_down(const struct channel *channel)
{
    return atomic_load(&channel->down);
}

static void cut(struct world *world)
{
    struct fake_nic *nic = &world->nics[below(world, 2)];

    if (nic->count > 0 && below(world, 2) == 0)
        fake_nic_fail(nic, IBV_WC_RETRY_EXC_ERR); /* somebody will find out */
    else
        verbs_down(world->links[below(world, 2)], "cut", false); /* a hint: what was posted may go on landing */
}

static void keeper_refuses(struct world *world)
{
    world->resume.stage = NOT_RESUMING;
    keeper_set(&world->links[0]->keeper, KEEPER_GONE);
    link_break(world->sender, true);
}

/* link_held gives the same while the receiving thread is between its two stores, if that is what it sees. */
static void held_between_two_stores(struct world *world, const struct handshake_log *log)
{
    struct ring_credit *consumed = world->receiver->credit;
    uint64_t lsn = atomic_load(&consumed->lsn), bytes = atomic_load(&consumed->bytes), index, held_lsn;
    const uint8_t *last = world->rings[1] + ((bytes - FRAME_ALIGN_BYTES) & (world->ring_bytes - 1));

    if (lsn == 0 || frame_lsn_before(last + FRAME_ALIGN_BYTES, world->links[1]->key) != lsn)
        return; /* a pad lies between, or what lay there is overwritten */
    atomic_store(&consumed->lsn, lsn - 1);
    link_held(world->receiver, &index, &held_lsn);
    world_check(world, index == log->index && held_lsn == log->lsn);
    atomic_store(&consumed->lsn, lsn);
}

/* What the two keepers do when the sender's link is down, one step of it. The receiver's thread is this one, too. */
static void resume_step(struct world *world)
{
    struct verbs_link *receiver = world->links[1], *sender = world->links[0];
    struct handshake_log *log = &world->resume.log;
    struct verbs_connection old;

    switch (world->resume.stage) {
    case NOT_RESUMING:
        /* The one that is broken first tells the other, as a disconnect does. */
        if (is_down(world->receiver) && !is_down(world->sender))
            verbs_down(sender, "told", false);
        if (!is_down(world->sender) || atomic_load(&world->sender->closed))
            return;
        if (verbs_release(receiver, &old) != JOIN_ACCEPTED) {
            world_check(world, receiver->fenced || world->end == -EBADMSG || receiver->final == -EBADMSG);
            keeper_refuses(world);
            return;
        }
        if (old.id != NULL) {
            fake_nic_dereg_mr(old.in_mr);
            fake_nic_dereg_mr(old.out_mr);
        }
        link_held(world->receiver, &log->index, &log->lsn);
        log->key = receiver->key;
        held_between_two_stores(world, log);
        world_check(world, log->lsn >= world->delivered && log->lsn <= channel_committed_lsn(world->sender));
        world_check(world, world->lied || log->lsn >= channel_acked_lsn(world->sender));
        fake_nic_join_again(world->nics, world->links, world->resume.made);
        world->resume.stage = HELD;
        return;
    case HELD:
        if (!verbs_attach(receiver, &world->resume.made[1]))
            keeper_refuses(world);
        else
            world->resume.stage = GRANTED;
        return;
    case GRANTED:
        switch (below(world, 4)) {
        case 0: /* the grant is lost; the receiver knows, or not yet */
            if (below(world, 2) == 0)
                verbs_up(receiver);
            world->resume.stage = NOT_RESUMING;
            return;
        case 1:
            if (verbs_up(receiver))
                world->resume.stage = UP_FIRST;
            return;
        default: break;
        }
        /* fall through */
    case UP_FIRST:
        fake_nic_reset(&world->nics[0]);
        world->nics[0].placed_index = log->index;
        sender->join.made = world->resume.made[0];
        sender->join.log = *log;
        keeper_set(&sender->keeper, KEEPER_READY);
        channel_poll(world->sender);
        world_check(world, keeper_state(&sender->keeper) == KEEPER_TAKEN);
        keeper_set(&sender->keeper, KEEPER_IDLE);
        world_check(world, !is_down(world->sender) || world->spoiled);
        world->resume.stage = world->resume.stage == UP_FIRST ? NOT_RESUMING : TAKEN;
        return;
    case TAKEN:
        verbs_up(receiver);
        world->resume.stage = NOT_RESUMING;
        return;
    }
}

/* Goes on until the connection stands, or will not any more. */
static void heal(struct world *world)
{
    for (unsigned steps = 0; steps < 2000 && !atomic_load(&world->sender->closed) &&
                             (is_down(world->sender) || is_down(world->receiver) ||
                              world->resume.stage != NOT_RESUMING || world->nics[0].failed || world->nics[1].failed);
         steps++) {
        step(world);
        resume_step(world);
    }
}

/* ---- ends ---- */

static void devices_run(struct world *world)
{
    for (unsigned limit = 0; limit < 100000; limit++) {
        bool busy = false;

        for (int i = 0; i < 2; i++) {
            busy |= fake_nic_step(&world->nics[i]);
            busy |= fake_nic_straggle(&world->nics[i]);
        }
        if (!busy)
            return;
    }
    world_check(world, false && "the devices come to rest");
}

/* The receiver gives the sender up: the real fence, then all that is left. */
static int fence_and_drain(struct world *world)
{
    int result = 0;
    uint8_t *copy;

    switch (below(world, 8)) {
    case 0: modify_fails = true; break;
    case 1: dereg_fails = true; break;
    default: break;
    }
    told_look(world);
    world_check(world, channel_fence(world->receiver) == 0);
    world_check(world, channel_fence(world->receiver) == 0);
    /* What is still under way bounces off. */
    copy = malloc(world->ring_bytes);
    memcpy(copy, world->rings[1], world->ring_bytes);
    world->sender_alive = false;
    world->nics[0].stuck = false;
    devices_run(world);
    world_check(world, memcmp(copy, world->rings[1], world->ring_bytes) == 0);
    free(copy);
    for (unsigned looks = 0; looks < 2 * RECORDS_MAX; looks++) {
        result = receiver_looks(world);
        if (result != 0 && result != -EAGAIN)
            break;
        if (result == -EAGAIN)
            now_ns += 50 * NS_PER_MS;
    }
    world_check(world, result == -ENODATA || result == -EBADMSG);
    return result;
}

/* After the fence: the sender was not dead. It must not come to believe in what the receiver does not have. */
static void sender_wakes(struct world *world)
{
    uint32_t before = crc32c(0, world->rings[1], world->ring_bytes);

    for (int i = 0; i < 3; i++) {
        channel_poll(world->sender);
        sender_commits(world);
        channel_heartbeat(world->sender);
        devices_run(world);
    }
    channel_poll(world->sender);
    world_check(world, crc32c(0, world->rings[1], world->ring_bytes) == before);
}

static void world_end(struct world *world)
{
    struct channel_statistics statistics;
    struct channel_record record;
    uint64_t acked;

    if (!world->receiver_alive) {
        /* Nothing is acked of a dead host; and the sender learns of it once it has written. */
        for (unsigned i = 0; i < 4 && world->sender_alive; i++) {
            channel_poll(world->sender);
            channel_heartbeat(world->sender);
            devices_run(world);
            channel_poll(world->sender);
            acks_check(world);
        }
        if (world->sender_alive && !world->nics[0].stuck)
            world_check(world, channel_poll(world->sender) == -EPIPE);
        return;
    }
    for (unsigned round = 0; round < 2000 && world->end == 0; round++) {
        int result;

        if (world->sender_alive) {
            channel_poll(world->sender);
            channel_heartbeat(world->sender);
        }
        if (!world->sender_alive || atomic_load(&world->sender->down) || (world->nics[0].stuck && round > 20)) {
            if (!world->sender_alive) /* what was queued goes on for a while, or not */
                for (uint64_t more = below(world, 40); more > 0; more--)
                    fake_nic_step(&world->nics[0]);
            else
                channel_poll(world->sender); /* acks that come late count, too */
            world->end = fence_and_drain(world);
            break;
        }
        devices_run(world);
        do
            result = receiver_looks(world);
        while (result == 0);
        if (result == -EBADMSG)
            world->end = result;
        receiver_beats(world);
        devices_run(world);
        now_ns += 30 * NS_PER_MS;
        if (world->delivered == world->records && channel_acked_lsn(world->sender) == world->records)
            break;
        sender_commits(world);
        acks_check(world);
    }
    if (world->end == -ENODATA && !world->nics[0].dead)
        sender_wakes(world);
    acked = channel_acked_lsn(world->sender);
    world_check(world, world->nics[0].violation[0] == '\0' && world->nics[1].violation[0] == '\0');
    channel_get_statistics(world->receiver, &statistics);
    world_check(world, statistics.records == world->delivered);
    totals.records += statistics.records;
    totals.torn += statistics.torn;
    totals.damaged += statistics.damaged;
    totals.filled += world->filled;
    if (world->end == -EBADMSG) {
        world_check(world, statistics.damaged > 0 && strstr(last_error, "is damaged") != NULL);
        /* For ever, and though all be repaired. */
        memcpy(world->rings[1], world->rings[0], world->ring_bytes);
        for (int i = 0; i < 3; i++) {
            now_ns += NS_PER_S;
            world_check(world, channel_next(world->receiver, &record) == -EBADMSG);
        }
    } else if (world->end == -ENODATA) {
        world_check(world, channel_next(world->receiver, &record) == -ENODATA);
        world_check(world, world->told <= world->delivered);
        /* Placed: a device can lie, and the sender die before it could tell. Seen: never. */
        world_check(world, acked <= world->delivered || (world->lied && world->sender->ack == CHANNEL_ACK_PLACED));
    } else {
        world_check(world, world->delivered == world->records && acked == world->records);
    }
}

/* `faults` of the kind, at random moments. How many took place. */
static unsigned world_run(struct world *world, uint64_t seed, enum fault fault, unsigned faults)
{
    unsigned injected = 0, steps = 0;

    world_begin(world, seed);
    while (injected < faults && steps < 4000) {
        uint64_t moment = 1 + below(world, 200);

        while (moment-- > 0 && steps++ < 4000)
            step(world);
        while (steps++ < 4000) { /* from here on as soon as it can */
            if (inject(world, fault)) {
                injected++;
                break;
            }
            step(world);
        }
    }
    for (uint64_t more = below(world, 2) * below(world, 200); more > 0; more--)
        step(world);
    if (world->heals && world->sender_alive && world->receiver_alive)
        heal(world);
    if (!world->holds && below(world, 4) == 0) /* and then the sender dies, perhaps before it could tell */
        inject(world, FAULT_SENDER_DIES);
    world_end(world);
    totals.worlds++;
    totals.injected[fault] += injected;
    totals.stopped[fault] += world->end == -EBADMSG;
    totals.gone[fault] += world->end == -ENODATA && world->delivered < channel_acked_lsn(world->sender);
    return injected;
}

static uint64_t soak(void)
{
    const char *given = getenv("FTVMM_TEST_SOAK");

    return given != NULL && atoi(given) > 0 ? (uint64_t)atoi(given) : 1;
}

/* ---- tests ---- */

static void honest_devices_deliver_everything_in_any_order_of_pieces(void **state)
{
    struct world *world = *state;
    uint64_t seed = test_seed(__func__);

    memset(&totals, 0, sizeof(totals));
    for (uint64_t i = 0; i < 3000 * soak(); i++) {
        world_begin(world, test_random(&seed));
        for (unsigned steps = 0; steps < 300; steps++)
            step(world);
        world_end(world);
        assert_int_equal(world->end, 0);
    }
    assert_true(totals.torn > 0);
    assert_true(totals.filled > 0);
    print_message("%llu records; looks at torn ones %llu, at such that seemed damaged while they arrived %llu; rings "
                  "filled to the last byte %llu\n", (unsigned long long)totals.records,
                  (unsigned long long)totals.torn, (unsigned long long)totals.damaged,
                  (unsigned long long)totals.filled);
}

static void damage_is_found_and_never_applied(void **state)
{
    struct world *world = *state;
    uint64_t seed = test_seed(__func__), injections = 0, wanted = INJECTIONS * soak();

    memset(&totals, 0, sizeof(totals));
    for (unsigned fault = 0; injections < wanted; fault = (fault + 1) % FAULTS)
        injections += world_run(world, test_random(&seed), (enum fault)fault,
                                below(world, 2) == 0 ? 1 : 2 + (unsigned)below(world, 3));
    print_message("%llu injections in %llu worlds, %llu records delivered\n", (unsigned long long)injections,
                  (unsigned long long)totals.worlds, (unsigned long long)totals.records);
    print_message("%-46s %9s %9s %9s\n", "", "injected", "stopped", "unknown");
    for (unsigned fault = 0; fault < FAULTS; fault++) {
        print_message("%-46s %9llu %9llu %9llu\n", fault_names[fault], (unsigned long long)totals.injected[fault],
                      (unsigned long long)totals.stopped[fault], (unsigned long long)totals.gone[fault]);
        assert_true(totals.injected[fault] > 0);
        /* Only a lie can make an acked record vanish without a word. */
        assert_true(totals.gone[fault] == 0 || fault_is_a_lie((enum fault)fault));
    }
    assert_true(totals.torn > 0 && totals.damaged > 0);
}

static void sender_that_dies_at_any_step_leaves_all_that_was_acked(void **state)
{
    struct world *world = *state;
    uint64_t seed = test_seed(__func__), deaths = 0, stopped = 0;

    for (uint64_t i = 0; i < DEATHS_OF * soak(); i++) {
        uint64_t world_seed = test_random(&seed);

        for (unsigned die_at = 0; die_at < 200; die_at++) {
            /* The same seed has the same key: what lies in the ring must not be this world's own. */
            memset(world->rings[1], 0, RING_MAX_BYTES);
            world_begin(world, world_seed);
            for (unsigned steps = 0; steps < die_at; steps++)
                step(world);
            world->holds = false; /* the fence comes from the thread that looks */
            world->sender_alive = false;
            world->nics[0].dead = below(world, 2) == 0;
            world_end(world);
            assert_true(world->end != 0);
            deaths++;
            stopped += world->end == -EBADMSG;
        }
    }
    print_message("%llu deaths; in %llu a write cut off in the middle, its ends in place, could not be told from "
                  "damage\n", (unsigned long long)deaths, (unsigned long long)stopped);
}

/* Cut again and again, at any step; and at the end all goes well, or the sender dies, or the receiver fences. */
static void connection_cut_at_any_step_is_resumed_with_nothing_lost(void **state)
{
    struct world *world = *state;
    uint64_t seed = test_seed(__func__), cuts = 0, resumes = 0, fences = 0, deaths = 0;

    memset(&totals, 0, sizeof(totals));
    for (uint64_t i = 0; i < RESUMED_WORLDS * soak(); i++) {
        struct channel_statistics sent, received;
        uint64_t how;

        world_begin(world, test_random(&seed));
        how = below(world, 4);
        for (unsigned steps = 0; steps < 1200; steps++) {
            step(world);
            if (below(world, 100) == 0) {
                cut(world);
                cuts++;
            }
            if (below(world, 5) == 0)
                resume_step(world);
        }
        if (how == 0 && !world->holds) { /* dies, perhaps amidst it */
            world->sender_alive = false;
            world->nics[0].dead = below(world, 2) == 0;
            deaths++;
        } else if (how == 1 && !world->holds) { /* is fenced, perhaps amidst it */
            uint32_t before;

            world->end = fence_and_drain(world);
            before = crc32c(0, world->rings[1], world->ring_bytes);
            for (unsigned steps = 0; steps < 30; steps++) {
                resume_step(world);
                devices_run(world);
                channel_poll(world->sender);
                sender_commits(world);
            }
            world_check(world, crc32c(0, world->rings[1], world->ring_bytes) == before);
            world_check(world, is_down(world->receiver));
            fences++;
        } else {
            heal(world);
        }
        world_end(world);
        world_check(world, how == 0 || how == 1 || world->end == 0);
        channel_get_statistics(world->sender, &sent);
        channel_get_statistics(world->receiver, &received);
        world_check(world, received.resumes + 1 >= sent.resumes); /* the last one may have ended between the two */
        resumes += sent.resumes;
    }
    print_message("%llu cuts, %llu resumes, %llu records; %llu fences and %llu deaths at the end\n",
                  (unsigned long long)cuts, (unsigned long long)resumes, (unsigned long long)totals.records,
                  (unsigned long long)fences, (unsigned long long)deaths);
    assert_true(resumes > cuts / 4 && fences > 0 && deaths > 0);
}

static void fence_that_fails_says_so(void **state)
{
    struct world *world = *state;

    world_begin(world, test_seed(__func__));
    modify_fails = dereg_fails = true;
    assert_int_equal(channel_fence(world->receiver), -EIO);
    assert_non_null(strstr(last_error, "do not go live"));
    dereg_fails = false;
    assert_int_equal(channel_fence(world->receiver), 0);
}

/* Of another connection, of the control block, of nothing: the device refuses it, the sender says so. */
static void foreign_rkey_lands_nowhere_and_is_said_without_keys(void **state)
{
    struct world *world = *state;
    uint64_t seed = test_seed(__func__);

    for (unsigned i = 0; i < 300; i++) {
        struct channel_record record;
        struct fake_write *write;
        uint8_t *copy;
        char key[24];

        world_begin(world, test_random(&seed));
        copy = malloc(world->ring_bytes);
        memcpy(copy, world->rings[1], world->ring_bytes);
        sender_commits(world);
        write = fake_nic_front(&world->nics[0], false)->write;
        switch (i % 3) {
        case 0: write->rkey = other(world, write->rkey); break;
        case 1: write->rkey = world->links[1]->now.in_mr->rkey; break; /* good, for another place */
        default: write->rkey = world->links[0]->now.ring_mr->rkey; break; /* the sender's own ring's */
        }
        if (write->rkey == world->links[1]->now.ring_mr->rkey)
            write->rkey ^= 1;
        last_warning[0] = '\0';
        devices_run(world);
        world_check(world, channel_poll(world->sender) == -EPIPE);
        world_check(world, channel_acked_lsn(world->sender) == 0);
        world_check(world, memcmp(copy, world->rings[1], world->ring_bytes) == 0);
        world_check(world, channel_next(world->receiver, &record) == -EAGAIN);
        world_check(world, strstr(last_warning, "remote access error") != NULL);
        snprintf(key, sizeof(key), "%llx", (unsigned long long)world->links[0]->key);
        world_check(world, strstr(last_warning, key) == NULL);
        free(copy);
    }
}

static void old_control_block_that_comes_again_is_no_sign_of_life(void **state)
{
    struct world *world = *state;
    struct control_block old;
    uint64_t seen_ns;

    world_begin(world, test_seed(__func__));
    for (int i = 0; i < 3; i++) {
        channel_heartbeat(world->sender);
        devices_run(world);
        channel_poll(world->sender);
        channel_heartbeat(world->receiver);
        if (i == 0)
            old = *world->links[1]->in;
    }
    seen_ns = channel_peer_seen_ns(world->receiver);
    assert_int_equal(seen_ns, now_ns);
    now_ns += NS_PER_S;
    *world->links[1]->in = old;
    channel_heartbeat(world->receiver);
    assert_int_equal(channel_peer_seen_ns(world->receiver), seen_ns);
}

static int group_open(void **state)
{
    *state = world_new();
    return *state == NULL;
}

static int group_close(void **state)
{
    world_delete(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(honest_devices_deliver_everything_in_any_order_of_pieces),
        cmocka_unit_test(damage_is_found_and_never_applied),
        cmocka_unit_test(sender_that_dies_at_any_step_leaves_all_that_was_acked),
        cmocka_unit_test(connection_cut_at_any_step_is_resumed_with_nothing_lost),
        cmocka_unit_test(fence_that_fails_says_so),
        cmocka_unit_test(foreign_rkey_lands_nowhere_and_is_said_without_keys),
        cmocka_unit_test(old_control_block_that_comes_again_is_no_sign_of_life),
    };

    return cmocka_run_group_tests(tests, group_open, group_close);
}
