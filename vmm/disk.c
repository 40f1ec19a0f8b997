/* The disk's file, its lock, its identity, and the thread that carries out requests; see disk.h. */
#include "vmm/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/clock.h"
#include "base/count.h"
#include "base/report.h"

#define SECTOR_BYTES VIRTIO_BLK_SECTOR_BYTES
/* A held write looks this often whether it may go. */
#define HOLD_LOOK_NS (50 * NS_PER_US)
/* The unit of the contents' digest; of these, all-zero ones and holes count the same: nothing. */
#define DIGEST_BLOCK_BYTES 4096u
#define DIGEST_READ_BYTES  DISK_SHARE_BYTES

struct slot {
    struct virtio_blk_request request;
    uint64_t hold_lsn;
    struct disk_result result;
};

struct disk {
    struct disk_options options;
    struct disk_owner owner;
    int fd;
    uint64_t bytes;
    uint8_t *data;     /* VIRTIO_BLK_REQUESTS_MAX buffers */
    bool flush_failed; /* disk thread: see carry_out_flush */
    bool said_busy;    /* machine thread */
    pthread_t thread;
    bool started, sem_ready;
    sem_t work;
    uint64_t renumbered; /* machine thread: a request's number less the number of its place, see disk_begin_at */

    /* Places of requests, numbered from the disk's opening on. Those before `consumed` are done with, before `finished` have
     * a result, before `submitted` are known.
     * D1: submit's release pairs with the thread's acquire: slot and data. D2: the thread's release of `finished` pairs
     * with disk_result's acquire: result and data. D3: activation's release of `active` pairs with the thread's
     * acquire: `finished` has a new owner. */
    _Alignas(128) _Atomic uint64_t submitted;
    _Atomic uint64_t consumed;
    _Alignas(128) _Atomic uint64_t finished;
    _Atomic bool active, closing, abandoned;
    _Atomic uint64_t reads, read_bytes, writes, write_bytes, flushes, errors;
    /* One bit a block, NULL while nobody copies. D4: set when a write has ended and cleared before the block is read, so
     * that whoever reads the old contents, or half of them, finds the bit set again. */
    _Atomic uint64_t *_Atomic uncopied;
    _Atomic uint64_t *uncopied_memory;
    struct slot slots[VIRTIO_BLK_REQUESTS_MAX];
};

static struct slot *slot_of(struct disk *disk, uint64_t place)
{
    return &disk->slots[place % VIRTIO_BLK_REQUESTS_MAX];
}

static uint8_t *data_of(struct disk *disk, uint64_t place)
{
    return disk->data + place % VIRTIO_BLK_REQUESTS_MAX * VIRTIO_BLK_DATA_BYTES_MAX;
}

/* ---- the disk thread ---- */

/* All of it or an error; the image's end where there should be none is an error as well. */
static int transfer(struct disk *disk, bool write, uint8_t *data, uint32_t bytes, uint64_t offset)
{
    while (bytes != 0) {
        ssize_t moved = write ? pwrite(disk->fd, data, bytes, (off_t)offset)
                              : pread(disk->fd, data, bytes, (off_t)offset);

        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < 0)
            return -errno;
        if (moved == 0)
            return -EIO; /* somebody has cut the image */
        data += moved;
        offset += (uint64_t)moved;
        bytes -= (uint32_t)moved;
    }
    return 0;
}

/* Linux forgets that a page could not be written once it has said so; a later success would be a lie about it. */
static int carry_out_flush(struct disk *disk)
{
    if (!disk->flush_failed && fdatasync(disk->fd) < 0) {
        disk->flush_failed = true;
        return -errno;
    }
    return disk->flush_failed ? -EIO : 0;
}

