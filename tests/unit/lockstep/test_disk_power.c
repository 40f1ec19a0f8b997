/*
 * A host that loses its power: of the disk's image only that is left which the host's own disk had been told to make
 * durable. disk.c runs against a file whose writes and syncs pass through here (the linker's --wrap), so that what would be
 * left is known at each moment; and whenever the guest is told the end of a request, all that it has a right to count on
 * must be there. Once a sync fails, and what it was to keep is gone, as Linux does it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"

#include "base/clock.h"
#include "vmm/disk.h"

#define SECTORS  64u
#define REQUESTS 4000u
#define DEPTH    8u
#define LIMIT_NS (60 * NS_PER_S)

static char image[] = "/tmp/ftvmm-power-XXXXXX";
static uint64_t seed;

/* What the host's disk has, by sector: a number that each write has of its own. Disk thread, under the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t cached[SECTORS], durable[SECTORS];
static unsigned syncs, syncs_until_failure; /* 0: none fails */
static bool sync_failed;

ssize_t __real_pwrite64(int fd, const void *data, size_t bytes, off64_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t bytes, off64_t offset);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);

ssize_t __wrap_pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    bool through = (fcntl(fd, F_GETFL) & O_DSYNC) == O_DSYNC;
    ssize_t written = __real_pwrite64(fd, data, bytes, offset);

    pthread_mutex_lock(&lock);
    for (ssize_t at = 0; at < written; at += 512) {
        memcpy(&cached[(offset + at) / 512], (const uint8_t *)data + at, sizeof(cached[0]));
        if (through)
            durable[(offset + at) / 512] = cached[(offset + at) / 512];
    }
    pthread_mutex_unlock(&lock);
    return written;
}

int __wrap_fdatasync(int fd)
{
    bool fails;

    pthread_mutex_lock(&lock);
    fails = syncs_until_failure != 0 && ++syncs == syncs_until_failure;
    sync_failed = sync_failed || fails;
    if (!fails && !sync_failed) /* what a failed one lost no later one brings back */
        memcpy(durable, cached, sizeof(durable));
    pthread_mutex_unlock(&lock);
    errno = EIO;
    return fails ? -1 : __real_fdatasync(fd);
}

static uint64_t random_number(void)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return seed >> 33;
}

static void finished(void *ctx)
{
    (void)ctx;
}

static bool may_write(void *ctx, uint64_t lsn)
{
    (void)ctx;
    (void)lsn;
    return true;
}

static struct disk *open_disk(enum disk_mode mode)
{
    const struct disk_options options = { .path = image, .mode = mode };
    const struct disk_owner owner = { .finished = finished, .may_write = may_write };
    struct disk *disk;

    memset(cached, 0, sizeof(cached));
    memset(durable, 0, sizeof(durable));
    syncs = syncs_until_failure = 0;
    sync_failed = false;
    assert_int_equal(truncate(image, 0), 0);
    assert_int_equal(truncate(image, SECTORS * 512), 0);
    assert_int_equal(disk_open(&disk, &options, &owner), 0);
    return disk;
}

/* A guest: its requests, and per sector the newest write that it knows to be on disk. */
static struct virtio_blk_request requests[DEPTH];
static uint64_t ended_write[SECTORS], promised[SECTORS];
static uint64_t promised_by_flush[DEPTH][SECTORS]; /* writes that had ended when the flush was asked for */

static void ask(struct disk *disk, uint64_t number, unsigned reads, unsigned durables)
{
    struct virtio_blk_request *request = &requests[number % DEPTH];
    uint64_t dice = random_number();

    *request = (struct virtio_blk_request){ .operation = dice % 8 == 0 ? VIRTIO_BLK_FLUSH
                                                         : dice % 8 <= reads ? VIRTIO_BLK_READ : VIRTIO_BLK_WRITE };
    if (request->operation == VIRTIO_BLK_FLUSH) {
        memcpy(promised_by_flush[number % DEPTH], ended_write, sizeof(ended_write));
    } else {
        request->bytes = 512 * (1 + (uint32_t)(random_number() % 4));
        request->sector = random_number() % (SECTORS - 4);
        request->durable = request->operation == VIRTIO_BLK_WRITE && random_number() % 8 < durables;
    }
    if (request->operation == VIRTIO_BLK_WRITE)
        for (uint32_t at = 0; at < request->bytes; at += 512) {
            uint64_t name = number + 1;

            memcpy(disk_data(disk, number) + at, &name, sizeof(name));
        }
    disk_submit(disk, number, request, 0);
}

