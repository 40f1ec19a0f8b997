/*
 * shm: a ring in shared memory, between two processes of one machine. For tests, demos, and as the floor to measure
 * against: it survives the death of either process, not that of the machine.
 *
 * Placed: the record lies in the shared ring and its end index is published; whatever happens to the sender
 *     from then on, the receiver can read it.
 * Seen: the receiver's polling thread has looked at it and said so in the shared head.
 * Ordered: by one atomic word, the tail. A record may be delivered a moment before its end is in there, when its
 *     frame is whole; so one whose commit the fence refuses may have been delivered, and is not acked, as on verbs.
 * Torn: a frame beyond the tail that is not whole is not there yet. What lies before the tail and does not fit its
 *     checksum is damage: -EBADMSG, at the latest after 64 looks.
 * The peer's death: the kernel closes its socket, looked at in each heartbeat; a hint. A stopped peer shows only in its
 *     heartbeats.
 * Full: reserve says -EAGAIN until the receiver has consumed.
 *
 * The fence. Shared memory cannot be taken back from a process that has mapped it, so a late sender can go on
 * writing bytes. What it cannot do is have them acked: after it has stored the tail, and before it counts a record as
 * acked, it looks whether it is fenced. The fence sets that word, has the kernel make every running thread of the
 * sender pass a memory barrier (membarrier(2), GLOBAL_EXPEDITED), and then reads the tail. A sender that looked before the
 * barrier has stored its tail before it, so the record is found and delivered; one that looks after it sees the fence.
 * So the price is the fence's: a commit has no locked instruction, which would wait for the frame's cache line to come
 * from the other CPU. After the fence the receiver reads nothing beyond that tail. The late bytes land only where the
 * sender holds credit, never on a record the receiver has yet to read. A sender with a fault could write anywhere; so
 * could one before any fence, and the checksum is the answer to both.
 *
 * The processes find each other by a Unix socket in the abstract name space, "ftvmm-NAME", which vanishes with the
 * receiver's process; over it they join, and the receiver hands over the memory as a descriptor (unix(7),
 * SCM_RIGHTS). Only processes of the same user are taken. The name counts within one network name space.
 */
#include "channel/link.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/join_socket.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define SHM_NAME_PREFIX  "ftvmm-"
#define SHM_NAME_MAX     90 /* of NAME: sun_path has 108, the first is zero */
#define SHM_LOOKS_PER_TAIL 64 /* a published frame that is not there is damage; no hurry to find it */
#define SHM_RING_OFFSET  (2u * 1024 * 1024) /* a huge page of its own for the head */

/* At the beginning of the shared memory. */
struct shm_head {
    alignas(RING_LINE_BYTES) _Atomic uint64_t tail; /* index up to which is committed */
    alignas(RING_LINE_BYTES) _Atomic bool fenced;   /* the receiver's word: nothing counts any more */
    struct ring_credit credit;
    alignas(RING_LINE_BYTES) _Atomic uint64_t seen_lsn;
    alignas(RING_LINE_BYTES) _Atomic uint64_t sender_beat; /* counts heartbeats */
    alignas(RING_LINE_BYTES) _Atomic uint64_t receiver_beat;
    _Atomic uint64_t receiver_word;
};

struct shm_link {
    struct channel channel;
    struct shm_head *head;
    size_t mapped_bytes;
    int memory_fd; /* until mapped */
    int fd;        /* connected to the peer; its end is the peer's */
    int listener;  /* receiver: holds the name */
    char *name;    /* the address, for messages */
    bool fenced;           /* receiver */
    bool tail_decides;     /* receiver: fenced, or damage was met */
    int final;             /* receiver: what channel_next says from now on; 0: go on */
    uint64_t cached_tail;  /* receiver: as last read */
    unsigned looks;        /* receiver: in vain, at the frame that is due */
    uint64_t peer_beat;    /* polling thread's: the peer's, as last seen */
    uint64_t peer_index;   /* polling thread's: the peer's progress, as last seen */
};

static void shm_close(struct channel *channel);

/* ---- per event ---- */

