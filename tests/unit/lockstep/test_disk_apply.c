/* What a DISK record does to a machine: our own disk must agree with it, or the machine must not go on. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"
#include "vmm/lockstep.h"

#define SECTORS 64u

static char image[64];
static struct lockstep *ls;

static void open_disk(enum disk_mode mode, bool passive)
{
    const struct disk_options options = { .path = image, .mode = mode, .passive = passive };
    const struct disk_owner owner = {
        .ctx = ls, .finished = lockstep_disk_finished, .may_write = lockstep_disk_may_write
    };

    assert_int_equal(disk_open(&ls->disk, &options, &owner), 0);
}

static int set_up(void **state)
{
    int fd;

    (void)state;
    strcpy(image, "/tmp/ftvmm-image-XXXXXX");
    fd = mkstemp(image);
    if (fd < 0 || ftruncate(fd, SECTORS * 512) < 0)
        return -1;
    close(fd);
    ls = calloc(1, sizeof(*ls));
    ls->options.idle.sleep_ns = 50 * NS_PER_US;
    atomic_store(&ls->role, ROLE_BACKUP);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    disk_close(ls->disk, true);
    free(ls);
    return unlink(image);
}

/* As if the guest had made it; its driver is not running, so the answer goes nowhere. */
static void request(enum virtio_blk_operation operation, uint64_t sector, uint32_t bytes, uint8_t fill)
{
    struct virtio_blk_state *state = &ls->machine.blk.state;
    struct virtio_blk_request *made = &state->requests[state->submitted % VIRTIO_BLK_REQUESTS_MAX];

    *made = (struct virtio_blk_request){ .operation = (uint8_t)operation, .sector = sector, .bytes = bytes };
    if (operation == VIRTIO_BLK_WRITE)
        memset(lockstep_disk_data(ls, state->submitted), fill, bytes);
    lockstep_disk_submit(ls, state->submitted++, made);
}

static int apply(uint64_t number, uint32_t status, uint64_t digest, const void *data, uint32_t bytes)
{
    static _Alignas(8) uint8_t payload[CHANNEL_PAYLOAD_MAX_BYTES];
    const struct event_disk disk = { .number = number, .digest = digest, .status = status, .bytes = bytes };
    struct channel_record record = { .kind = EVENT_DISK, .bytes = sizeof(disk) + bytes, .payload = payload };

    memcpy(payload, &disk, sizeof(disk));
    if (bytes != 0)
        memcpy(payload + sizeof(disk), data, bytes);
    assert_int_equal(event_check(&record), 0);
    return lockstep_apply(ls, &record);
}

static uint64_t digest_here(void)
{
    struct disk_result result;

    while (!disk_result(ls->disk, &result))
        clock_sleep_ns(20 * NS_PER_US);
    return result.digest;
}

static void a_mirrored_answer_that_agrees_is_applied(void **state)
{
    (void)state;
    open_disk(DISK_MIRRORED, false);
    request(VIRTIO_BLK_WRITE, 3, 512, 0x42);
    request(VIRTIO_BLK_READ, 3, 512, 0);
    request(VIRTIO_BLK_FLUSH, 0, 0, 0);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, digest_here(), NULL, 0), 0);
    assert_int_equal(apply(1, VIRTIO_BLK_OK, digest_here(), NULL, 0), 0);
    assert_int_equal(apply(2, VIRTIO_BLK_OK, 0, NULL, 0), 0); /* waits for its own flush */
    assert_int_equal(ls->machine.blk.state.completed, 3);
    assert_false(disk_result_waiting(ls->disk));
    assert_false(ls->output_pending);
}

static void a_mirrored_answer_with_other_data_stops_the_backup(void **state)
{
    (void)state;
    open_disk(DISK_MIRRORED, false);
    request(VIRTIO_BLK_READ, 3, 512, 0);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, digest_here() ^ 1, NULL, 0), -EILSEQ);
    assert_int_equal(ls->machine.blk.state.completed, 0);
}