static uint64_t blocks_of(const struct disk *disk)
{
    return (disk->bytes + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES;
}

static void mark_blocks(_Atomic uint64_t *uncopied, uint64_t offset, uint64_t bytes)
{
    for (uint64_t block = offset / DISK_BLOCK_BYTES; block <= (offset + bytes - 1) / DISK_BLOCK_BYTES; block++)
        atomic_fetch_or(&uncopied[block / 64], UINT64_C(1) << (block % 64)); /* D4 */
}

static void note_written(struct disk *disk, uint64_t offset, uint32_t bytes)
{
    _Atomic uint64_t *uncopied = atomic_load(&disk->uncopied);

    if (uncopied != NULL && bytes != 0)
        mark_blocks(uncopied, offset, bytes);
}

static void carry_out(struct disk *disk, uint64_t place)
{
    struct slot *slot = slot_of(disk, place);
    const struct virtio_blk_request *request = &slot->request;
    uint8_t *data = data_of(disk, place);
    uint64_t offset = request->sector * SECTOR_BYTES;
    int rc = 0;

    slot->result = (struct disk_result){ 0 };
    switch ((enum virtio_blk_operation)request->operation) {
    case VIRTIO_BLK_READ:
        rc = transfer(disk, false, data, request->bytes, offset);
        COUNT_ADD(disk->reads, 1);
        COUNT_ADD(disk->read_bytes, request->bytes);
        break;
    case VIRTIO_BLK_WRITE:
        rc = transfer(disk, true, data, request->bytes, offset);
        note_written(disk, offset, request->bytes);
        if (rc == 0 && request->durable)
            rc = carry_out_flush(disk);
        COUNT_ADD(disk->writes, 1);
        COUNT_ADD(disk->write_bytes, request->bytes);
        break;
    case VIRTIO_BLK_FLUSH:
        rc = carry_out_flush(disk);
        COUNT_ADD(disk->flushes, 1);
        break;
    }
    if (rc < 0) {
        if (COUNT_ADD(disk->errors, 1) == 0)
            report_error("the disk image '%s' fails: %s at byte %llu: %s; the guest is told so; further errors are "
                         "only counted", disk->options.path,
                         request->operation == VIRTIO_BLK_READ    ? "reading"
                         : request->operation == VIRTIO_BLK_WRITE ? "writing"
                                                                  : "making writes durable",
                         (unsigned long long)offset, strerror(-rc));
        slot->result.status = VIRTIO_BLK_IOERR;
        return;
    }
    if (request->operation == VIRTIO_BLK_READ)
        slot->result.read_bytes = request->bytes;
    if (request->bytes != 0)
        slot->result.digest = XXH3_64bits(data, request->bytes);
}

/* False: neither this one nor any later one shall be carried out. */
static bool await_permission(struct disk *disk, uint64_t place)
{
    const struct slot *slot = slot_of(disk, place);

    while (!COUNT_GET(disk->abandoned)) {
        bool closing = COUNT_GET(disk->closing);

        if (slot->hold_lsn == 0 || disk->owner.may_write(disk->owner.ctx, slot->hold_lsn))
            return true;
        if (closing)
            return false; /* nobody will allow it any more */
        clock_sleep_ns(HOLD_LOOK_NS);
    }
    return false;
}

static void *disk_thread(void *arg)
{
    struct disk *disk = arg;

    for (;;) {
        uint64_t place;
        bool closing;

        while (sem_wait(&disk->work) < 0 && errno == EINTR)
            ;
        closing = COUNT_GET(disk->closing);

        while (atomic_load_explicit(&disk->active, memory_order_acquire) && /* D3 */
               (place = COUNT_GET(disk->finished)) != atomic_load_explicit(&disk->submitted, memory_order_acquire)) {
            if (!await_permission(disk, place))
                return NULL;
            carry_out(disk, place);
            atomic_store_explicit(&disk->finished, place + 1, memory_order_release); /* D2 */
            disk->owner.finished(disk->owner.ctx);
        }
        if (closing) /* set before the last look, so that look has seen all */
            return NULL;
    }
}

/* ---- set-up ---- */

static int open_file(const struct disk_options *options)
{
    /* A shared disk caches no write: what the guest knows to be written but has not flushed would die with this host,
     * and the other one could not flush it. A mirrored disk's other copy has it in a cache of its own. */
    int mode = options->readonly ? O_RDONLY : options->mode == DISK_SHARED ? O_RDWR | O_DSYNC : O_RDWR;
    int fd = open(options->path, mode | O_CLOEXEC | O_NONBLOCK);
    int error = errno;

    if (fd >= 0)
        return fd;
    if (error == EISDIR)
        report_error("the disk image '%s' is a directory; name a file or a block device", options->path);
    else if (error == ENOENT)
        report_error("there is no disk image '%s'; make one: truncate -s 1G '%s'", options->path, options->path);
    else if (error == EACCES || error == EROFS || error == EPERM)
        report_error("the disk image '%s' does not open%s: %s%s", options->path,
                     options->readonly ? "" : " for writing", strerror(error),
                     options->readonly ? "" : "; mend that, or add ',readonly'");
    else
        report_error("the disk image '%s' does not open: %s", options->path, strerror(error));
    return -error;
}

static int check_file(struct disk *disk)
{
    struct stat status;
    off_t end;

    if (fstat(disk->fd, &status) < 0 || (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))) {
        report_error("the disk image '%s' is neither a file nor a block device", disk->options.path);
        return -EINVAL;
    }
    end = lseek(disk->fd, 0, SEEK_END);
    if (end <= 0 || end % SECTOR_BYTES != 0) {
        report_error("the disk image '%s' has %lld bytes; a disk has at least one sector and whole ones "
                     "(truncate -s %%512 '%s' rounds up)", disk->options.path, (long long)end, disk->options.path);
        return -EINVAL;
    }
    disk->bytes = (uint64_t)end;
    return 0;
}

