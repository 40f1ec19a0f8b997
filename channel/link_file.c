/*
 * file: a log on disk instead of a peer. The file is a header and then the ring unrolled: frames and pads as
 * the ring held them, so that a recorded log has gone through the same code as a live one.
 *
 * Acked: the record is in this process's buffer (it will be written; it does not survive a power loss, nor a
 *     crash of this process within the last 100 ms). Meant for record and replay, not for protection.
 * Ordered: by the file offset.
 * Torn: a log that ends inside a frame was cut off; said in words, then -ENODATA.
 * Damaged: -EBADMSG, naming the offset.
 * The peer's death: does not exist.
 * Full: the committing thread writes the buffer out itself, unless the polling thread alone is to write.
 */
#include "channel/link.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/join.h"
#include "channel/post_turn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_RING_BYTES      (4u << 20) /* the sender's buffer, unless it is told another size */
#define FILE_FLUSH_BYTES     (1u << 20)
#define FILE_FLUSH_NS        (100 * NS_PER_MS)
#define FILE_READ_BYTES      (1u << 20) /* the receiver's buffer: holds any frame, and a pad behind it */

struct file_header {
    char magic[8]; /* "FTVMMLOG" */
    uint32_t version;
    uint32_t features;
    uint64_t key;
    struct channel_hello hello;
    uint8_t zero[44];
    uint32_t crc; /* of what stands before it, keyed */
};
_Static_assert(sizeof(struct file_header) == 128, "the file header is part of the wire format");
_Static_assert(FILE_READ_BYTES >= 2 * FRAME_MAX_BYTES, "a frame must fit behind the rest of another");

struct file_link {
    struct channel channel;
    int fd;
    char *path;
    uint8_t *buffer; /* sender: the ring; receiver: what was read */
    /* sender */
    struct post_turn turn; /* who writes */
    bool poller_writes;    /* and nobody else */
    uint64_t flushed_ns;   /* polling thread's */
    /* receiver */
    uint64_t key;
    uint64_t start, end;   /* of what is unread in the buffer */
    uint64_t offset;       /* in the file, of `start` */
    uint64_t current_bytes; /* of the frame found and not yet consumed */
    struct channel_record current;
    uint64_t next_lsn;
    bool at_end;    /* of the file */
    int final;      /* what channel_next says from now on; 0: go on */
};

static void file_close(struct channel *channel);

/* ---- sender ---- */

static int write_whole(int fd, const void *data, uint64_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        ssize_t written = pwrite(fd, data, bytes, (off_t)offset);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? -errno : -EIO;
        data = (const uint8_t *)data + written;
        bytes -= (uint64_t)written;
        offset += (uint64_t)written;
    }
    return 0;
}

/* Writes what is committed, unless the other thread is at it. Committing and polling thread. */
static void file_flush(struct file_link *link)
{
    struct send_ring *ring = &link->channel.send;
    uint64_t from, to, first;
    int result;

    if (!post_turn_take(&link->turn))
        return;
    from = atomic_load_explicit(&link->turn.posted, memory_order_relaxed); /* ordered by the turn */
    to = atomic_load_explicit(&ring->committed, memory_order_acquire);     /* pairs with S3 in send_ring.c */
    if (from != to && !atomic_load_explicit(&link->channel.down, memory_order_relaxed)) {
        first = ring->ring_bytes - (from & (ring->ring_bytes - 1));
        if (first > to - from)
            first = to - from;
        result = write_whole(link->fd, send_ring_at(ring, from), first, sizeof(struct file_header) + from);
        if (result == 0)
            result = write_whole(link->fd, ring->base, to - from - first, sizeof(struct file_header) + from + first);
        if (result != 0) {
            report_error("%s: cannot write the log at offset %llu: %s; it ends there", link->path,
                         (unsigned long long)(sizeof(struct file_header) + from), strerror(-result));
            link_break(&link->channel, true);
        } else {
            link_count(&link->channel.writes, 1);
            atomic_store_explicit(&link->turn.posted, to, memory_order_relaxed); /* published by giving the turn */
            atomic_store_explicit(&link->channel.credit->lsn, send_ring_lsn_before(ring, to), memory_order_release);
            /* Pairs with S1 in send_ring.c: the bytes are copied before their place is given back. */
            atomic_store_explicit(&link->channel.credit->bytes, to, memory_order_release);
        }
    }
    post_turn_give(&link->turn);
}

static void file_make_room(struct channel *channel)
{
    struct file_link *link = (struct file_link *)channel;

    if (!link->poller_writes)
        file_flush(link);
}

static uint64_t file_commit(struct channel *channel)
{
    uint64_t lsn = channel->send.next_lsn - 1;

    /* release: pairs with channel_acked_lsn */
    atomic_store_explicit(&channel->acked_lsn, lsn, memory_order_release);
    return lsn;
}