static void a_copy_that_fails_alone_stops_the_backup(void **state)
{
    (void)state;
    open_disk(DISK_MIRRORED, false);
    assert_int_equal(truncate(image, 512), 0);
    request(VIRTIO_BLK_READ, 3, 512, 0);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 1, NULL, 0), -EIO);
    assert_int_equal(ls->machine.blk.state.completed, 0);
}

static void an_error_of_the_primarys_copy_is_the_guests_on_both_hosts(void **state)
{
    (void)state;
    open_disk(DISK_MIRRORED, false);
    request(VIRTIO_BLK_READ, 3, 512, 0); /* would succeed here */
    request(VIRTIO_BLK_READ, 4, 512, 0);
    assert_int_equal(apply(0, VIRTIO_BLK_IOERR, 0, NULL, 0), 0);
    assert_int_equal(apply(1, VIRTIO_BLK_OK, digest_here(), NULL, 0), 0);
}

static void an_answer_to_no_request_of_ours_stops_the_backup(void **state)
{
    (void)state;
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 0, NULL, 0), -EILSEQ); /* the guest has no disk at all */
    open_disk(DISK_MIRRORED, false);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 0, NULL, 0), -EILSEQ);
    request(VIRTIO_BLK_FLUSH, 0, 0, 0);
    assert_int_equal(apply(1, VIRTIO_BLK_OK, 0, NULL, 0), -EILSEQ);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 0, NULL, 0), 0);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 0, NULL, 0), -EILSEQ); /* twice */
}

static void a_stop_ends_the_wait_for_our_own_disk(void **state)
{
    (void)state;
    open_disk(DISK_SHARED, false);
    request(VIRTIO_BLK_WRITE, 0, 512, 1);
    atomic_store(&ls->lost_arbitration, true); /* the write is not allowed for ever, so no answer comes */
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 0, NULL, 0), -ECANCELED);
}

static void a_shared_disk_is_learnt_and_only_the_rest_is_done_when_live(void **state)
{
    uint8_t data[512], found[512];
    int fd;

    (void)state;
    open_disk(DISK_SHARED, true);
    request(VIRTIO_BLK_WRITE, 0, 512, 0x10);
    assert_true(ls->output_pending); /* the write is output: the primary's mark must come */
    request(VIRTIO_BLK_READ, 9, 512, 0);
    request(VIRTIO_BLK_WRITE, 1, 512, 0x20);
    memset(data, 0x99, sizeof(data));
    assert_int_equal(apply(0, VIRTIO_BLK_OK, 5, NULL, 0), 0);
    assert_int_equal(apply(1, VIRTIO_BLK_OK, 5, data, 511), -EILSEQ);
    assert_int_equal(apply(1, VIRTIO_BLK_OK, 5, data, 512), 0);
    assert_int_equal(lockstep_disk_data(ls, 1)[511], 0x99);
    assert_int_equal(lockstep_disk_go_live(ls), 0);
    atomic_store(&ls->role, ROLE_ALONE);
    (void)digest_here();
    assert_int_equal(apply(2, VIRTIO_BLK_OK, digest_here(), NULL, 0), 0);
    fd = open(image, O_RDONLY);
    assert_int_equal(pread(fd, found, 512, 0), 512);
    assert_int_equal(found[0], 0); /* the old primary's work */
    assert_int_equal(pread(fd, found, 512, 512), 512);
    assert_int_equal(found[0], 0x20);
    close(fd);
}