/* The power goes now: is there what the guest counts on? Writes are carried out in their order, so newer is as good. */
static void nothing_promised_is_lost(uint64_t number)
{
    uint64_t left[SECTORS];

    pthread_mutex_lock(&lock);
    memcpy(left, durable, sizeof(left));
    pthread_mutex_unlock(&lock);
    for (unsigned sector = 0; sector < SECTORS; sector++)
        if (left[sector] < promised[sector])
            fail_msg("request %llu has ended; sector %u has write %llu on disk, and the guest was told of %llu",
                     (unsigned long long)number, sector, (unsigned long long)left[sector],
                     (unsigned long long)promised[sector]);
}

static void hear(const struct disk_result *result, enum disk_mode mode)
{
    const struct virtio_blk_request *request = &requests[result->number % DEPTH];

    if (result->status != VIRTIO_BLK_OK)
        return; /* nothing is promised */
    if (request->operation == VIRTIO_BLK_FLUSH)
        for (unsigned sector = 0; sector < SECTORS; sector++)
            if (promised[sector] < promised_by_flush[result->number % DEPTH][sector])
                promised[sector] = promised_by_flush[result->number % DEPTH][sector];
    if (request->operation == VIRTIO_BLK_WRITE)
        for (uint32_t at = 0; at < request->bytes; at += 512) {
            ended_write[request->sector + at / 512] = result->number + 1;
            if (request->durable || mode == DISK_SHARED)
                promised[request->sector + at / 512] = result->number + 1;
        }
    nothing_promised_is_lost(result->number);
}

static unsigned run(enum disk_mode mode, unsigned fail_at, unsigned durables)
{
    struct disk *disk = open_disk(mode);
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS, asked = 0, heard = 0;
    unsigned errors = 0;

    syncs_until_failure = fail_at;
    memset(ended_write, 0, sizeof(ended_write));
    memset(promised, 0, sizeof(promised));
    while (heard < REQUESTS) {
        struct disk_result result;

        if (asked < REQUESTS && asked - heard < DEPTH && random_number() % 3 != 0) {
            ask(disk, asked++, 1, durables);
        } else if (disk_result(disk, &result)) {
            hear(&result, mode);
            errors += result.status != VIRTIO_BLK_OK;
            disk_consume(disk);
            heard++;
        } else {
            assert_true(clock_now_ns() < limit_ns);
        }
    }
    disk_close(disk, false);
    return errors;
}

static void power_loss_leaves_what_a_flush_has_promised(void **state)
{
    (void)state;
    assert_int_equal(run(DISK_MIRRORED, 0, 0), 0);
    for (unsigned sector = 0; sector < SECTORS; sector++) /* closing makes the rest durable */
        assert_int_equal(durable[sector], cached[sector]);
}

static void power_loss_leaves_what_a_driver_without_flushes_has_written(void **state)
{
    (void)state;
    assert_int_equal(run(DISK_MIRRORED, 0, 4), 0);
}

static void power_loss_leaves_each_write_of_a_shared_disk(void **state)
{
    (void)state;
    assert_int_equal(run(DISK_SHARED, 0, 0), 0);
}

static void a_flush_that_failed_makes_no_later_one_lie(void **state)
{
    (void)state;
    assert_true(run(DISK_MIRRORED, 20, 0) > REQUESTS / 16); /* that one, and each after it */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_loss_leaves_what_a_flush_has_promised),
        cmocka_unit_test(power_loss_leaves_what_a_driver_without_flushes_has_written),
        cmocka_unit_test(power_loss_leaves_each_write_of_a_shared_disk),
        cmocka_unit_test(a_flush_that_failed_makes_no_later_one_lie),
    };
    const char *given = getenv("FTVMM_TEST_SEED");
    int fd = mkstemp(image), failed;

    seed = given != NULL ? strtoull(given, NULL, 0) : clock_now_ns();
    printf("seed %llu\n", (unsigned long long)seed);
    if (fd < 0)
        return 1;
    close(fd);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(image);
    return failed;
}