static int file_poll(struct channel *channel)
{
    struct file_link *link = (struct file_link *)channel;
    uint64_t waits, now_ns;

    if (!channel->is_sender)
        return 0;
    /* Relaxed both: only to decide when to look. */
    waits = atomic_load_explicit(&channel->send.committed, memory_order_relaxed) -
            atomic_load_explicit(&link->turn.posted, memory_order_relaxed);
    if (waits != 0) {
        now_ns = clock_now_ns();
        if (waits >= FILE_FLUSH_BYTES || now_ns - link->flushed_ns >= FILE_FLUSH_NS) {
            link->flushed_ns = now_ns;
            file_flush(link);
        }
    }
    return atomic_load_explicit(&channel->down, memory_order_relaxed) ? -EPIPE : 0; /* A9 */
}

static void file_heartbeat(struct channel *channel)
{
    (void)channel; /* nobody listens */
}

static int file_create(struct file_link *link, const struct channel_options *options)
{
    struct file_header header = { .magic = "FTVMMLOG", .version = WIRE_VERSION, .features = 0,
                                  .key = link_random_key(), .hello = options->hello };
    uint64_t ring_bytes;
    int result;

    link->fd = open(link->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (link->fd < 0) {
        result = -errno;
        report_error("%s: cannot create the log: %s", link->path, strerror(-result));
        return result;
    }
    if (flock(link->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        report_error("%s: another process is writing this log; give another path", link->path);
        return -EBUSY;
    }
    header.crc = crc32c_keyed(header.key, &header, offsetof(struct file_header, crc));
    result = ftruncate(link->fd, 0) != 0 ? -errno : write_whole(link->fd, &header, sizeof(header), 0);
    if (result != 0) {
        report_error("%s: cannot write the log: %s", link->path, strerror(-result));
        return result;
    }
    link->poller_writes = options->file_poller_writes;
    ring_bytes = link->poller_writes ? options->ring_bytes : FILE_RING_BYTES;
    link->buffer = link_allocate(ring_bytes);
    if (link->buffer == NULL)
        return -ENOMEM;
    link->turn.in_flight_limit = 1;
    link->channel.peer = options->hello;
    send_ring_init(&link->channel.send, link->buffer, ring_bytes, header.key, link->channel.credit);
    return 0;
}

/* ---- receiver ---- */

/* Makes sure that a whole frame is in the buffer, unless the file ends before. */
static int file_fill(struct file_link *link)
{
    if (link->at_end || link->end - link->start >= FRAME_MAX_BYTES)
        return 0;
    memmove(link->buffer, link->buffer + link->start, link->end - link->start);
    link->end -= link->start;
    link->start = 0;
    while (link->end < FILE_READ_BYTES) {
        ssize_t bytes = pread(link->fd, link->buffer + link->end, FILE_READ_BYTES - link->end,
                              (off_t)(link->offset + link->end));

        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0)
            return -errno;
        link->at_end = bytes == 0;
        if (bytes == 0)
            break;
        link->end += (uint64_t)bytes;
    }
    return 0;
}

static void file_step(struct file_link *link, uint64_t bytes)
{
    link->start += bytes;
    link->offset += bytes;
    link_count(&link->channel.credit->bytes, bytes);
}

/* No whole frame lies at `start`: was the log cut off there, or is it damaged? */
static int file_judge(struct file_link *link, enum frame_state state)
{
    uint64_t rest = link->end - link->start, lsn = link->next_lsn;
    const uint8_t *at = link->buffer + link->start;
    const struct frame_header *header = (const struct frame_header *)at;
    bool cut = rest < FRAME_ALIGN_BYTES;

    if (!cut && header->lsn == lsn && header->bytes <= FRAME_MAX_BYTES &&
        (header->flags == FRAME_FLAG_PAD ? header->bytes : frame_bytes(header->bytes)) > rest) {
        /* The header says that the frame ends behind the end of the file. Believe it unless the frame's end
         * can be found: then the length is what is wrong. */
        cut = true;
        for (uint64_t end = FRAME_ALIGN_BYTES; end <= rest && header->flags != FRAME_FLAG_PAD; end += FRAME_ALIGN_BYTES)
            cut = cut && frame_lsn_before(at + end, link->key) != lsn;
    }
    if (cut) {
        report_warning("%s: the log was cut off at offset %llu, in the record with LSN %llu; all records before it "
                       "are whole", link->path, (unsigned long long)link->offset, (unsigned long long)lsn);
        return -ENODATA;
    }
    report_error("%s: the log is damaged at offset %llu: LSN %llu is due there, but %s; records behind it cannot be "
                 "used", link->path, (unsigned long long)link->offset, (unsigned long long)lsn,
                 state == FRAME_ABSENT ? "something else lies there" :
                 state == FRAME_TORN   ? "the frame's end belongs to another" :
                                         "its length, version or checksum is wrong");
    link_count(&link->channel.damaged, 1);
    return -EBADMSG;
}

static int file_next(struct channel *channel, struct channel_record *record)
{
    struct file_link *link = (struct file_link *)channel;

    while (link->final == 0) {
        uint64_t bytes = 0, rest;
        enum frame_state state;
        int result;

        if (link->current_bytes != 0) {
            *record = link->current;
            return 0;
        }
        result = file_fill(link);
        if (result != 0) {
            report_error("%s: cannot read the log at offset %llu: %s", link->path, (unsigned long long)link->offset,
                         strerror(-result));
            return link->final = -EBADMSG;
        }
        rest = link->end - link->start;
        if (rest == 0)
            return link->final = -ENODATA;
        state = frame_look(link->buffer + link->start, rest & ~(uint64_t)(FRAME_ALIGN_BYTES - 1), link->key,
                           link->next_lsn, &link->current, &bytes);
        if (state == FRAME_PAD) {
            file_step(link, bytes);
        } else if (state == FRAME_COMPLETE) {
            link->current_bytes = bytes;
        } else {
            link->final = file_judge(link, state);
        }
    }
    return link->final;
}

static void file_consume(struct channel *channel)
{
    struct file_link *link = (struct file_link *)channel;

    if (link->current_bytes == 0)
        return;
    file_step(link, link->current_bytes);
    link->current_bytes = 0;
    /* release: the caller's effects of the record come before the word that it is consumed */
    atomic_store_explicit(&channel->credit->lsn, link->next_lsn, memory_order_release);
    link->next_lsn++;
}

static int file_fence(struct channel *channel)
{
    (void)channel; /* a log that is read has no sender */
    return 0;
}

/* `options` NULL: a log of any machine will do, if only we can read it. */
static int file_read_header(struct file_link *link, const struct channel_options *options)
{
    struct join_side ours = options != NULL ? join_side_of(options) : (struct join_side){ .version = WIRE_VERSION };
    struct join_side theirs = { 0 };
    struct file_header header;
    enum join_refusal refusal = JOIN_NOT_FTVMM;
    ssize_t bytes;
    int result;

    link->fd = open(link->path, O_RDONLY | O_CLOEXEC);
    bytes = link->fd < 0 ? -1 : pread(link->fd, &header, sizeof(header), 0);
    if (bytes < 0) {
        result = -errno;
        report_error("%s: cannot read the log: %s", link->path, strerror(-result));
        return result;
    }
    if (bytes == (ssize_t)sizeof(header) && memcmp(header.magic, "FTVMMLOG", sizeof(header.magic)) == 0) {
        theirs.version = header.version;
        theirs.features = header.features;
        theirs.hello = header.hello;
        ours.ring_bytes = 0;
        ours.features &= ~JOIN_FEATURE_RESUME; /* of joining messages: a log has none */
        if (options == NULL)
            ours.hello = header.hello;
        refusal = join_compare(&theirs, &ours);
        /* The place of the checksum is the version's; so the version is looked at first. */
        if (refusal != JOIN_VERSION &&
            header.crc != crc32c_keyed(header.key, &header, offsetof(struct file_header, crc))) {
            report_error("%s: the head of the log is damaged (its checksum is wrong)", link->path);
            return -EBADMSG;
        }
    } else {
        report_error("%s: this is no log of ftvmm: it has %s", link->path,
                     bytes < (ssize_t)sizeof(header) ? "fewer bytes than a log's head" : "another beginning");
        return -EPROTO;
    }
    if (refusal != JOIN_ACCEPTED) {
        join_report_refusal(refusal, link->path, &ours, &theirs, true);
        return -EPROTO;
    }
    link->channel.peer = header.hello;
    link->key = header.key;
    link->offset = sizeof(header);
    link->next_lsn = 1;
    link->buffer = link_allocate(FILE_READ_BYTES);
    return link->buffer == NULL ? -ENOMEM : 0;
}

/* ---- both ---- */

static const struct link_operations file_operations = {
    .commit = file_commit,
    .make_room = file_make_room,
    .next = file_next,
    .consume = file_consume,
    .fence = file_fence,
    .poll = file_poll,
    .heartbeat = file_heartbeat,
    .close = file_close,
};

/* `options` is NULL for a reader of any log. */
static int file_open(struct channel **out, const struct channel_options *options, const char *path, bool is_sender)
{
    struct file_link *link = link_allocate(sizeof(*link));
    int result = -ENOMEM;

    *out = NULL;
    if (link == NULL)
        return -ENOMEM;
    link->channel.operations = &file_operations;
    link->channel.is_sender = is_sender;
    link->channel.credit = &link->channel.own_credit;
    link->fd = -1;
    link->path = strdup(path);
    if (link->path == NULL)
        goto fail;
    result = is_sender ? file_create(link, options) : file_read_header(link, options);
    if (result != 0)
        goto fail;
    *out = &link->channel;
    return 0;

fail:
    file_close(&link->channel);
    return result;
}

int link_file_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender)
{
    return file_open(out, options, rest, is_sender);
}

int link_file_open_any(struct channel **out, const char *path)
{
    return file_open(out, NULL, path, false);
}

static void file_close(struct channel *channel)
{
    struct file_link *link = (struct file_link *)channel;

    if (channel->is_sender && link->buffer != NULL)
        file_flush(link);
    if (link->fd >= 0)
        close(link->fd);
    free(link->buffer);
    free(link->path);
    free(link);
}
