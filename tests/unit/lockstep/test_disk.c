/* The disk's file: what is refused, the order of requests, errors, held writes, and a disk that only learns. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"

#include "base/clock.h"
#include "vmm/disk.h"

#define SECTORS   256u
#define STRESS    20000u
#define LIMIT_NS  (20 * NS_PER_S)

static char directory[64], image[96];
static _Atomic uint64_t told, allowed_lsn;

static void note_finished(void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&told, 1);
}

static bool allow_write(void *ctx, uint64_t lsn)
{
    (void)ctx;
    return lsn <= atomic_load(&allowed_lsn);
}

static int open_image(struct disk **disk, enum disk_mode mode, bool readonly, bool passive)
{
    const struct disk_options options = { .path = image, .mode = mode, .readonly = readonly, .passive = passive };
    const struct disk_owner owner = { .finished = note_finished, .may_write = allow_write };

    return disk_open(disk, &options, &owner);
}

static struct disk *must_open(void)
{
    struct disk *disk;

    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), 0);
    return disk;
}

static void image_of(size_t bytes)
{
    int fd = open(image, O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    close(fd);
}

static void image_put(const void *bytes, size_t count, off_t at)
{
    int fd = open(image, O_WRONLY);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, count, at), count);
    close(fd);
}

static uint8_t image_byte(off_t at)
{
    int fd = open(image, O_RDONLY);
    uint8_t byte;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    close(fd);
    return byte;
}

static int set_up(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/ftvmm-disk-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(image, sizeof(image), "%s/image", directory);
    image_of(SECTORS * 512);
    atomic_store(&allowed_lsn, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(image);
    return rmdir(directory);
}

static void submit(struct disk *disk, uint64_t number, enum virtio_blk_operation operation, uint64_t sector,
                   uint32_t bytes, uint8_t fill, uint64_t hold_lsn)
{
    struct virtio_blk_request request = { .operation = (uint8_t)operation, .sector = sector, .bytes = bytes };

    if (operation == VIRTIO_BLK_WRITE)
        memset(disk_data(disk, number), fill, bytes);
    disk_submit(disk, number, &request, hold_lsn);
}

static struct disk_result await(struct disk *disk)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;
    struct disk_result result;

    while (!disk_result(disk, &result)) {
        assert_true(clock_now_ns() < limit_ns);
        clock_sleep_ns(20 * NS_PER_US);
    }
    return result;
}

static void images_that_cannot_be_a_disk_are_refused(void **state)
{
    struct disk *disk;

    (void)state;
    image_of(0);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), -EINVAL);
    assert_null(disk);
    image_of(511);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), -EINVAL);
    image_of(512 * 3 + 1);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), -EINVAL);
    unlink(image);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), -ENOENT);
    assert_int_equal(mkfifo(image, 0600), 0);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), -EINVAL);
    unlink(image);
    assert_int_equal(mkdir(image, 0700), 0);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), -EISDIR);
    assert_int_equal(open_image(&disk, DISK_MIRRORED, true, false), -EINVAL);
    rmdir(image);
    image_of(512);
}

static void an_image_of_another_format_is_refused_unless_it_is_said_to_be_raw(void **state)
{
    static const char *const begins[] = { "QFI\xfb\0\0\0\3", "KDMV\1\0\0\0", "vhdxfile", "QFI\xfa\0\0\0\3" };
    const struct disk_options raw = { .path = image, .raw = true };
    const struct disk_owner owner = { .finished = note_finished, .may_write = allow_write };
    struct disk *disk;

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        image_of(SECTORS * 512);
        image_put(begins[i], 8, 0);
        assert_int_equal(open_image(&disk, DISK_MIRRORED, false, false), i < 3 ? -EINVAL : 0);
        disk_close(disk, false);
        assert_int_equal(disk_open(&disk, &raw, &owner), 0);
        disk_close(disk, false);
    }
}

static void an_image_has_one_writer_or_many_readers(void **state)
{
    struct disk *first, *second;

    (void)state;
    first = must_open();
    assert_int_equal(open_image(&second, DISK_MIRRORED, false, false), -EBUSY);
    assert_int_equal(open_image(&second, DISK_MIRRORED, true, false), -EBUSY);
    disk_close(first, false);
    assert_int_equal(open_image(&first, DISK_MIRRORED, true, false), 0);
    assert_int_equal(open_image(&second, DISK_MIRRORED, true, false), 0);
    disk_close(second, false);
    assert_int_equal(open_image(&second, DISK_MIRRORED, false, false), -EBUSY);
    disk_close(first, false);
}

static void requests_are_carried_out_in_their_order(void **state)
{
    struct disk *disk = must_open();
    uint64_t told_before = atomic_load(&told), digest;
    struct disk_result result;

    (void)state;
    assert_int_equal(disk_sectors(disk), SECTORS);
    submit(disk, 0, VIRTIO_BLK_WRITE, 5, 1024, 0xA1, 0);
    submit(disk, 1, VIRTIO_BLK_READ, 6, 512, 0, 0);
    submit(disk, 2, VIRTIO_BLK_WRITE, 6, 512, 0xB2, 0);
    submit(disk, 3, VIRTIO_BLK_FLUSH, 0, 0, 0, 0);
    submit(disk, 4, VIRTIO_BLK_READ, 6, 512, 0, 0);
    for (uint64_t number = 0; number < 5; number++) {
        result = await(disk);
        assert_int_equal(result.number, number);
        assert_int_equal(result.status, VIRTIO_BLK_OK);
        assert_int_equal(result.read_bytes, number == 1 || number == 4 ? 512 : 0);
        if (number == 1)
            assert_int_equal(disk_data(disk, 1)[511], 0xA1);
        if (number == 2)
            digest = result.digest;
        if (number == 3)
            assert_true(result.digest == 0);
        if (number == 4) {
            assert_int_equal(disk_data(disk, 4)[0], 0xB2);
            assert_true(result.digest == digest); /* what was read is what was written */
        }
        disk_consume(disk);
    }
    assert_false(disk_result_waiting(disk));
    assert_int_equal(atomic_load(&told) - told_before, 5);
    disk_close(disk, false);
    assert_int_equal(image_byte(5 * 512), 0xA1);
    assert_int_equal(image_byte(6 * 512), 0xB2);
}

