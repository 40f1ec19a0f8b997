/*
 * The disk in lockstep. Requests leave the machine at positions, so both hosts make the same ones in the same order;
 * what each has come to is an input, logged by the primary at the position where the guest learns it. The two modes
 * differ in who does the work:
 *
 * mirrored: both hosts carry out every request on a copy of their own. The backup waits for its own copy before it
 *     lets the guest learn anything, and compares. So what the guest knows to be durable is durable on this host, too.
 * shared: the live host alone carries out requests. A write is output: it waits until the backup's host holds the log
 *     that led to it, or the backup might go on another way and never make it. When it ends it is durable, since nobody
 *     else has it. Reads travel in the log. A backup that goes live carries out again what it has not learnt the end
 *     of; in the same order, so it does no harm.
 */
#include "vmm/lockstep.h"

#include <errno.h>
#include <string.h>

#include "base/report.h"

/* A backup whose own disk takes longer than the primary's holds up the primary in the end. So long it may. */
#define PATIENCE_NS (10 * NS_PER_S)
#define BUSY_RETRY_NS (200 * NS_PER_MS)
#define BROKEN_RETRY_NS (2 * NS_PER_S)

uint8_t *lockstep_disk_data(void *ctx, uint64_t number)
{
    struct lockstep *ls = ctx;

    return disk_data(ls->disk, number);
}

void lockstep_disk_submit(void *ctx, uint64_t number, const struct virtio_blk_request *request)
{
    struct lockstep *ls = ctx;
    bool held = disk_mode_of(ls->disk) == DISK_SHARED && request->operation == VIRTIO_BLK_WRITE;

    disk_submit(ls->disk, number, request, held ? lockstep_hold_output(ls) : 0);
}

void lockstep_disk_finished(void *ctx)
{
    lockstep_wake(ctx);
}

bool lockstep_disk_may_write(void *ctx, uint64_t lsn)
{
    const struct lockstep *ls = ctx;

    if (COUNT_GET(ls->lost_arbitration))
        return false;
    return lockstep_role_now(ls) == ROLE_ALONE || channel_acked_lsn(ls->channel) >= lsn;
}

/* On a primary it is there already. */
static int await_result(struct lockstep *ls, struct disk_result *result)
{
    uint64_t began_ns = clock_now_ns(), now_ns = began_ns;
    struct idle idle = { 0 };

    for (; !disk_result(ls->disk, result); now_ns = clock_now_ns()) {
        if (COUNT_GET(ls->stop_requested) || COUNT_GET(ls->lost_arbitration))
            return -ECANCELED;
        /* With the primary gone nobody waits for us, and nobody else has the guest. */
        if (ls->arbiter != NULL && !COUNT_GET(ls->peer_lost) && now_ns > began_ns + PATIENCE_NS) {
            report_error("this host's disk has not answered for %llu s; this backup ends rather than hold up the guest",
                         (unsigned long long)(PATIENCE_NS / NS_PER_S));
            return -ETIMEDOUT;
        }
        COUNT_SET(ls->beat_ns, now_ns);
        idle_wait(&idle, &ls->options.idle);
    }
    return 0;
}

static int learn(struct lockstep *ls, const struct event_disk *told)
{
    const struct disk_result result = {
        .number = told->number, .digest = told->digest, .status = told->status, .read_bytes = told->bytes
    };

    if (disk_learn(ls->disk, &result, (const uint8_t *)(told + 1)) == 0)
        return 0;
    report_error("the machines differ: at position %llu the primary's disk request %llu ended with %u bytes, which "
                 "fits none here", (unsigned long long)ls->machine.position, (unsigned long long)told->number,
                 told->bytes);
    return -EILSEQ;
}

int lockstep_disk_apply(struct lockstep *ls, const struct channel_record *record)
{
    const struct event_disk *told = record->payload;
    const struct virtio_blk_state *state = &ls->machine.blk.state;
    struct disk_result ours;
    int rc;

    if (told->number != state->completed || told->number == state->submitted) {
        report_error("the machines differ: at position %llu the primary's disk request %llu ended, here %llu of %llu "
                     "have", (unsigned long long)ls->machine.position, (unsigned long long)told->number,
                     (unsigned long long)state->completed, (unsigned long long)state->submitted);
        return -EILSEQ;
    }
    rc = disk_is_passive(ls->disk) ? learn(ls, told) : 0;
    if (rc == 0)
        rc = await_result(ls, &ours);
    if (rc < 0)
        return rc;
    if (told->status == VIRTIO_BLK_OK && ours.status != VIRTIO_BLK_OK) {
        report_error("this host's copy of the disk has failed where the primary's has not: the guest cannot go on from "
                     "here; mend the disk and start the pair anew");
        return -EIO;
    }
    if (told->status == VIRTIO_BLK_OK && told->digest != ours.digest) {
        report_error("the machines differ: at position %llu disk request %llu (sector %llu, %u bytes) has digest "
                     "%016llx here and %016llx at the primary; the two copies of the disk were not equal",
                     (unsigned long long)ls->machine.position, (unsigned long long)told->number,
                     (unsigned long long)state->requests[told->number % VIRTIO_BLK_REQUESTS_MAX].sector,
                     state->requests[told->number % VIRTIO_BLK_REQUESTS_MAX].bytes, (unsigned long long)ours.digest,
                     (unsigned long long)told->digest);
        return -EILSEQ;
    }
    rc = machine_apply_disk(&ls->machine, told->number, told->status, disk_data(ls->disk, told->number));
    disk_consume(ls->disk);
    return rc;
}

int lockstep_disk_forget(struct lockstep *ls)
{
    struct disk_result ignored;
    int rc = 0;

    while (rc == 0 && !disk_is_passive(ls->disk) && disk_under_way(ls->disk) != 0) {
        rc = await_result(ls, &ignored);
        if (rc == 0)
            disk_consume(ls->disk);
    }
    return rc;
}

int lockstep_disk_go_live(struct lockstep *ls)
{
    int rc;

    if (disk_mode_of(ls->disk) == DISK_MIRRORED)
        report_warning("from here on only this host's copy of the disk is up to date");
    while ((rc = disk_activate(ls->disk)) < 0) {
        if (COUNT_GET(ls->stop_requested))
            return -ECANCELED;
        COUNT_SET(ls->beat_ns, clock_now_ns());
        clock_sleep_ns(rc == -EBUSY ? BUSY_RETRY_NS : BROKEN_RETRY_NS);
    }
    return 0;
}