/* The guest would see the other format's tables as its disk, and its writes would destroy them. */
static int refuse_other_formats(const struct disk *disk)
{
    static const struct {
        const char *begins, *name;
    } formats[] = { { "QFI\xfb", "qcow2" }, { "KDMV", "vmdk" }, { "vhdxfile", "vhdx" } };
    char begins[8] = { 0 };

    if (disk->options.raw || pread(disk->fd, begins, sizeof(begins), 0) < 0)
        return 0; /* what cannot be read is an error of who reads it next */
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (strncmp(begins, formats[i].begins, strlen(formats[i].begins)) == 0) {
            report_error("the disk image '%s' is a %s image, and a disk is a raw one: qemu-img convert -O raw '%s' NEW.img, "
                         "on one host, and the same file for the other; if it is raw, and the guest has written that: "
                         "',format=raw'", disk->options.path, formats[i].name, disk->options.path);
            return -EINVAL;
        }
    return 0;
}

static int lock_file(const struct disk *disk, int fd)
{
    struct flock lock = { .l_type = disk->options.readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

/* Signals are the main thread's, which may not have blocked them yet. */
static int start_thread(struct disk *disk)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&disk->thread, NULL, disk_thread, disk);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    disk->started = rc == 0;
    return -rc;
}

int disk_open(struct disk **out, const struct disk_options *options, const struct disk_owner *owner)
{
    struct disk *disk = aligned_alloc(128, (sizeof(*disk) + 127) / 128 * 128);
    int rc;

    *out = NULL;
    if (disk == NULL)
        return -ENOMEM;
    memset(disk, 0, sizeof(*disk));
    disk->options = *options;
    disk->owner = *owner;
    COUNT_SET(disk->active, !options->passive);
    rc = disk->fd = open_file(options);
    if (rc >= 0)
        rc = check_file(disk);
    if (rc == 0)
        rc = refuse_other_formats(disk);
    if (rc == 0 && !options->passive) {
        rc = lock_file(disk, disk->fd);
        if (rc == -EBUSY)
            report_error("the disk image '%s' is in use by another process (a guest that runs, or a host that shares "
                         "it): end that one, or give this host a copy of its own", options->path);
        else if (rc < 0)
            report_error("the disk image '%s' cannot be locked: %s; keep it on a file system with locks",
                         options->path, strerror(-rc));
    }
    if (rc < 0)
        goto fail;
    disk->data = malloc((size_t)VIRTIO_BLK_REQUESTS_MAX * VIRTIO_BLK_DATA_BYTES_MAX);
    rc = disk->data == NULL || sem_init(&disk->work, 0, 0) < 0 ? -ENOMEM : 0;
    disk->sem_ready = rc == 0;
    if (rc == 0)
        rc = start_thread(disk);
    if (rc < 0) {
        report_error("the disk's thread does not start: %s", strerror(-rc));
        goto fail;
    }
    *out = disk;
    return 0;
fail:
    disk_close(disk, true);
    return rc;
}

