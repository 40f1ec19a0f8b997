/*
 * The file or block device behind the guest's disk, and the thread that reads and writes it. Requests are carried out
 * one after the other, in the order in which they were submitted, so what each of them finds does not depend on the
 * host's timing; and they finish in that order. Data lie in buffers of the disk's own, never in guest memory.
 *
 * The *machine* thread submits and consumes; the *disk* thread carries out. A passive disk (a backup's, where both
 * hosts share one file) carries out nothing: it is told what the other host's file has answered, until it is activated.
 */
#ifndef FTVMM_VMM_DISK_H
#define FTVMM_VMM_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/virtio_blk.h"

enum disk_mode {
    DISK_MIRRORED, /* each host has a copy of its own */
    DISK_SHARED,   /* both hosts reach one file; only the live one uses it, and each write is durable when it ends */
};

struct disk_options {
    const char *path; /* NULL: no disk */
    enum disk_mode mode;
    bool readonly;
    bool raw;     /* whatever it begins with: not refused for looking like another format */
    bool passive; /* shared, on a backup: neither locked nor used until activated */
};

/* What a request has come to. */
struct disk_result {
    uint64_t number;
    uint64_t digest; /* XXH3-64 of the data read or written, if the status is OK; 0 for a flush */
    uint32_t status; /* VIRTIO_BLK_OK or VIRTIO_BLK_IOERR */
    uint32_t read_bytes; /* of data; 0 for all but a read that is OK */
};

/* How the disk thread meets its owner; called on it. */
struct disk_owner {
    void *ctx;
    void (*finished)(void *ctx);               /* there is a result */
    bool (*may_write)(void *ctx, uint64_t lsn); /* a write held for `lsn` may be carried out */
};

struct disk;

/* Opens and locks the image, and starts its thread. `owner` is copied. Errors are said in words: no file or block
 * device, not writable, an image of another format, empty, no multiple of 512 bytes (-EINVAL), in use by another process (-EBUSY), ... */
int disk_open(struct disk **out, const struct disk_options *options, const struct disk_owner *owner);
/* Carries out what was submitted, up to a write that may_write does not allow, and makes it durable; or with `abandon`
 * touches the file no more. Accepts NULL. */
void disk_close(struct disk *disk, bool abandon);

uint64_t disk_sectors(const struct disk *disk);
enum disk_mode disk_mode_of(const struct disk *disk);
/* What must be equal on both hosts: mirrored: digest of the contents, for which all of the image is read that is not a
 * hole; shared: which file it is. Before the first request. 0 or -errno, said in words. */
int disk_identify(struct disk *disk, uint64_t *identity);

/* ---- machine thread ---- */

/* Buffer of request `number` (VIRTIO_BLK_DATA_BYTES_MAX bytes); its owner's until submitted, and when finished. */
uint8_t *disk_data(struct disk *disk, uint64_t number);
/* Numbers are 0, 1, 2, ...; at most VIRTIO_BLK_REQUESTS_MAX are not yet consumed. `hold_lsn`: a write waits until
 * may_write allows it; 0: it does not wait. */
void disk_submit(struct disk *disk, uint64_t number, const struct virtio_blk_request *request, uint64_t hold_lsn);
/* The oldest request's result, once it is there; the same again until disk_consume. */
bool disk_result(struct disk *disk, struct disk_result *result);
void disk_consume(struct disk *disk);
bool disk_is_passive(const struct disk *disk);
/* Passive: the oldest request has come to `result`, a read to `data`. -EPROTO if it cannot have. */
int disk_learn(struct disk *disk, const struct disk_result *result, const uint8_t *data);
/* Makes a passive disk an active one, which carries out what has not been learnt. 0, or -errno: not yet possible
 * (-EBUSY: the other host still has it locked; said once). */
int disk_activate(struct disk *disk);

/*
 * ---- copying a mirrored disk to another host, while requests are carried out ----
 *
 * The image is seen as blocks of DISK_BLOCK_BYTES. From disk_track on, every block counts as not copied, or none; one that
 * is written later counts so again, and so does one that is marked.
 */
#define DISK_BLOCK_BYTES 65536u

/* Begins, all over again if need be: no block has been copied, or (not `all`) none needs to be. Any one thread, the same
 * that copies. 0 or -ENOMEM. */
int disk_track(struct disk *disk, bool all);
void disk_untrack(struct disk *disk);
/* The blocks that these bytes lie in count as not copied; `bytes` not 0. While it is tracked. */
void disk_mark(struct disk *disk, uint64_t offset, uint64_t bytes);
/* Blocks not copied. Any thread. */
uint64_t disk_uncopied(const struct disk *disk);
/* The next block not copied, from number *block on, which moves behind it: *bytes of it at *offset go to `data` (room for
 * a block), with *zero if they are all zeroes. 1; 0: none left from *block on; -errno, said in words. A block that is
 * being written comes as a mixture, and will count as not copied again. */
int disk_copy(struct disk *disk, uint64_t *block, uint8_t *data, uint64_t *offset, uint32_t *bytes, bool *zero);
/* The other host: puts a piece of the image in its place; `data` NULL: zeroes. No request may be under way. 0; -EBADMSG:
 * outside the image; -errno; said in words. Machine thread. */
int disk_put(struct disk *disk, uint64_t offset, const uint8_t *data, uint32_t bytes);
/* Makes all that was put durable, and the image as long as it was when it was opened. 0 or -errno, said in words. */
int disk_settle(struct disk *disk);
/* The next request is `number`: those before were another host's, or another machine's. None is under way here; a passive
 * disk drops what it has not learnt the end of. Machine thread. */
void disk_begin_at(struct disk *disk, uint64_t number);

/*
 * ---- comparing two copies of a mirrored disk, while requests are carried out ----
 *
 * The image is seen as stretches of DISK_STRETCH_SHARES shares of DISK_SHARE_BYTES each; the last ones may be cut short.
 */
#define DISK_SHARE_BYTES    (1u << 20)
#define DISK_STRETCH_SHARES 32u

uint64_t disk_stretches(const struct disk *disk);
/* Digests of a stretch's shares, which are equal where the contents are; of those behind the disk's end 0. A share that is
 * written meanwhile has one of no use. 0, or -errno, not said in words. Any thread but the disk's own. */
int disk_digest(struct disk *disk, uint64_t stretch, uint64_t digests[DISK_STRETCH_SHARES]);
/* Bit i of `shares`: share i of the stretch counts as not copied. As disk_mark. */
void disk_mark_shares(struct disk *disk, uint64_t stretch, uint32_t shares);
/* How many bytes these shares have. */
uint64_t disk_shares_bytes(const struct disk *disk, uint64_t stretch, uint32_t shares);

/* ---- any thread ---- */

/* Requests submitted and not yet consumed. */
uint64_t disk_under_way(const struct disk *disk);
/* A result waits that nobody has consumed. */
bool disk_result_waiting(const struct disk *disk);
/* From now on nothing is carried out any more; what is being carried out cannot be called back. */
void disk_abandon(struct disk *disk);

struct disk_statistics {
    uint64_t reads, read_bytes, writes, write_bytes, flushes; /* carried out here */
    uint64_t errors;
    uint64_t under_way; /* submitted and not yet consumed */
};
void disk_get_statistics(const struct disk *disk, struct disk_statistics *out);

#endif
