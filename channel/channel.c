/* The channel's public functions: checks what the caller gives, chooses the link, forwards. */
#include "channel/channel.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/link.h"
#include "channel/record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define RING_MIN_BYTES (1u << 20)
#define RING_MAX_BYTES (1ull << 31)

#define LOOK_AHEAD_RECORDS 256 /* in one call: so that the sender hears of the first before the last is looked at */
#define PEER_ALWAYS_SEEN UINT64_MAX /* peer_seen_ns of a file */

void *link_allocate(size_t bytes)
{
    size_t whole = (bytes + RING_LINE_BYTES - 1) & ~(size_t)(RING_LINE_BYTES - 1);
    void *memory = aligned_alloc(RING_LINE_BYTES, whole);

    return memory == NULL ? NULL : memset(memory, 0, whole);
}

uint64_t link_random_key(void)
{
    uint64_t key = 0;

    while (key == 0) {
        if (getrandom(&key, sizeof(key), 0) != (ssize_t)sizeof(key))
            key = 0;
    }
    return key;
}

enum frame_state link_look_ahead(struct channel *channel, uint64_t end)
{
    struct receive_ring *ahead = &channel->ahead;
    uint64_t consumed_lsn = atomic_load_explicit(&channel->credit->lsn, memory_order_acquire); /* A6 */
    bool moved = false;

    if (consumed_lsn >= ahead->next_lsn) {
        /* The receiving thread was here first, and what lay there may be gone. It stores the index, then the LSN, so
         * this index may be a record too far; then nothing due lies there, and the next call finds the right one. */
        receive_ring_skip(ahead, atomic_load_explicit(&channel->credit->bytes, memory_order_acquire), consumed_lsn);
        moved = true;
    }
    for (unsigned i = 0; i < LOOK_AHEAD_RECORDS; i++) {
        struct channel_record record;
        uint64_t available = end == UINT64_MAX ? UINT64_MAX : end > ahead->index ? end - ahead->index : 0;
        enum frame_state state = receive_ring_look(ahead, available, &record);

        if (state != FRAME_COMPLETE)
            return moved ? FRAME_COMPLETE : state;
        receive_ring_consume(ahead);
        moved = true;
    }
    return FRAME_COMPLETE;
}

bool link_resume_fits(const struct channel *channel, uint64_t index, uint64_t lsn)
{
    const struct send_ring *ring = &channel->send;
    /* Acquire, the index before the LSN, as in control_take. The credit is our own thread's. */
    uint64_t committed = atomic_load_explicit(&ring->committed, memory_order_acquire);
    uint64_t committed_lsn = atomic_load_explicit(&ring->committed_lsn, memory_order_acquire), bytes;
    uint64_t credit = atomic_load_explicit(&channel->credit->bytes, memory_order_relaxed);
    struct channel_record record;
    enum frame_state state;

    if (index < credit || index > committed || index % FRAME_ALIGN_BYTES != 0 || lsn > committed_lsn ||
        /* What was seen stays seen. What was only placed, the device said; it is sent again. */
        (channel->ack == CHANNEL_ACK_SEEN && lsn < channel_acked_lsn(channel)))
        return false;
    if (index == committed)
        return true;
    state = frame_look(send_ring_at(ring, index), ring->ring_bytes - (index & (ring->ring_bytes - 1)), ring->key,
                       lsn + 1, &record, &bytes);
    return state == FRAME_COMPLETE || state == FRAME_PAD;
}

void link_held(const struct channel *channel, uint64_t *index, uint64_t *lsn)
{
    const struct ring_credit *consumed = channel->credit;
    struct receive_ring look;
    struct ring_credit nobody;
    struct channel_record record;

    /* The receiving thread goes on consuming: it stores the index, then the LSN. Between two equal LSNs the index is
     * theirs, or that behind a pad, or one record too far. */
    do {
        *lsn = atomic_load_explicit(&consumed->lsn, memory_order_acquire);
        *index = atomic_load_explicit(&consumed->bytes, memory_order_acquire);
    } while (atomic_load_explicit(&consumed->lsn, memory_order_relaxed) != *lsn);
    receive_ring_init(&look, channel->receive.base, channel->receive.ring_bytes, channel->receive.key, &nobody);
    if (*index != 0) {
        /* Then that record ends there; its LSN is in the word before it. A pad of 64 bytes ends with that word, too. */
        const uint8_t *last = look.base + ((*index - FRAME_ALIGN_BYTES) & (look.ring_bytes - 1));
        uint64_t bytes;

        if (frame_lsn_before(last + FRAME_ALIGN_BYTES, look.key) == *lsn + 1 &&
            frame_look(last, FRAME_ALIGN_BYTES, look.key, *lsn + 1, &record, &bytes) != FRAME_PAD)
            ++*lsn;
    }
    receive_ring_skip(&look, *index, *lsn);
    while (receive_ring_look(&look, UINT64_MAX, &record) == FRAME_COMPLETE)
        receive_ring_consume(&look);
    *index = look.index;
    *lsn = look.next_lsn - 1;
}

