/*
 * shm: a ring in POSIX shared memory, between two processes of one machine. For tests, demos, and as the floor
 * to measure against: it survives the death of either process, not that of the machine.
 *
 * Acked: the record lies in the shared ring and its end index is published; whatever happens to the sender
 *     from then on, the receiver can read it.
 * Ordered: wholly, by one atomic word, the tail.
 * Torn: cannot be seen; the receiver never looks beyond the tail. What lies before it and does not fit its
 *     checksum is damage: -EBADMSG, at once.
 * The peer's death: the kernel drops its lock on the object (F_OFD_SETLK), looked at in each heartbeat; a
 *     hint. A stopped peer shows only in its heartbeats.
 * Full: reserve says -EAGAIN until the receiver has consumed.
 *
 * The fence. Shared memory cannot be taken back from a process that has mapped it, so a late sender can go on
 * writing bytes. What it cannot do is publish them: the fence is a bit in the tail itself. A commit is a
 * compare-and-swap of the tail, the fence an atomic OR that returns the tail it closed; so each commit is
 * either before the fence, and will be delivered, or fails, and is never acked. The late bytes land only where
 * the sender holds credit, never on a record the receiver has yet to read. A sender with a fault could write
 * anywhere; so could one before any fence, and the checksum is the answer to both.
 *
 * The object: /dev/shm/ftvmm-NAME, made whole before it gets its name (O_TMPFILE, linkat), mode 0600, with a
 * lock on byte 0 for as long as its receiver lives and on byte 1 while a sender uses it. An object whose byte 0
 * is not locked is left over from a receiver that died; the next receiver removes it.
 */
#include "channel/link.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/join.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHM_MAGIC          UINT64_C(0x316d68736d767466) /* "ftvmshm1" */
#define SHM_TAIL_FENCED    (UINT64_C(1) << 63)
#define SHM_LOCK_RECEIVER  0
#define SHM_LOCK_SENDER    1
#define SHM_RING_OFFSET    4096u
#define SHM_JOIN_PAUSE_NS  (2 * NS_PER_MS)

enum shm_join_state {
    SHM_LISTENING,
    SHM_OFFERED,  /* the sender's side is filled in */
    SHM_ACCEPTED,
    SHM_REFUSED,  /* `refusal` says why; the sender leaves */
};

/* Page 0 of the object. Everything up to `offer` must never move: it is what other versions look at. */
struct shm_head {
    uint64_t magic;
    struct join_side receiver;
    _Atomic uint32_t join_state; /* enum shm_join_state; publishes what is written before it */
    uint32_t refusal;            /* enum join_refusal */
    struct join_side offer;      /* the sender's */
    uint64_t key;
    alignas(RING_LINE_BYTES) _Atomic uint64_t tail; /* index up to which is committed; SHM_TAIL_FENCED */
    struct ring_credit credit;
    alignas(RING_LINE_BYTES) _Atomic uint64_t sender_beat; /* counts heartbeats */
    alignas(RING_LINE_BYTES) _Atomic uint64_t receiver_beat;
};
_Static_assert(sizeof(struct shm_head) <= SHM_RING_OFFSET, "the ring begins on the second page");

struct shm_link {
    struct channel channel;
    struct shm_head *head;
    size_t mapped_bytes;
    int fd;
    char *path;
    bool linked;           /* receiver: the object has its name */
    bool fenced;           /* receiver */
    int final;             /* receiver: what channel_next says from now on; 0: go on */
    uint64_t fenced_tail;  /* receiver: from here on nothing counts */
    uint64_t cached_tail;  /* receiver: as last read; sender: as last written */
    uint64_t peer_beat;    /* polling thread's: the peer's, as last seen */
    uint64_t peer_index;   /* polling thread's: the peer's progress, as last seen */
};

static void shm_close(struct channel *channel);

/* ---- per event ---- */

static void shm_commit(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;
    uint64_t expected = link->cached_tail;

    /* H1 release, pairs with H2 in shm_next: the frame before the tail. On failure the fence was faster, and
     * nothing is read on the strength of that: relaxed. */
    if (!atomic_compare_exchange_strong_explicit(&link->head->tail, &expected, channel->send.head,
                                                 memory_order_release, memory_order_relaxed)) {
        atomic_store_explicit(&channel->down, true, memory_order_release);
        return;
    }
    link->cached_tail = channel->send.head;
    link_count(&channel->writes, 1);
    /* release: pairs with channel_acked_lsn */
    atomic_store_explicit(&channel->acked_lsn, channel->send.next_lsn - 1, memory_order_release);
}