void disk_close(struct disk *disk, bool abandon)
{
    if (disk == NULL)
        return;
    if (abandon)
        disk_abandon(disk);
    COUNT_SET(disk->closing, true);
    if (disk->started) {
        sem_post(&disk->work);
        pthread_join(disk->thread, NULL);
    }
    if (disk->fd >= 0 && disk->started && !disk->options.readonly && COUNT_GET(disk->active) &&
        !COUNT_GET(disk->abandoned) && fdatasync(disk->fd) < 0)
        report_error("the disk image '%s' cannot be made durable: %s", disk->options.path, strerror(errno));
    if (disk->sem_ready)
        sem_destroy(&disk->work);
    if (disk->fd >= 0)
        close(disk->fd);
    free(disk->uncopied_memory);
    free(disk->data);
    free(disk);
}

uint64_t disk_sectors(const struct disk *disk)
{
    return disk->bytes / SECTOR_BYTES;
}

enum disk_mode disk_mode_of(const struct disk *disk)
{
    return disk->options.mode;
}

/* ---- identity ---- */

static bool is_zero(const uint8_t *bytes, size_t count)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0;
}

/* Adds the blocks of [from, to); `from` is a multiple of DIGEST_READ_BYTES. */
static int digest_range(struct disk *disk, uint8_t *buffer, uint64_t from, uint64_t to, uint64_t *sum)
{
    while (from < to) {
        uint32_t bytes = to - from < DIGEST_READ_BYTES ? (uint32_t)(to - from) : DIGEST_READ_BYTES;
        int rc = transfer(disk, false, buffer, bytes, from);

        if (rc < 0)
            return rc;
        for (uint32_t at = 0; at < bytes; at += DIGEST_BLOCK_BYTES) {
            uint32_t block = bytes - at < DIGEST_BLOCK_BYTES ? bytes - at : DIGEST_BLOCK_BYTES;

            if (!is_zero(buffer + at, block))
                *sum += XXH3_64bits_withSeed(buffer + at, block, (from + at) / DIGEST_BLOCK_BYTES);
        }
        from += bytes;
    }
    return 0;
}

static int digest_contents(struct disk *disk, uint64_t *identity)
{
    uint8_t *buffer = malloc(DIGEST_READ_BYTES);
    uint64_t at = 0, sum = 0;
    int rc = buffer != NULL ? 0 : -ENOMEM;

    while (rc == 0 && at < disk->bytes) {
        off_t data = lseek(disk->fd, (off_t)at, SEEK_DATA);
        off_t hole = data < 0 ? -1 : lseek(disk->fd, data, SEEK_HOLE);

        if (data < 0 && errno == ENXIO)
            break; /* nothing but holes up to the end */
        if (data < 0 || hole < 0) { /* a file system that does not tell */
            data = (off_t)at;
            hole = (off_t)disk->bytes;
        }
        data -= data % DIGEST_READ_BYTES;
        if ((uint64_t)data < at)
            data = (off_t)at;
        /* Up to a whole read, so that ranges begin where reads do. */
        hole = (hole + DIGEST_READ_BYTES - 1) / DIGEST_READ_BYTES * DIGEST_READ_BYTES;
        if ((uint64_t)hole > disk->bytes)
            hole = (off_t)disk->bytes;
        rc = digest_range(disk, buffer, (uint64_t)data, (uint64_t)hole, &sum);
        at = (uint64_t)hole;
    }
    free(buffer);
    *identity = sum;
    return rc;
}