static int channel_open(struct channel **out, const struct channel_options *options, bool is_sender)
{
    static const struct {
        const char *prefix;
        int (*open)(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender);
        bool has_ring;
    } links[] = {
        { "verbs:", link_verbs_open, true },
        { "tcp:", link_tcp_open, true },
        { "shm:", link_shm_open, true },
        { "file:", link_file_open, false },
    };
    const char *address = options->address != NULL ? options->address : "";

    *out = NULL;
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
        size_t length = strlen(links[i].prefix);
        int result;

        if (strncmp(address, links[i].prefix, length) != 0)
            continue;
        if (!links[i].has_ring && options->ack != CHANNEL_ACK_PLACED) {
            report_error("channel '%s': a file sees nothing; the ack mode 'seen' needs another host or process",
                         address);
            return -EINVAL;
        }
        if (links[i].has_ring && (options->ring_bytes < RING_MIN_BYTES || options->ring_bytes > RING_MAX_BYTES ||
                                  (options->ring_bytes & (options->ring_bytes - 1)) != 0)) {
            report_error("channel ring of %zu bytes: it must be a power of two from %u to %llu bytes",
                         options->ring_bytes, RING_MIN_BYTES, RING_MAX_BYTES);
            return -EINVAL;
        }
        result = links[i].open(out, options, address + length, is_sender);
        if (result == 0)
            atomic_store(&(*out)->peer_seen_ns, links[i].has_ring ? clock_now_ns() : PEER_ALWAYS_SEEN);
        return result;
    }
    report_error("channel address '%s': give verbs:HOST:PORT, tcp:HOST:PORT, shm:NAME or file:PATH", address);
    return -EINVAL;
}

int channel_open_sender(struct channel **out, const struct channel_options *options)
{
    return channel_open(out, options, true);
}

int channel_open_receiver(struct channel **out, const struct channel_options *options)
{
    return channel_open(out, options, false);
}

int channel_open_log(struct channel **out, const char *path)
{
    int result = link_file_open_any(out, path);

    if (result == 0)
        atomic_store(&(*out)->peer_seen_ns, PEER_ALWAYS_SEEN);
    return result;
}

void channel_close(struct channel *channel)
{
    if (channel != NULL)
        channel->operations->close(channel);
}

const struct channel_hello *channel_peer(const struct channel *channel)
{
    return &channel->peer;
}

/* ---- sender ---- */

/* It is not to be had at once. */
__attribute__((noinline)) static int reserve_slowly(struct channel *channel, uint16_t kind, uint64_t position,
                                                    size_t bytes, void **payload)
{
    int result;

    if (!channel->is_sender || atomic_load_explicit(&channel->closed, memory_order_relaxed)) /* see below */
        return -EPIPE;
    result = send_ring_reserve(&channel->send, kind, position, bytes, payload);
    if (result == -EAGAIN && channel->operations->make_room != NULL) {
        channel->operations->make_room(channel);
        result = send_ring_reserve(&channel->send, kind, position, bytes, payload);
    }
    return result;
}

int channel_reserve(struct channel *channel, uint16_t kind, uint64_t position, size_t bytes, void **payload)
{
    /* relaxed: a hint. Of a link that is down records wait in the ring until it is resumed. In a receiver's ring there
     * is no room. */
    if (!atomic_load_explicit(&channel->closed, memory_order_relaxed) &&
        send_ring_open(&channel->send, kind, position, bytes, payload))
        return 0;
    return reserve_slowly(channel, kind, position, bytes, payload);
}

__attribute__((noinline)) static uint64_t commit_slowly(struct channel *channel)
{
    send_ring_commit(&channel->send);
    return channel->operations->commit(channel);
}

uint64_t channel_commit(struct channel *channel)
{
    if (send_ring_commit_short(&channel->send))
        return channel->operations->commit(channel);
    return commit_slowly(channel);
}

uint64_t channel_commit_with_next(struct channel *channel)
{
    if (!channel->operations->posts)
        return channel_commit(channel);
    if (!send_ring_commit_short(&channel->send))
        send_ring_commit(&channel->send);
    send_ring_publish(&channel->send);
    return channel->send.next_lsn - 1;
}