static int shm_next(struct channel *channel, struct channel_record *record)
{
    struct shm_link *link = (struct shm_link *)channel;
    struct receive_ring *ring = &channel->receive;
    enum frame_state state;

    if (link->final != 0)
        return link->final;
    if (ring->index == link->cached_tail) {
        if (link->fenced)
            return -ENODATA;
        /* H2 acquire, pairs with H1 in shm_commit. Only our own fence sets the bit. */
        link->cached_tail = atomic_load_explicit(&link->head->tail, memory_order_acquire) & ~SHM_TAIL_FENCED;
        if (ring->index == link->cached_tail)
            return -EAGAIN;
    }
    state = link->cached_tail - ring->index > ring->ring_bytes ?
                FRAME_DAMAGED :
                receive_ring_look(ring, link->cached_tail - ring->index, record);
    if (state == FRAME_COMPLETE)
        return 0;
    report_error("%s: record %llu is damaged in the shared ring (index %llu, tail %llu): the sender has a fault, or "
                 "somebody else wrote there; nothing more is read", link->path, (unsigned long long)ring->next_lsn,
                 (unsigned long long)ring->index, (unsigned long long)link->cached_tail);
    link_count(&channel->damaged, 1);
    return link->final = -EBADMSG;
}

static void shm_consume(struct channel *channel)
{
    receive_ring_consume(&channel->receive);
}

static int shm_fence(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;

    if (!link->fenced) {
        /* acquire: as H2. From here on every commit fails. */
        link->cached_tail = atomic_fetch_or_explicit(&link->head->tail, SHM_TAIL_FENCED, memory_order_acquire);
        link->fenced = true;
    }
    return 0;
}

/* ---- polling thread ---- */

static bool shm_lock_is_held(int fd, off_t byte)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static bool shm_lock_take(int fd, off_t byte)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static int shm_poll(struct channel *channel)
{
    return atomic_load_explicit(&channel->down, memory_order_relaxed) ? -EPIPE : 0; /* relaxed: a hint */
}