static void an_image_that_was_cut_is_an_error_of_the_request(void **state)
{
    struct disk *disk = must_open();

    (void)state;
    assert_int_equal(truncate(image, 100 * 512), 0);
    submit(disk, 0, VIRTIO_BLK_READ, 99, 1024, 0, 0);
    submit(disk, 1, VIRTIO_BLK_READ, 99, 512, 0, 0);
    assert_int_equal(await(disk).status, VIRTIO_BLK_IOERR);
    assert_true(await(disk).digest == 0);
    assert_int_equal(await(disk).read_bytes, 0);
    disk_consume(disk);
    assert_int_equal(await(disk).status, VIRTIO_BLK_OK);
    disk_consume(disk);
    disk_close(disk, false);
}

static void a_write_that_the_host_refuses_is_an_error_of_the_request(void **state)
{
    struct rlimit limit, before;
    struct disk *disk = must_open();
    struct disk_statistics statistics;

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = (struct rlimit){ .rlim_cur = 100 * 512, .rlim_max = before.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    submit(disk, 0, VIRTIO_BLK_WRITE, 100, 512, 1, 0);
    submit(disk, 1, VIRTIO_BLK_WRITE, 0, 512, 2, 0);
    assert_int_equal(await(disk).status, VIRTIO_BLK_IOERR);
    disk_consume(disk);
    assert_int_equal(await(disk).status, VIRTIO_BLK_OK);
    disk_consume(disk);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    disk_get_statistics(disk, &statistics);
    assert_int_equal(statistics.errors, 1);
    disk_close(disk, false);
    assert_int_equal(image_byte(100 * 512), 0);
    assert_int_equal(image_byte(0), 2);
}

static uint64_t identity_of(enum disk_mode mode)
{
    struct disk *disk;
    uint64_t identity;

    assert_int_equal(open_image(&disk, mode, false, false), 0);
    assert_int_equal(disk_identify(disk, &identity), 0);
    disk_close(disk, false);
    return identity;
}

static void identity_tells_contents_apart_and_not_how_they_are_stored(void **state)
{
    size_t bytes = (5u << 20) + 512; /* more than one read, and an odd end */
    uint8_t block[4096], zero[4096] = { 0 };
    uint64_t sparse, empty, swapped;

    (void)state;
    image_of(bytes);
    empty = identity_of(DISK_MIRRORED);
    memset(block, 0x5A, sizeof(block));
    image_put(block, sizeof(block), 3 << 20);
    sparse = identity_of(DISK_MIRRORED);
    assert_true(sparse != empty);
    for (off_t at = 0; at < 1 << 20; at += sizeof(zero))
        image_put(zero, sizeof(zero), at); /* zeroes where there was a hole */
    assert_true(identity_of(DISK_MIRRORED) == sparse);
    image_put("x", 1, (off_t)bytes - 1);
    assert_true(identity_of(DISK_MIRRORED) != sparse);
    image_put(zero, 1, (off_t)bytes - 1);
    assert_true(identity_of(DISK_MIRRORED) == sparse);
    image_put(zero, sizeof(zero), 3 << 20);
    image_put(block, sizeof(block), 4096); /* the same block elsewhere */
    swapped = identity_of(DISK_MIRRORED);
    assert_true(swapped != sparse && swapped != empty);
}

static void shared_identity_is_the_file(void **state)
{
    uint64_t before = identity_of(DISK_SHARED);
    char moved[128];

    (void)state;
    image_put("x", 1, 0);
    assert_true(identity_of(DISK_SHARED) == before);
    snprintf(moved, sizeof(moved), "%s.old", image);
    assert_int_equal(rename(image, moved), 0);
    image_of(SECTORS * 512);
    assert_true(identity_of(DISK_SHARED) != before);
    unlink(moved);
}

static void a_held_write_waits_and_so_does_what_follows_it(void **state)
{
    struct disk *disk = must_open();

    (void)state;
    submit(disk, 0, VIRTIO_BLK_WRITE, 0, 512, 0x11, 7);
    submit(disk, 1, VIRTIO_BLK_READ, 0, 512, 0, 0);
    clock_sleep_ns(30 * NS_PER_MS);
    assert_false(disk_result_waiting(disk));
    assert_int_equal(image_byte(0), 0);
    atomic_store(&allowed_lsn, 6);
    clock_sleep_ns(30 * NS_PER_MS);
    assert_false(disk_result_waiting(disk));
    atomic_store(&allowed_lsn, 7);
    assert_int_equal(await(disk).number, 0);
    disk_consume(disk);
    assert_int_equal(await(disk).number, 1);
    assert_int_equal(disk_data(disk, 1)[0], 0x11);
    disk_consume(disk);
    disk_close(disk, false);
}

static void closing_carries_out_what_is_allowed_and_nothing_else(void **state)
{
    struct disk *disk = must_open();

    (void)state;
    for (uint64_t number = 0; number < 32; number++)
        submit(disk, number, VIRTIO_BLK_WRITE, number, 512, 0x22, 0);
    submit(disk, 32, VIRTIO_BLK_WRITE, 32, 512, 0x22, 1); /* nobody will ever allow it */
    submit(disk, 33, VIRTIO_BLK_WRITE, 33, 512, 0x22, 0);
    disk_close(disk, false);
    for (uint64_t number = 0; number < 34; number++)
        assert_int_equal(image_byte((off_t)number * 512), number < 32 ? 0x22 : 0);
    disk = must_open();
    submit(disk, 0, VIRTIO_BLK_WRITE, 40, 512, 0x33, 1);
    disk_close(disk, true);
    assert_int_equal(image_byte(40 * 512), 0);
}

static void a_passive_disk_learns_until_activated_and_then_does_the_rest_again(void **state)
{
    uint8_t data[512];
    struct disk_result result = { .number = 0 };
    struct disk *live = must_open(), *passive;

    (void)state;
    assert_int_equal(open_image(&passive, DISK_SHARED, false, true), 0); /* although the other has it locked */
    assert_true(disk_is_passive(passive));
    submit(passive, 0, VIRTIO_BLK_WRITE, 0, 512, 0x44, 0);
    submit(passive, 1, VIRTIO_BLK_READ, 1, 512, 0, 0);
    submit(passive, 2, VIRTIO_BLK_WRITE, 2, 512, 0x55, 0);
    submit(passive, 3, VIRTIO_BLK_READ, 2, 512, 0, 0);
    clock_sleep_ns(10 * NS_PER_MS);
    assert_false(disk_result_waiting(passive));
    /* What cannot be: another number, data for a write, a read with fewer. */
    result = (struct disk_result){ .number = 1 };
    assert_int_equal(disk_learn(passive, &result, data), -EPROTO);
    result = (struct disk_result){ .number = 0, .read_bytes = 512 };
    assert_int_equal(disk_learn(passive, &result, data), -EPROTO);
    result = (struct disk_result){ .number = 0 };
    assert_int_equal(disk_learn(passive, &result, data), 0);
    disk_consume(passive);
    result = (struct disk_result){ .number = 1, .read_bytes = 100 };
    assert_int_equal(disk_learn(passive, &result, data), -EPROTO);
    memset(data, 0x66, sizeof(data));
    result.read_bytes = 512;
    assert_int_equal(disk_learn(passive, &result, data), 0);
    assert_true(disk_result(passive, &result));
    assert_int_equal(disk_data(passive, 1)[511], 0x66);
    disk_consume(passive);

    assert_int_equal(disk_activate(passive), -EBUSY);
    assert_true(disk_is_passive(passive));
    disk_close(live, false);
    assert_int_equal(disk_activate(passive), 0);
    assert_int_equal(await(passive).number, 2);
    disk_consume(passive);
    assert_int_equal(await(passive).number, 3);
    assert_int_equal(disk_data(passive, 3)[0], 0x55);
    disk_consume(passive);
    disk_close(passive, false);
    assert_int_equal(image_byte(0), 0); /* learnt, not done */
    assert_int_equal(image_byte(2 * 512), 0x55);
}

/* Both threads at full speed; under ThreadSanitizer this is the test of the ring's order. */
static void many_requests_in_flight_find_what_was_written_before_them(void **state)
{
    uint64_t random = test_seed(__func__), submitted = 0, limit_ns = clock_now_ns() + LIMIT_NS * 4;
    uint8_t last[SECTORS] = { 0 }, expected[VIRTIO_BLK_REQUESTS_MAX] = { 0 };
    struct disk *disk = must_open();
    struct disk_result result;

    (void)state;
    for (uint64_t consumed = 0; consumed < STRESS; consumed++) {
        while (submitted < STRESS && submitted - consumed < VIRTIO_BLK_REQUESTS_MAX && test_random(&random) % 8) {
            uint64_t bits = test_random(&random), sector = bits % 16;
            bool write = bits >> 32 & 1;

            if (write)
                last[sector] = (uint8_t)(bits >> 40);
            expected[submitted % VIRTIO_BLK_REQUESTS_MAX] = last[sector];
            submit(disk, submitted++, write ? VIRTIO_BLK_WRITE : VIRTIO_BLK_READ, sector, 512, last[sector], 0);
        }
        if (submitted == consumed) {
            expected[submitted % VIRTIO_BLK_REQUESTS_MAX] = 0;
            submit(disk, submitted++, VIRTIO_BLK_READ, 200, 512, 0, 0);
        }
        while (!disk_result(disk, &result))
            assert_true(clock_now_ns() < limit_ns);
        assert_int_equal(result.number, consumed);
        assert_int_equal(result.status, VIRTIO_BLK_OK);
        assert_int_equal(disk_data(disk, consumed)[300], expected[consumed % VIRTIO_BLK_REQUESTS_MAX]);
        disk_consume(disk);
    }
    disk_close(disk, false);
}

#define COPY_BLOCKS 41u /* and a part of one */
#define COPY_BYTES  (COPY_BLOCKS * DISK_BLOCK_BYTES + 5 * 512)

struct copier {
    struct disk *from, *to;
    _Atomic bool writing;
    unsigned blocks, zero;
};

/* One round after the other, as long as somebody writes, and a last one. */
static void *copy_rounds(void *arg)
{
    static uint8_t data[DISK_BLOCK_BYTES];
    struct copier *copier = arg;
    bool last;

    do {
        uint64_t block = 0, offset;
        uint32_t bytes;
        bool zero;

        last = !atomic_load(&copier->writing);
        while (disk_copy(copier->from, &block, data, &offset, &bytes, &zero) == 1) {
            if (disk_put(copier->to, offset, zero ? NULL : data, bytes) != 0)
                return copier;
            copier->blocks++;
            copier->zero += zero;
        }
    } while (!last);
    return NULL;
}

/* The other image is full of something else, and has to become the same while this one is written. */
static void a_copy_is_equal_though_the_disk_is_written_meanwhile(void **state)
{
    char other[128];
    const struct disk_options options = { .path = other };
    const struct disk_owner owner = { .finished = note_finished, .may_write = allow_write };
    struct copier copier = { .writing = true };
    uint64_t random = 77, identities[2], waiting = 0, consumed = 0;
    uint8_t *noise = malloc(COPY_BYTES);
    pthread_t thread;
    void *failed;
    FILE *file;

    (void)state;
    image_of(COPY_BYTES);
    snprintf(other, sizeof(other), "%s/other", directory);
    memset(noise, 0x99, COPY_BYTES);
    file = fopen(other, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(noise, 1, COPY_BYTES, file), COPY_BYTES);
    fclose(file);
    copier.from = must_open();
    assert_int_equal(disk_open(&copier.to, &options, &owner), 0);
    assert_int_equal(disk_uncopied(copier.from), 0);
    assert_int_equal(disk_track(copier.from, true), 0);
    assert_int_equal(disk_uncopied(copier.from), COPY_BLOCKS + 1);
    assert_int_equal(pthread_create(&thread, NULL, copy_rounds, &copier), 0);
    for (uint64_t number = 0; number < 5000; number++) {
        uint64_t sector = test_random(&random) % (COPY_BYTES / 512 - 8);

        submit(copier.from, number, VIRTIO_BLK_WRITE, sector, 512 * (1 + (uint32_t)(test_random(&random) % 8)),
               (uint8_t)test_random(&random), 0);
        for (waiting++; waiting > 32; waiting--, consumed++) {
            assert_int_equal(await(copier.from).number, consumed);
            disk_consume(copier.from);
        }
    }
    for (; waiting > 0; waiting--) {
        (void)await(copier.from);
        disk_consume(copier.from);
    }
    atomic_store(&copier.writing, false);
    pthread_join(thread, &failed);
    assert_null(failed);
    assert_int_equal(disk_uncopied(copier.from), 0);
    assert_int_equal(disk_settle(copier.to), 0);
    assert_int_equal(disk_identify(copier.from, &identities[0]), 0);
    assert_int_equal(disk_identify(copier.to, &identities[1]), 0);
    assert_true(identities[0] == identities[1]);
    assert_true(copier.blocks > COPY_BLOCKS + 1);
    print_message("%u blocks copied, %u of them zeroes\n", copier.blocks, copier.zero);
    /* Requests go on there under the numbers that come next. */
    disk_begin_at(copier.to, 5000);
    submit(copier.to, 5000, VIRTIO_BLK_READ, 0, 512, 0, 0);
    assert_int_equal(await(copier.to).number, 5000);
    assert_int_equal(disk_put(copier.to, COPY_BYTES - 512, NULL, 1024), -EBADMSG);
    disk_close(copier.from, false);
    disk_close(copier.to, false);
    unlink(other);
    free(noise);
}

#define STRETCH_BYTES ((uint64_t)DISK_STRETCH_SHARES * DISK_SHARE_BYTES)

/* Each share of it by itself: zeroes or holes make no difference, a byte does, and only there. */
static void digests_tell_which_shares_differ(void **state)
{
    const size_t bytes = STRETCH_BYTES + 2 * DISK_SHARE_BYTES + 5 * 512;
    uint64_t random = test_seed(__func__), before[2][DISK_STRETCH_SHARES], now[DISK_STRETCH_SHARES];
    uint8_t zeroes[4096] = { 0 };
    struct disk *disk;

    (void)state;
    image_of(bytes);
    for (unsigned i = 0; i < 100; i++)
        image_put(&(uint8_t){ (uint8_t)(1 + i) }, 1, (off_t)(test_random(&random) % bytes));
    disk = must_open();
    assert_int_equal(disk_stretches(disk), 2);
    for (unsigned stretch = 0; stretch < 2; stretch++)
        assert_int_equal(disk_digest(disk, stretch, before[stretch]), 0);
    for (unsigned share = 3; share < DISK_STRETCH_SHARES; share++)
        assert_true(before[1][share] == 0);
    for (unsigned i = 0; i < 40; i++) {
        off_t at = i == 0 ? (off_t)bytes - 1 : (off_t)(test_random(&random) % bytes);
        uint8_t byte = image_byte(at), other = (uint8_t)(byte + 1 + test_random(&random) % 255);
        uint64_t stretch = (uint64_t)at / STRETCH_BYTES, share = (uint64_t)at % STRETCH_BYTES / DISK_SHARE_BYTES;

        image_put(&other, 1, at);
        assert_int_equal(disk_digest(disk, stretch, now), 0);
        for (unsigned j = 0; j < DISK_STRETCH_SHARES; j++)
            assert_true((now[j] != before[stretch][j]) == (j == share));
        image_put(&byte, 1, at);
        assert_int_equal(disk_digest(disk, stretch, now), 0);
        assert_memory_equal(now, before[stretch], sizeof(now));
    }
    for (off_t at = 0; at < (off_t)bytes - 4096; at += 4096) /* zeroes for holes */
        if (image_byte(at + (off_t)(test_random(&random) % 4096)) == 0) {
            uint8_t held[4096];
            int fd = open(image, O_RDONLY);

            assert_int_equal(pread(fd, held, sizeof(held), at), sizeof(held));
            close(fd);
            if (memcmp(held, zeroes, sizeof(held)) == 0)
                image_put(zeroes, sizeof(zeroes), at);
        }
    for (unsigned stretch = 0; stretch < 2; stretch++) {
        assert_int_equal(disk_digest(disk, stretch, now), 0);
        assert_memory_equal(now, before[stretch], sizeof(now));
    }
    disk_close(disk, false);
}

static void an_image_that_was_cut_has_no_digests_and_is_made_as_long_again(void **state)
{
    const size_t bytes = STRETCH_BYTES + 3 * DISK_SHARE_BYTES;
    uint64_t digests[DISK_STRETCH_SHARES];
    struct disk *disk;

    (void)state;
    image_of(bytes);
    disk = must_open();
    for (size_t cut = 512; cut < 2 * DISK_SHARE_BYTES; cut += DISK_SHARE_BYTES - 512) {
        assert_int_equal(truncate(image, (off_t)(bytes - cut)), 0);
        assert_int_equal(disk_digest(disk, 1, digests), -EIO);
        assert_int_equal(disk_digest(disk, 0, digests), 0);
    }
    assert_int_equal(disk_put(disk, bytes - DISK_BLOCK_BYTES, NULL, DISK_BLOCK_BYTES), 0);
    assert_int_equal(disk_settle(disk), 0);
    assert_int_equal(disk_digest(disk, 1, digests), 0);
    disk_close(disk, false);
}

static void shares_that_are_marked_are_to_be_copied(void **state)
{
    static uint8_t data[DISK_BLOCK_BYTES];
    struct disk *disk;
    uint64_t block = 0, offset;
    uint32_t bytes;
    bool zero;

    (void)state;
    image_of(STRETCH_BYTES + DISK_SHARE_BYTES + 5 * 512);
    disk = must_open();
    assert_int_equal(disk_track(disk, true), 0);
    assert_int_equal(disk_track(disk, false), 0); /* all over again */
    assert_int_equal(disk_uncopied(disk), 0);
    assert_true(disk_shares_bytes(disk, 0, UINT32_MAX) == STRETCH_BYTES);
    assert_int_equal(disk_shares_bytes(disk, 1, UINT32_MAX), DISK_SHARE_BYTES + 5 * 512);
    assert_int_equal(disk_shares_bytes(disk, 1, 2), 5 * 512);
    disk_mark_shares(disk, 0, 1u << 31);
    disk_mark_shares(disk, 1, 0xFFFFFFFE);
    assert_int_equal(disk_uncopied(disk), DISK_SHARE_BYTES / DISK_BLOCK_BYTES + 1);
    for (unsigned i = 0; i < DISK_SHARE_BYTES / DISK_BLOCK_BYTES; i++) {
        assert_int_equal(disk_copy(disk, &block, data, &offset, &bytes, &zero), 1);
        assert_true(offset == STRETCH_BYTES - DISK_SHARE_BYTES + (uint64_t)i * DISK_BLOCK_BYTES && bytes == DISK_BLOCK_BYTES);
    }
    assert_int_equal(disk_copy(disk, &block, data, &offset, &bytes, &zero), 1);
    assert_true(offset == STRETCH_BYTES + DISK_SHARE_BYTES && bytes == 5 * 512 && zero);
    disk_mark(disk, offset, bytes); /* it could not be sent */
    assert_int_equal(disk_uncopied(disk), 1);
    disk_untrack(disk);
    assert_int_equal(disk_uncopied(disk), 0);
    disk_close(disk, false);
}

/* Another machine takes the place of the one that asked: its numbers may be lower, or higher. */
static void requests_are_numbered_as_the_machine_that_has_come_numbers_them(void **state)
{
    static const uint64_t begins[] = { 3, 1000, 65, 64, 0 };
    struct disk *disk = must_open();
    struct disk_result result;

    (void)state;
    for (uint64_t number = 0; number < 10; number++) {
        submit(disk, number, VIRTIO_BLK_WRITE, number, 512, 0x10, 0);
        (void)await(disk);
        disk_consume(disk);
    }
    for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]); i++) {
        disk_begin_at(disk, begins[i]);
        assert_int_equal(disk_under_way(disk), 0);
        for (uint64_t number = begins[i]; number < begins[i] + 100; number++) {
            submit(disk, number, VIRTIO_BLK_WRITE, number % SECTORS, 512, (uint8_t)(number + i), 0);
            result = await(disk);
            assert_true(result.number == number);
            assert_int_equal(disk_data(disk, number)[17], (uint8_t)(number + i));
            disk_consume(disk);
        }
    }
    disk_close(disk, false);
}