/* The machine differs, and is to be replaced: its writes end, and nobody learns of it. The next one numbers as it likes. */
static void what_a_machine_that_differs_has_asked_is_forgotten(void **state)
{
    struct disk_result ignored;

    (void)state;
    open_disk(DISK_MIRRORED, false);
    request(VIRTIO_BLK_WRITE, 3, 512, 0x42);
    assert_int_equal(apply(0, VIRTIO_BLK_OK, digest_here() ^ 1, NULL, 0), -EILSEQ); /* not consumed */
    for (unsigned i = 0; i < 40; i++)
        request(i % 3 == 0 ? VIRTIO_BLK_FLUSH : VIRTIO_BLK_WRITE, i, i % 3 == 0 ? 0 : 512, 0x43);
    assert_int_equal(lockstep_disk_forget(ls), 0);
    assert_int_equal(disk_under_way(ls->disk), 0);
    assert_false(disk_result(ls->disk, &ignored));
    disk_begin_at(ls->disk, 17);
    ls->machine.blk.state.submitted = ls->machine.blk.state.completed = 17; /* as machine_state_load does */
    request(VIRTIO_BLK_READ, 4, 512, 0);
    assert_int_equal(apply(17, VIRTIO_BLK_OK, digest_here(), NULL, 0), 0);
    assert_int_equal(ls->machine.blk.state.completed, 18);
}

static struct channel_options channel_of_pair(void)
{
    static char address[64];

    snprintf(address, sizeof(address), "shm:disk-hold-%d", (int)getpid());
    return (struct channel_options){ .address = address, .ring_bytes = 1 << 20, .join_timeout_ns = 20 * NS_PER_S,
                                     .hello = { .vm = "disk" }, .ack = CHANNEL_ACK_SEEN };
}

static void *open_receiver(void *out)
{
    struct channel_options options = channel_of_pair();

    return channel_open_receiver(out, &options) == 0 ? out : NULL;
}

static uint8_t first_byte(void)
{
    uint8_t byte = 0xFF;
    int fd = open(image, O_RDONLY);

    assert_int_equal(pread(fd, &byte, 1, 0), 1);
    close(fd);
    return byte;
}

static void a_shared_write_reaches_the_file_when_its_log_is_acked(void **state)
{
    struct channel_options options = channel_of_pair();
    struct channel *receiver = NULL;
    struct disk_result result;
    pthread_t thread;
    void *opened;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, open_receiver, &receiver), 0);
    assert_int_equal(channel_open_sender(&ls->channel, &options), 0);
    pthread_join(thread, &opened);
    assert_non_null(opened);
    atomic_store(&ls->role, ROLE_PRIMARY);
    open_disk(DISK_SHARED, false);
    request(VIRTIO_BLK_WRITE, 0, 512, 0x77);
    primary_emulated(ls); /* the mark that it waits for */
    assert_int_equal(COUNT_GET(ls->output_records), 1);
    for (unsigned i = 0; i < 20; i++) {
        (void)channel_poll(ls->channel);
        clock_sleep_ns(2 * NS_PER_MS);
    }
    assert_false(disk_result(ls->disk, &result));
    assert_int_equal(first_byte(), 0);
    for (unsigned i = 0; i < 5000 && !disk_result(ls->disk, &result); i++) {
        (void)channel_poll(receiver); /* sees it, and says so */
        (void)channel_poll(ls->channel);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_true(disk_result(ls->disk, &result));
    assert_int_equal(first_byte(), 0x77);

    /* Who has lost the guest writes no more, although the mark of this position is acked. */
    atomic_store(&ls->lost_arbitration, true);
    request(VIRTIO_BLK_WRITE, 0, 512, 0x88);
    disk_close(ls->disk, true);
    ls->disk = NULL;
    assert_int_equal(first_byte(), 0x77);
    channel_close(ls->channel);
    channel_close(receiver);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_mirrored_answer_that_agrees_is_applied, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_mirrored_answer_with_other_data_stops_the_backup, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_copy_that_fails_alone_stops_the_backup, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_error_of_the_primarys_copy_is_the_guests_on_both_hosts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_answer_to_no_request_of_ours_stops_the_backup, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_stop_ends_the_wait_for_our_own_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_machine_that_differs_has_asked_is_forgotten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shared_write_reaches_the_file_when_its_log_is_acked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shared_disk_is_learnt_and_only_the_rest_is_done_when_live, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