/* A sender that has nothing outstanding reads no clock here. */
static void watch_lag(struct channel *channel)
{
    uint64_t consumed_lsn = channel_consumed_lsn(channel), committed_lsn = channel_committed_lsn(channel);

    if (channel->lag.count > 0 || committed_lsn > consumed_lsn)
        lag_marks_update(&channel->lag, committed_lsn, consumed_lsn, clock_now_ns());
}

int channel_poll(struct channel *channel)
{
    int result = channel->operations->poll(channel);

    if (channel->is_sender)
        watch_lag(channel);
    return result;
}

uint64_t channel_acked_lsn(const struct channel *channel)
{
    return atomic_load_explicit(&channel->acked_lsn, memory_order_acquire); /* A2 */
}

uint64_t channel_committed_lsn(const struct channel *channel)
{
    return atomic_load_explicit(&channel->send.committed_lsn, memory_order_acquire); /* A4 */
}

void channel_get_lag(const struct channel *channel, struct channel_lag *out)
{
    const struct send_ring *ring = &channel->send;
    uint64_t consumed_lsn, committed_lsn, credit_bytes, committed_bytes, oldest_ns, now_ns;

    *out = (struct channel_lag){ 0 };
    if (!channel->is_sender)
        return;
    /* What is consumed first, acquire: what is committed cannot then be found to be less, unless the peer lies. */
    consumed_lsn = channel_consumed_lsn(channel);
    credit_bytes = atomic_load_explicit(&channel->credit->bytes, memory_order_acquire);
    oldest_ns = atomic_load_explicit(&channel->lag.oldest_ns, memory_order_relaxed); /* see lag.c */
    committed_lsn = channel_committed_lsn(channel);
    committed_bytes = atomic_load_explicit(&ring->committed, memory_order_acquire);
    out->ring_bytes = ring->ring_bytes;
    out->consumed_lsn = consumed_lsn;
    if (committed_bytes > credit_bytes)
        out->bytes = committed_bytes - credit_bytes;
    if (committed_lsn <= consumed_lsn)
        return;
    out->records = committed_lsn - consumed_lsn;
    now_ns = oldest_ns != 0 ? clock_now_ns() : 0;
    if (now_ns > oldest_ns)
        out->age_ns = now_ns - oldest_ns;
}

/* ---- receiver ---- */

int channel_next(struct channel *channel, struct channel_record *record)
{
    return channel->is_sender ? -ENODATA : channel->operations->next(channel, record);
}

void channel_consume(struct channel *channel)
{
    if (!channel->is_sender)
        channel->operations->consume(channel);
}

int channel_fence(struct channel *channel)
{
    return channel->is_sender ? -EINVAL : channel->operations->fence(channel);
}

/* ---- both ---- */

void channel_heartbeat(struct channel *channel)
{
    channel->operations->heartbeat(channel);
}

/* relaxed, both: the word is all that is told. */
void channel_tell(struct channel *channel, uint64_t word)
{
    atomic_store_explicit(&channel->word, word, memory_order_relaxed);
}

uint64_t channel_told(const struct channel *channel)
{
    return atomic_load_explicit(&channel->word, memory_order_relaxed);
}

uint64_t channel_peer_seen_ns(const struct channel *channel)
{
    uint64_t seen_ns = atomic_load_explicit(&channel->peer_seen_ns, memory_order_acquire); /* A8 */

    return seen_ns == PEER_ALWAYS_SEEN ? clock_now_ns() : seen_ns;
}

uint64_t channel_consumed_lsn(const struct channel *channel)
{
    return atomic_load_explicit(&channel->credit->lsn, memory_order_acquire); /* A6 */
}

uint64_t channel_frame_bytes(uint32_t payload_bytes)
{
    return frame_bytes(payload_bytes);
}

void channel_get_statistics(const struct channel *channel, struct channel_statistics *out)
{
    /* relaxed: counts of different moments */
    memset(out, 0, sizeof(*out));
    if (channel->is_sender) {
        out->records = atomic_load_explicit(&channel->send.committed_lsn, memory_order_relaxed);
        out->record_bytes = atomic_load_explicit(&channel->send.committed, memory_order_relaxed);
    } else {
        out->records = atomic_load_explicit(&channel->credit->lsn, memory_order_relaxed);
        out->record_bytes = atomic_load_explicit(&channel->credit->bytes, memory_order_relaxed);
    }
    out->writes = atomic_load_explicit(&channel->writes, memory_order_relaxed);
    out->stalls = atomic_load_explicit(&channel->send.stalls, memory_order_relaxed);
    out->torn = atomic_load_explicit(&channel->torn, memory_order_relaxed);
    out->resumes = atomic_load_explicit(&channel->resumes, memory_order_relaxed);
    out->damaged = atomic_load_explicit(&channel->damaged, memory_order_relaxed);
}