int disk_identify(struct disk *disk, uint64_t *identity)
{
    uint64_t began_ns = clock_now_ns();
    struct stat status;
    int rc;

    if (disk->options.mode == DISK_SHARED) {
        /* A file has one number wherever it is reached from; a block device's node has another on each host. */
        rc = fstat(disk->fd, &status) < 0 ? -errno : 0;
        *identity = rc == 0 && S_ISREG(status.st_mode) ? (uint64_t)status.st_ino : 0;
    } else {
        rc = digest_contents(disk, identity);
    }
    if (rc < 0) {
        report_error("the disk image '%s' cannot be read: %s", disk->options.path, strerror(-rc));
        return rc;
    }
    report_info("disk '%s': %llu sectors, %s %016llx (%llu ms)", disk->options.path,
                (unsigned long long)disk_sectors(disk), disk->options.mode == DISK_SHARED ? "shared file" : "contents",
                (unsigned long long)*identity, (unsigned long long)((clock_now_ns() - began_ns) / NS_PER_MS));
    return 0;
}

/* ---- the machine thread ---- */

uint8_t *disk_data(struct disk *disk, uint64_t number)
{
    return data_of(disk, number - disk->renumbered);
}

void disk_submit(struct disk *disk, uint64_t number, const struct virtio_blk_request *request, uint64_t hold_lsn)
{
    uint64_t place = number - disk->renumbered;
    struct slot *slot = slot_of(disk, place);

    if (place != COUNT_GET(disk->submitted) || place - COUNT_GET(disk->consumed) >= VIRTIO_BLK_REQUESTS_MAX)
        report_bug("disk request %llu comes out of its turn", (unsigned long long)number);
    slot->request = *request;
    slot->hold_lsn = hold_lsn;
    atomic_store_explicit(&disk->submitted, place + 1, memory_order_release); /* D1 */
    sem_post(&disk->work);
}

bool disk_result(struct disk *disk, struct disk_result *result)
{
    uint64_t place = COUNT_GET(disk->consumed);

    if (place == atomic_load_explicit(&disk->finished, memory_order_acquire)) /* D2 */
        return false;
    *result = slot_of(disk, place)->result;
    result->number = place + disk->renumbered;
    return true;
}

void disk_consume(struct disk *disk)
{
    COUNT_ADD(disk->consumed, 1); /* relaxed: `submitted`, released later, hands the slot over */
}

bool disk_is_passive(const struct disk *disk)
{
    return !COUNT_GET(disk->active);
}

int disk_learn(struct disk *disk, const struct disk_result *result, const uint8_t *data)
{
    uint64_t place = COUNT_GET(disk->finished);
    struct slot *slot = slot_of(disk, place);
    bool reads = slot->request.operation == VIRTIO_BLK_READ && result->status == VIRTIO_BLK_OK;

    if (place == COUNT_GET(disk->submitted) || result->number != place + disk->renumbered ||
        result->read_bytes != (reads ? slot->request.bytes : 0))
        return -EPROTO;
    slot->result = *result;
    memcpy(data_of(disk, place), data, result->read_bytes);
    COUNT_SET(disk->finished, place + 1); /* our own until activated */
    return 0;
}

int disk_activate(struct disk *disk)
{
    int fd, rc;

    if (!disk_is_passive(disk))
        return 0;
    fd = open_file(&disk->options); /* anew: network file systems look for others' writes then */
    if (fd < 0)
        return fd;
    rc = lock_file(disk, fd);
    if (rc < 0) {
        close(fd);
        if (!disk->said_busy)
            report_warning("the disk image '%s' is still locked by the other host (%s); waiting", disk->options.path,
                           strerror(-rc));
        disk->said_busy = true;
        return rc;
    }
    close(disk->fd);
    disk->fd = fd;
    atomic_store_explicit(&disk->active, true, memory_order_release); /* D3 */
    sem_post(&disk->work);
    return 0;
}