static void shm_heartbeat(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;
    bool is_sender = channel->is_sender;
    _Atomic uint64_t *ours = is_sender ? &link->head->sender_beat : &link->head->receiver_beat;
    _Atomic uint64_t *theirs = is_sender ? &link->head->receiver_beat : &link->head->sender_beat;
    _Atomic uint64_t *progress = is_sender ? &link->head->credit.bytes : &link->head->tail;
    /* All relaxed: signs of life, nothing is read on the strength of them. */
    uint64_t beat = atomic_load_explicit(theirs, memory_order_relaxed);
    uint64_t index = atomic_load_explicit(progress, memory_order_relaxed) & ~SHM_TAIL_FENCED;

    link_count(ours, 1);
    if (beat != link->peer_beat || index != link->peer_index) {
        link->peer_beat = beat;
        link->peer_index = index;
        atomic_store_explicit(&channel->peer_seen_ns, clock_now_ns(), memory_order_release);
    }
    if (!atomic_load_explicit(&channel->down, memory_order_relaxed) &&
        !shm_lock_is_held(link->fd, is_sender ? SHM_LOCK_RECEIVER : SHM_LOCK_SENDER)) {
        report_warning("%s: the %s has left or died", link->path, is_sender ? "receiver" : "sender");
        atomic_store_explicit(&channel->down, true, memory_order_release);
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
    link->head = mmap(NULL, link->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, link->fd, 0);
    if (link->head == MAP_FAILED) {
        int result = -errno;

        link->head = NULL;
        report_error("%s: cannot map %zu bytes: %s", link->path, link->mapped_bytes, strerror(-result));
        return result;
    }
    return 0;
}

/* Receiver: gives the finished object its name, removing what a dead receiver left there. */
static int shm_publish(struct shm_link *link)
{
    char ours[64];
    int attempts = 0;

    snprintf(ours, sizeof(ours), "/proc/self/fd/%d", link->fd);
    while (linkat(AT_FDCWD, ours, AT_FDCWD, link->path, AT_SYMLINK_FOLLOW) != 0) {
        struct stat opened, named;
        int result = -errno, fd;

        if (result != -EEXIST || ++attempts > 100) {
            report_error("%s: cannot create the shared ring: %s", link->path, strerror(-result));
            return result;
        }
        fd = open(link->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && errno == ENOENT)
            continue; /* removed meanwhile */
        if (fd < 0) {
            result = -errno;
            report_error("%s: a shared ring of that name exists and cannot be opened: %s; give another name",
                         link->path, strerror(-result));
            return result;
        }
        if (!shm_lock_take(fd, SHM_LOCK_RECEIVER)) {
            report_error("%s: another receiver uses this shared ring; stop it or give another name", link->path);
            close(fd);
            return -EADDRINUSE;
        }
        /* We hold its lock, so nobody else removes it; but it may have lost its name before we got the lock. */
        if (fstat(fd, &opened) == 0 && stat(link->path, &named) == 0 && opened.st_ino == named.st_ino &&
            opened.st_dev == named.st_dev) {
            report_info("%s: removing the shared ring of a receiver that died", link->path);
            unlink(link->path);
        }
        close(fd);
    }
    link->linked = true;
    return 0;
}

static int shm_create(struct shm_link *link, const struct channel_options *options)
{
    int result;

    link->fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    /* posix_fallocate: too little room in /dev/shm is an error here, not a SIGBUS later. */
    result = link->fd < 0 ? errno : posix_fallocate(link->fd, 0, (off_t)(SHM_RING_OFFSET + options->ring_bytes));
    if (result != 0) {
        report_error("/dev/shm: cannot create a shared ring of %zu bytes: %s; give a smaller ring, or more room "
                     "(mount -o remount,size=... /dev/shm)", options->ring_bytes, strerror(result));
        return -result;
    }
    if (!shm_lock_take(link->fd, SHM_LOCK_RECEIVER)) {
        report_error("/dev/shm: cannot lock the shared ring: %s", strerror(errno));
        return -EIO;
    }
    result = shm_map(link, options->ring_bytes);
    if (result != 0)
        return result;
    link->head->magic = SHM_MAGIC;
    link->head->receiver = join_side_of(options);
    link->head->key = link_random_key();
    atomic_init(&link->head->join_state, SHM_LISTENING);
    return shm_publish(link);
}

/* Receiver: waits for a sender that fits. */
static int shm_listen(struct shm_link *link, struct join_side *ours, const struct join_deadline *deadline)
{
    struct shm_head *head = link->head;
    enum join_refusal last = JOIN_ACCEPTED;
    int result = 0;

    for (; result == 0; result = join_deadline_check(deadline)) {
        /* H3 acquire, pairs with H4: the offer. */
        uint32_t state = atomic_load_explicit(&head->join_state, memory_order_acquire);

        if (state == SHM_OFFERED) {
            struct join_side theirs = head->offer;

            last = join_compare(&theirs, ours);
            if (last == JOIN_ACCEPTED) {
                if (ours->hello.generation == 0)
                    ours->hello.generation = theirs.hello.generation;
                link->channel.peer = theirs.hello;
                /* H5 release, pairs with H6: our answer. */
                if (atomic_compare_exchange_strong_explicit(&head->join_state, &state, SHM_ACCEPTED,
                                                            memory_order_release, memory_order_relaxed))
                    return 0;
                continue; /* withdrawn */
            }
            join_report_refusal(last, link->path, ours, &theirs, true);
            head->refusal = last;
            atomic_store_explicit(&head->join_state, SHM_REFUSED, memory_order_release); /* H5 */
        } else if (state == SHM_REFUSED && !shm_lock_is_held(link->fd, SHM_LOCK_SENDER)) {
            atomic_store_explicit(&head->join_state, SHM_LISTENING, memory_order_release); /* the refused one left */
        }
        clock_sleep_ns(SHM_JOIN_PAUSE_NS);
    }
    if (result == -ETIMEDOUT)
        report_error("%s: no sender joined in time%s", link->path,
                     last != JOIN_ACCEPTED ? "; the last one was refused, see above" :
                                             "; start it on this machine with the same name");
    return result;
}

/* Sender: one try to find a living receiver and to hold its sender's lock. -EAGAIN: not yet, *why says it. */
static int shm_find(struct shm_link *link, const char **why)
{
    struct stat status;

    link->fd = open(link->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (link->fd < 0) {
        int result = -errno;

        *why = "there is no receiver; start it on this machine with the same name";
        if (result == -ENOENT)
            return -EAGAIN;
        report_error("%s: cannot open the shared ring: %s", link->path, strerror(-result));
        return result;
    }
    if (fstat(link->fd, &status) != 0 || status.st_uid != geteuid()) {
        report_error("%s: the shared ring belongs to another user (uid %u); give another name, or run both ends as "
                     "one user", link->path, (unsigned)status.st_uid);
        return -EPERM;
    }
    *why = "its receiver has died; start another";
    if (!shm_lock_is_held(link->fd, SHM_LOCK_RECEIVER))
        return -EAGAIN;
    *why = "its receiver has another sender; stop that one or give another name";
    return shm_lock_take(link->fd, SHM_LOCK_SENDER) ? 0 : -EAGAIN;
}

/* Sender: maps what shm_find found and offers itself. */
static int shm_offer(struct shm_link *link, const struct join_side *ours, const struct join_deadline *deadline,
                     const char **why)
{
    struct join_side theirs;
    struct stat status;
    uint32_t state = SHM_OFFERED;
    int result;

    if (fstat(link->fd, &status) != 0 || status.st_size <= (off_t)SHM_RING_OFFSET) {
        report_error("%s: this is no shared ring of ftvmm: it has %lld bytes", link->path, (long long)status.st_size);
        return -EPROTO;
    }
    result = shm_map(link, (uint64_t)status.st_size - SHM_RING_OFFSET);
    if (result != 0)
        return result;
    theirs = link->head->receiver;
    if (link->head->magic != SHM_MAGIC || theirs.ring_bytes != (uint64_t)status.st_size - SHM_RING_OFFSET) {
        join_report_refusal(JOIN_NOT_FTVMM, link->path, ours, &theirs, false);
        return -EPROTO;
    }
    *why = "its receiver had a sender before and does not take another";
    if (atomic_load_explicit(&link->head->join_state, memory_order_acquire) != SHM_LISTENING)
        return -EAGAIN;
    link->head->offer = *ours;
    atomic_store_explicit(&link->head->join_state, SHM_OFFERED, memory_order_release); /* H4, pairs with H3 */
    *why = "its receiver does not answer";
    for (;;) {
        state = atomic_load_explicit(&link->head->join_state, memory_order_acquire); /* H6, pairs with H5 */
        if (state == SHM_ACCEPTED || state == SHM_REFUSED)
            break;
        result = join_deadline_check(deadline);
        if (result == 0 && !shm_lock_is_held(link->fd, SHM_LOCK_RECEIVER))
            result = -EAGAIN;
        if (result != 0) {
            state = SHM_OFFERED; /* withdraw; if that fails it was answered just now, and we are gone all the same */
            atomic_compare_exchange_strong(&link->head->join_state, &state, SHM_LISTENING);
            return result;
        }
        clock_sleep_ns(SHM_JOIN_PAUSE_NS);
    }
    if (state == SHM_REFUSED) {
        join_report_refusal((enum join_refusal)link->head->refusal, link->path, ours, &theirs, false);
        return -EPROTO;
    }
    link->channel.peer = theirs.hello;
    if (theirs.hello.generation == 0)
        link->channel.peer.generation = ours->hello.generation;
    return 0;
}

static void shm_release(struct shm_link *link)
{
    if (link->head != NULL)
        munmap(link->head, link->mapped_bytes);
    if (link->linked)
        unlink(link->path);
    if (link->fd >= 0)
        close(link->fd); /* and with it our lock */
    link->head = NULL;
    link->linked = false;
    link->fd = -1;
}

static int shm_join(struct shm_link *link, const struct join_side *ours, const struct join_deadline *deadline)
{
    const char *why = "";
    int result;

    for (;;) {
        result = shm_find(link, &why);
        if (result == 0)
            result = shm_offer(link, ours, deadline, &why);
        if (result == 0)
            return 0;
        shm_release(link);
        if (result == -EAGAIN)
            result = join_deadline_check(deadline);
        if (result == -ETIMEDOUT)
            report_error("%s: could not join in time: %s", link->path, why);
        if (result != 0)
            return result;
        clock_sleep_ns(SHM_JOIN_PAUSE_NS);
    }
}

int link_shm_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender)
{
    struct join_deadline deadline = join_deadline_of(options);
    struct join_side ours = join_side_of(options);
    struct shm_link *link;
    struct channel *channel;
    int result;

    if (rest[0] == '\0' || strchr(rest, '/') != NULL || strlen(rest) > 200) {
        report_error("channel address 'shm:%s': the name must have 1 to 200 characters and no '/'", rest);
        return -EINVAL;
    }
    link = link_allocate(sizeof(*link));
    if (link == NULL)
        return -ENOMEM;
    channel = &link->channel;
    channel->operations = &shm_operations;
    channel->is_sender = is_sender;
    link->fd = -1;
    result = -ENOMEM;
    if (asprintf(&link->path, "/dev/shm/ftvmm-%s", rest) < 0) {
        link->path = NULL;
        goto fail;
    }
    if (is_sender) {
        result = shm_join(link, &ours, &deadline);
    } else {
        result = shm_create(link, options);
        if (result == 0)
            result = shm_listen(link, &ours, &deadline);
    }
    if (result != 0)
        goto fail;
    channel->credit = &link->head->credit;
    if (is_sender)
        send_ring_init(&channel->send, (uint8_t *)link->head + SHM_RING_OFFSET, options->ring_bytes, link->head->key,
                       channel->credit);
    else
        receive_ring_init(&channel->receive, (uint8_t *)link->head + SHM_RING_OFFSET, options->ring_bytes,
                          link->head->key, channel->credit);
    *out = channel;
    return 0;

fail:
    shm_close(channel);
    return result;
}

static void shm_close(struct channel *channel)
{
    struct shm_link *link = (struct shm_link *)channel;

    if (!channel->is_sender && link->head != NULL)
        shm_fence(channel); /* nothing may count as acked that nobody will read */
    shm_release(link);
    free(link->path);
    free(link);
}