/* Nothing of what a passive disk holds for a machine that has gone is ever carried out. */
static void a_passive_disk_drops_the_requests_of_a_machine_that_has_gone(void **state)
{
    struct disk_result result = { .number = 70 };
    struct disk *passive;

    (void)state;
    assert_int_equal(open_image(&passive, DISK_SHARED, false, true), 0);
    submit(passive, 0, VIRTIO_BLK_WRITE, 0, 512, 0x71, 0);
    submit(passive, 1, VIRTIO_BLK_WRITE, 1, 512, 0x72, 0);
    disk_begin_at(passive, 70);
    assert_int_equal(disk_under_way(passive), 0);
    submit(passive, 70, VIRTIO_BLK_WRITE, 2, 512, 0x73, 0);
    submit(passive, 71, VIRTIO_BLK_WRITE, 3, 512, 0x74, 0);
    assert_int_equal(disk_learn(passive, &result, NULL), 0);
    assert_int_equal(await(passive).number, 70);
    disk_consume(passive);
    assert_int_equal(disk_activate(passive), 0);
    assert_int_equal(await(passive).number, 71);
    disk_consume(passive);
    disk_close(passive, false);
    for (off_t sector = 0; sector < 4; sector++)
        assert_int_equal(image_byte(512 * sector), sector == 3 ? 0x74 : 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(images_that_cannot_be_a_disk_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_image_of_another_format_is_refused_unless_it_is_said_to_be_raw, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_image_has_one_writer_or_many_readers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(requests_are_carried_out_in_their_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_image_that_was_cut_is_an_error_of_the_request, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_write_that_the_host_refuses_is_an_error_of_the_request, set_up, tear_down),
        cmocka_unit_test_setup_teardown(identity_tells_contents_apart_and_not_how_they_are_stored, set_up, tear_down),
        cmocka_unit_test_setup_teardown(shared_identity_is_the_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_held_write_waits_and_so_does_what_follows_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(closing_carries_out_what_is_allowed_and_nothing_else, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_passive_disk_learns_until_activated_and_then_does_the_rest_again, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_copy_is_equal_though_the_disk_is_written_meanwhile, set_up, tear_down),
        cmocka_unit_test_setup_teardown(digests_tell_which_shares_differ, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_image_that_was_cut_has_no_digests_and_is_made_as_long_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(shares_that_are_marked_are_to_be_copied, set_up, tear_down),
        cmocka_unit_test_setup_teardown(requests_are_numbered_as_the_machine_that_has_come_numbers_them, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_passive_disk_drops_the_requests_of_a_machine_that_has_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(many_requests_in_flight_find_what_was_written_before_them, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