static uint64_t shm_commit(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;
    uint64_t lsn = channel->send.next_lsn - 1;

    /* H1 release, pairs with H2 in shm_next_judge: the frame before the tail. */
    atomic_store_explicit(&link->head->tail, channel->send.head, memory_order_release);
    /* H5, with H6 in shm_fence: the store before the load. The compiler is kept in order here; the CPU by the barrier
     * that the fence sends round. relaxed: nothing else is read on the strength of it. */
    atomic_signal_fence(memory_order_seq_cst);
    if (__builtin_expect(atomic_load_explicit(&link->head->fenced, memory_order_relaxed), false)) {
        link_break(channel, true);
        return lsn;
    }
    if (channel->ack == CHANNEL_ACK_PLACED)
        atomic_store_explicit(&channel->acked_lsn, lsn, memory_order_release); /* A1 */
    return lsn;
}

/* No short record was found at once. `state`: what receive_ring_look_short has found. */
__attribute__((noinline)) static int shm_next_judge(struct shm_link *link, struct channel_record *record,
                                                    enum frame_state state)
{
    struct channel *channel = &link->channel;
    struct receive_ring *ring = &channel->receive;

    if (link->final != 0)
        return link->final;
    if (!link->fenced && state == FRAME_DAMAGED) {
        state = receive_ring_look_again(ring, UINT64_MAX, record);
        if (state == FRAME_COMPLETE)
            return 0;
    }
    if (ring->index >= link->cached_tail) {
        if (link->fenced)
            return -ENODATA;
        if (state == FRAME_ABSENT && ++link->looks % SHM_LOOKS_PER_TAIL != 0)
            return -EAGAIN;
        /* H2 acquire, pairs with H1 in shm_commit. */
        link->cached_tail = atomic_load_explicit(&link->head->tail, memory_order_acquire);
        if (ring->index >= link->cached_tail)
            return -EAGAIN; /* it is being written */
    }
    /* Below the tail everything is there, or it is damage. */
    state = link->cached_tail - ring->index > ring->ring_bytes ?
                FRAME_DAMAGED :
                receive_ring_look_again(ring, link->cached_tail - ring->index, record);
    if (state == FRAME_COMPLETE)
        return 0;
    report_error("%s: record %llu is damaged in the shared ring (index %llu, tail %llu): the sender has a fault, or "
                 "somebody else wrote there; nothing more is read", link->name, (unsigned long long)ring->next_lsn,
                 (unsigned long long)ring->index, (unsigned long long)link->cached_tail);
    link_count(&channel->damaged, 1);
    link->tail_decides = true;
    return link->final = -EBADMSG;
}

static int shm_next(struct channel *channel, struct channel_record *record)
{
    struct shm_link *link = (struct shm_link *)channel;
    enum frame_state state = FRAME_ABSENT;

    /* We look at the frame itself, as a NIC's receiver has to: that is one cache line from the other CPU instead of
     * two. Its checksum tells whether it is whole. After the fence the tail decides, and after damage nothing does. */
    if (__builtin_expect(!link->tail_decides, true)) {
        state = receive_ring_look_short(&channel->receive, UINT64_MAX, record);
        if (__builtin_expect(state == FRAME_COMPLETE, true))
            return 0;
    }
    return shm_next_judge(link, record, state);
}

static void shm_consume(struct channel *channel)
{
    receive_ring_consume(&channel->receive);
}

/* membarrier(2) has no wrapper in the C library. */
static int barrier_call(int command)
{
    return syscall(SYS_membarrier, command, 0, 0) == 0 ? 0 : -errno;
}