/* ---- copying to another host ---- */

int disk_track(struct disk *disk, bool all)
{
    uint64_t blocks = blocks_of(disk), words = (blocks + 63) / 64;

    if (disk->uncopied_memory == NULL)
        disk->uncopied_memory = calloc(words, sizeof(*disk->uncopied_memory)); /* freed at the end: the disk thread
                                                                                   may still look at it */
    if (disk->uncopied_memory == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t left = blocks - 64 * i;

        atomic_store(&disk->uncopied_memory[i], !all ? 0 : left >= 64 ? UINT64_MAX : (UINT64_C(1) << left) - 1);
    }
    atomic_store(&disk->uncopied, disk->uncopied_memory);
    return 0;
}

void disk_untrack(struct disk *disk)
{
    atomic_store(&disk->uncopied, NULL);
}

void disk_mark(struct disk *disk, uint64_t offset, uint64_t bytes)
{
    mark_blocks(disk->uncopied_memory, offset, bytes);
}

uint64_t disk_uncopied(const struct disk *disk)
{
    _Atomic uint64_t *uncopied = atomic_load(&disk->uncopied);
    uint64_t count = 0;

    for (uint64_t i = 0; uncopied != NULL && i < (blocks_of(disk) + 63) / 64; i++)
        count += (uint64_t)__builtin_popcountll(atomic_load_explicit(&uncopied[i], memory_order_relaxed));
    return count;
}

int disk_copy(struct disk *disk, uint64_t *block, uint8_t *data, uint64_t *offset, uint32_t *bytes, bool *zero)
{
    _Atomic uint64_t *uncopied = disk->uncopied_memory;
    uint64_t blocks = blocks_of(disk);
    int rc;

    while (*block < blocks && !(atomic_load(&uncopied[*block / 64]) >> (*block % 64) & 1))
        *block += atomic_load(&uncopied[*block / 64]) == 0 ? 64 - *block % 64 : 1;
    if (*block >= blocks)
        return 0;
    atomic_fetch_and(&uncopied[*block / 64], ~(UINT64_C(1) << (*block % 64))); /* D4 */
    *offset = *block * DISK_BLOCK_BYTES;
    *bytes = disk->bytes - *offset < DISK_BLOCK_BYTES ? (uint32_t)(disk->bytes - *offset) : DISK_BLOCK_BYTES;
    ++*block;
    rc = transfer(disk, false, data, *bytes, *offset);
    if (rc < 0) {
        report_error("the disk image '%s' cannot be copied: reading at byte %llu: %s", disk->options.path,
                     (unsigned long long)*offset, strerror(-rc));
        return rc;
    }
    *zero = is_zero(data, *bytes);
    return 1;
}

int disk_put(struct disk *disk, uint64_t offset, const uint8_t *data, uint32_t bytes)
{
    static uint8_t zeroes[DISK_BLOCK_BYTES];
    int rc = 0;

    if (offset > disk->bytes || bytes > disk->bytes - offset || bytes > DISK_BLOCK_BYTES) {
        report_error("the log has a block of the disk at byte %llu, outside the image '%s'",
                     (unsigned long long)offset, disk->options.path);
        return -EBADMSG;
    }
    if (data == NULL && fallocate(disk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, bytes) == 0)
        return 0; /* where that cannot be done zeroes are written */
    rc = transfer(disk, true, data != NULL ? (uint8_t *)data : zeroes, bytes, offset);
    if (rc < 0)
        report_error("the disk image '%s' cannot be written: %s", disk->options.path, strerror(-rc));
    return rc;
}

int disk_settle(struct disk *disk)
{
    /* Of an image that somebody has cut the end may be zeroes, which are put as holes, and make a file no longer. */
    bool cut = lseek(disk->fd, 0, SEEK_END) < (off_t)disk->bytes;
    int error;

    if ((!cut || ftruncate(disk->fd, (off_t)disk->bytes) == 0) && fdatasync(disk->fd) == 0)
        return 0;
    error = errno;
    report_error("the disk image '%s' cannot be made durable: %s", disk->options.path, strerror(error));
    return -error;
}

/* The places go on as they are: the disk thread may be looking at them, and must find nothing to do. */
void disk_begin_at(struct disk *disk, uint64_t number)
{
    uint64_t place = COUNT_GET(disk->submitted);

    if (disk_is_passive(disk)) {
        COUNT_SET(disk->finished, place);
        COUNT_SET(disk->consumed, place);
    }
    disk->renumbered = number - place;
}

/* ---- comparing two copies ---- */

uint64_t disk_stretches(const struct disk *disk)
{
    uint64_t bytes = (uint64_t)DISK_STRETCH_SHARES * DISK_SHARE_BYTES;

    return (disk->bytes + bytes - 1) / bytes;
}

/* Where a share begins and ends; false: it lies behind the disk's end. */
static bool share_at(const struct disk *disk, uint64_t stretch, unsigned share, uint64_t *from, uint64_t *to)
{
    *from = (stretch * DISK_STRETCH_SHARES + share) * DISK_SHARE_BYTES;
    *to = *from + DISK_SHARE_BYTES < disk->bytes ? *from + DISK_SHARE_BYTES : disk->bytes;
    return *from < disk->bytes;
}

int disk_digest(struct disk *disk, uint64_t stretch, uint64_t digests[DISK_STRETCH_SHARES])
{
    uint8_t *buffer = malloc(DIGEST_READ_BYTES);
    int rc = buffer != NULL ? 0 : -ENOMEM;
    uint64_t from, to;

    memset(digests, 0, DISK_STRETCH_SHARES * sizeof(digests[0]));
    for (unsigned i = 0; rc == 0 && i < DISK_STRETCH_SHARES && share_at(disk, stretch, i, &from, &to); i++) {
        /* Not SEEK_HOLE: some file systems look through all of the file for it. */
        off_t data = lseek(disk->fd, (off_t)from, SEEK_DATA);

        if (data < 0 && errno == ENXIO) /* nothing but a hole up to the end, unless somebody has cut the image */
            rc = lseek(disk->fd, 0, SEEK_END) < (off_t)to ? -EIO : 0;
        else if (data < (off_t)to) /* or the file system does not tell */
            rc = digest_range(disk, buffer, from, to, &digests[i]);
    }
    free(buffer);
    return rc;
}

void disk_mark_shares(struct disk *disk, uint64_t stretch, uint32_t shares)
{
    uint64_t from, to;

    for (unsigned share = 0; share < DISK_STRETCH_SHARES && share_at(disk, stretch, share, &from, &to); share++)
        if (shares >> share & 1)
            disk_mark(disk, from, to - from);
}

uint64_t disk_shares_bytes(const struct disk *disk, uint64_t stretch, uint32_t shares)
{
    uint64_t bytes = 0, from, to;

    for (unsigned share = 0; share < DISK_STRETCH_SHARES && share_at(disk, stretch, share, &from, &to); share++)
        bytes += shares >> share & 1 ? to - from : 0;
    return bytes;
}

/* ---- any thread ---- */

uint64_t disk_under_way(const struct disk *disk)
{
    return COUNT_GET(disk->submitted) - COUNT_GET(disk->consumed);
}

bool disk_result_waiting(const struct disk *disk)
{
    return COUNT_GET(disk->finished) != COUNT_GET(disk->consumed);
}

void disk_abandon(struct disk *disk)
{
    COUNT_SET(disk->abandoned, true);
}

void disk_get_statistics(const struct disk *disk, struct disk_statistics *out)
{
    *out = (struct disk_statistics){
        .reads = COUNT_GET(disk->reads), .read_bytes = COUNT_GET(disk->read_bytes),
        .writes = COUNT_GET(disk->writes), .write_bytes = COUNT_GET(disk->write_bytes),
        .flushes = COUNT_GET(disk->flushes), .errors = COUNT_GET(disk->errors),
        .under_way = disk_under_way(disk),
    };
}