static int shm_fence(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;
    int result;

    if (link->fenced)
        return 0;
    atomic_store_explicit(&link->head->fenced, true, memory_order_seq_cst); /* H6 */
    result = barrier_call(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
    if (result != 0) {
        report_error("%s: the fence failed: membarrier: %s; a late commit might count; do not go live", link->name,
                     strerror(-result));
        return result;
    }
    link->cached_tail = atomic_load_explicit(&link->head->tail, memory_order_acquire); /* as H2 */
    link->fenced = link->tail_decides = true;
    return 0;
}

/* ---- polling thread ---- */

/* Receiver: looks ahead, and tells the sender. */
static void shm_see(struct shm_link *link)
{
    struct channel *channel = &link->channel;
    /* acquire: as H2 */
    uint64_t tail = atomic_load_explicit(&link->head->tail, memory_order_acquire);

    if (atomic_load_explicit(&link->head->fenced, memory_order_acquire))
        return;
    link_look_ahead(channel, tail); /* a tail that cannot be is for the receiving thread to refuse */
    /* H3 release, pairs with H4: what this credits was read; and S1 in send_ring.c. */
    atomic_store_explicit(&link->head->credit.bytes, link_free_bytes(channel), memory_order_release);
    atomic_store_explicit(&link->head->credit.lsn,
                          atomic_load_explicit(&channel->credit->lsn, memory_order_acquire), /* A6 */
                          memory_order_release); /* A5 */
    /* relaxed: our own thread's. H3 for the sender's ack: the look comes before the word of it */
    atomic_store_explicit(&link->head->seen_lsn,
                          atomic_load_explicit(&channel->ahead_credit.lsn, memory_order_relaxed),
                          memory_order_release);
}

static int shm_poll(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;

    if (channel->ack == CHANNEL_ACK_SEEN && !channel->is_sender) {
        shm_see(link);
    } else if (channel->ack == CHANNEL_ACK_SEEN) {
        uint64_t seen = atomic_load_explicit(&link->head->seen_lsn, memory_order_acquire); /* H4 */

        /* The receiver's polling thread may have seen a record that came after the fence. Its tail was stored after the
         * fence's word then, so that is to be found here. */
        if (atomic_load_explicit(&link->head->fenced, memory_order_acquire))
            link_break(channel, true);
        else if (seen <= channel_committed_lsn(channel)) /* else the receiver is at fault; nothing is believed */
            atomic_store_explicit(&channel->acked_lsn, seen, memory_order_release);
    }
    if (channel->is_sender)
        channel_tell(channel, atomic_load_explicit(&link->head->receiver_word, memory_order_relaxed));
    if (channel->is_sender) /* each record is published by itself. relaxed: a count */
        atomic_store_explicit(&channel->writes, channel_committed_lsn(channel), memory_order_relaxed);
    return atomic_load_explicit(&channel->down, memory_order_relaxed) ? -EPIPE : 0; /* relaxed: a hint */
}

static void shm_heartbeat(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;
    bool is_sender = channel->is_sender;
    char byte;
    _Atomic uint64_t *ours = is_sender ? &link->head->sender_beat : &link->head->receiver_beat;
    _Atomic uint64_t *theirs = is_sender ? &link->head->receiver_beat : &link->head->sender_beat;
    _Atomic uint64_t *progress = is_sender ? &link->head->credit.bytes : &link->head->tail;
    /* All relaxed: signs of life, nothing is read on the strength of them. */
    uint64_t beat = atomic_load_explicit(theirs, memory_order_relaxed);
    uint64_t index = atomic_load_explicit(progress, memory_order_relaxed);

    if (!is_sender)
        atomic_store_explicit(&link->head->receiver_word, channel_told(channel), memory_order_relaxed);
    /* A receiver that has shut the log is silent, as over the other links: a sender that was frozen has to find out. */
    if (is_sender || !atomic_load_explicit(&link->head->fenced, memory_order_relaxed))
        link_count(ours, 1);
    if (beat != link->peer_beat || index != link->peer_index) {
        link->peer_beat = beat;
        link->peer_index = index;
        atomic_store_explicit(&channel->peer_seen_ns, clock_now_ns(), memory_order_release); /* A7 */
    }
    if (!atomic_load_explicit(&channel->down, memory_order_relaxed) && /* A9 */
        recv(link->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0) { /* end of file; nobody says anything any more */
        report_warning("%s: the %s has left or died", link->name, is_sender ? "receiver" : "sender");
        link_break(channel, true);
    }
}

/* ---- set-up ---- */

static const struct link_operations shm_operations = {
    .commit = shm_commit,
    .next = shm_next,
    .consume = shm_consume,
    .fence = shm_fence,
    .poll = shm_poll,
    .heartbeat = shm_heartbeat,
    .close = shm_close,
};

static int shm_map(struct shm_link *link, uint64_t ring_bytes)
{
    link->mapped_bytes = SHM_RING_OFFSET + ring_bytes;
    link->head = ring_memory_map(link->memory_fd, link->mapped_bytes, "shared ring");
    return link->head == NULL ? -ENOMEM : 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static int shm_join(struct shm_link *link, const struct channel_options *options, const struct sockaddr_un *address,
                    socklen_t address_bytes)
{
    struct channel *channel = &link->channel;
    struct join_side ours = join_side_of(options);
    struct join_socket join = { .name = link->name, .address = (const struct sockaddr *)address,
                                .address_bytes = address_bytes, .ours = &ours, .secret = options->secret,
                                .deadline = join_deadline_of(options), .memory_fd = -1 };
    /* The sender takes part in the fence's barrier, the receiver must be able to call for it. */
    int result = barrier_call(channel->is_sender ? MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED :
                                                   MEMBARRIER_CMD_GLOBAL_EXPEDITED);

    if (result != 0) {
        report_error("%s: this kernel, or a seccomp filter, refuses membarrier(2): %s; Linux 4.16 and newer have it",
                     link->name, strerror(-result));
        return result;
    }
    if (!channel->is_sender) {
        link->memory_fd = ring_memory_share(SHM_RING_OFFSET + options->ring_bytes, "shared ring");
        result = link->memory_fd < 0 ? link->memory_fd : shm_map(link, options->ring_bytes);
        join.memory_fd = link->memory_fd;
    }
    if (result == 0)
        result = channel->is_sender ? join_socket_send_side(&join) : join_socket_receive_side(&join);
    if (result != 0)
        return result;
    link->fd = join.fd;
    link->listener = join.listener;
    link->memory_fd = join.memory_fd;
    if (channel->is_sender && !ring_memory_fits(link->memory_fd, SHM_RING_OFFSET + options->ring_bytes)) {
        join_report_refusal(JOIN_NOT_FTVMM, link->name, &ours, &ours, false);
        return -EPROTO;
    }
    if (channel->is_sender)
        result = shm_map(link, options->ring_bytes);
    if (result != 0)
        return result;
    close_fd(&link->memory_fd);
    channel->peer = join.peer;
    channel->credit = join.ack == CHANNEL_ACK_SEEN && !channel->is_sender ? &channel->own_credit : &link->head->credit;
    if (channel->is_sender)
        send_ring_init(&channel->send, (uint8_t *)link->head + SHM_RING_OFFSET, options->ring_bytes, join.log.key,
                       channel->credit);
    else
        link_receive_init(channel, (uint8_t *)link->head + SHM_RING_OFFSET, options->ring_bytes, join.log.key,
                          join.ack);
    channel->ack = join.ack;
    return 0;
}

int link_shm_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct shm_link *link;
    size_t length = strlen(rest);
    int result;

    if (length == 0 || length > SHM_NAME_MAX) {
        report_error("channel address 'shm:%s': the name must have 1 to %d characters", rest, SHM_NAME_MAX);
        return -EINVAL;
    }
    /* A leading zero byte: the abstract name space (unix(7)). */
    memcpy(address.sun_path + 1, SHM_NAME_PREFIX, strlen(SHM_NAME_PREFIX));
    memcpy(address.sun_path + 1 + strlen(SHM_NAME_PREFIX), rest, length);
    link = link_allocate(sizeof(*link));
    if (link == NULL)
        return -ENOMEM;
    link->channel.operations = &shm_operations;
    link->channel.is_sender = is_sender;
    link->fd = link->listener = link->memory_fd = -1;
    result = -ENOMEM;
    if (asprintf(&link->name, "shm:%s", rest) < 0)
        link->name = NULL;
    else
        result = shm_join(link, options, &address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(SHM_NAME_PREFIX) + length));
    if (result != 0) {
        shm_close(&link->channel);
        return result;
    }
    *out = &link->channel;
    return 0;
}

static void shm_close(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;

    if (!channel->is_sender && link->head != NULL)
        shm_fence(channel); /* nothing may count as acked that nobody will read */
    ring_memory_close(link->head, link->mapped_bytes);
    close_fd(&link->memory_fd);
    close_fd(&link->fd);
    close_fd(&link->listener);
    free(link->name);
    free(link);
}
