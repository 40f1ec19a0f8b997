/* The disk as a driver sees it: probe, requests and their answers, and a hostile guest. */
#include "virtio_driver.h"

#include <errno.h>

#define FEATURES                                                                                                       \
    (UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_BLK_F_SEG_MAX | UINT64_C(1) << VIRTIO_BLK_F_FLUSH |     \
     UINT64_C(1) << VIRTIO_BLK_F_SIZE_MAX | UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC)

/* Where a request's parts lie; each slot of these has its own. */
#define HEADER_GPA(n) (0x10000 + (n) * 64u)
#define STATUS_GPA(n) (0x10000 + (n) * 64u + 32)
#define DATA_GPA      0x14000u
#define UNTOUCHED     0xEE /* a status byte that nobody has written */

static void begin(struct machine *machine, struct driver *driver, uint64_t features, bool readonly)
{
    machine_init(machine);
    machine_add_disk(machine, readonly);
    driver_probe(driver, machine);
    driver_start(driver, features);
}

/* A reset, and a driver that begins anew with empty rings. */
static void restart(struct driver *driver, uint64_t features)
{
    memset(ram(driver, driver->requests.avail_gpa), 0, 4);
    memset(ram(driver, driver->requests.used_gpa), 0, 4);
    driver_start(driver, features);
}

static void put_header(struct driver *driver, unsigned n, uint32_t type, uint64_t sector)
{
    struct virtio_blk_outhdr header = {.type = type, .sector = sector};

    memcpy(ram(driver, HEADER_GPA(n)), &header, sizeof(header));
    *ram(driver, STATUS_GPA(n)) = UNTOUCHED;
}

/* Header, `bytes` at `gpa` in one buffer (none if 0), status; descriptors from 3 n on. */
static void ask(struct driver *driver, unsigned n, uint32_t type, uint64_t sector, uint64_t gpa, uint32_t bytes)
{
    uint16_t head = (uint16_t)(3 * n);
    uint16_t data_flags = type == VIRTIO_BLK_T_OUT ? 0 : VRING_DESC_F_WRITE;

    put_header(driver, n, type, sector);
    ring_describe(driver, &driver->requests, head, HEADER_GPA(n), 16, VRING_DESC_F_NEXT, bytes ? head + 1 : head + 2);
    ring_describe(driver, &driver->requests, head + 1, gpa, bytes, VRING_DESC_F_NEXT | data_flags, head + 2);
    ring_describe(driver, &driver->requests, head + 2, STATUS_GPA(n), 1, VRING_DESC_F_WRITE, 0);
    ring_offer(driver, &driver->requests, head);
}

static void assert_ended(struct driver *driver, unsigned n, uint8_t status, uint32_t written)
{
    uint32_t head, bytes;

    assert_true(ring_take(driver, &driver->requests, &head, &bytes));
    assert_int_equal(head, 3 * n);
    assert_int_equal(bytes, written);
    assert_int_equal(*ram(driver, STATUS_GPA(n)), status);
}

static void assert_nothing_ended(struct driver *driver)
{
    uint32_t head, bytes;

    assert_false(ring_take(driver, &driver->requests, &head, &bytes));
}

static void probe_finds_the_disk(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    machine_add_disk(&machine, false);
    assert_int_equal(pci_get(&machine, 0x00, 4), 0x10421AF4);
    assert_int_equal(pci_get(&machine, 0x3C, 2), 0x010A); /* pin A, line 10 */
    driver_probe(&driver, &machine);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_NUMQ, 2), 1);
    assert_int_equal(port_get(&machine, driver.device, 4), BLK_SECTORS);
    assert_int_equal(port_get(&machine, driver.device + 4, 4), 0);
    assert_int_equal(port_get(&machine, driver.device + 8, 4), VIRTIO_BLK_SEGMENT_BYTES_MAX);
    assert_int_equal(port_get(&machine, driver.device + 12, 4), VIRTIO_BLK_SEGMENTS_MAX);
    assert_int_equal(port_get(&machine, driver.device + 20, 4), 512);
    assert_false(features_get(&driver) & UINT64_C(1) << VIRTIO_BLK_F_RO);
    assert_true(features_get(&driver) & UINT64_C(1) << VIRTIO_BLK_F_FLUSH);
    machine_fini(&machine);
}

static void what_is_written_is_read_back_and_only_completion_touches_memory(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    memset(ram(&driver, DATA_GPA), 0xA5, 4096);
    ask(&driver, 0, VIRTIO_BLK_T_OUT, 7, DATA_GPA, 4096);
    ring_notify(&driver, &driver.requests);
    assert_nothing_ended(&driver);
    memset(ram(&driver, DATA_GPA), 0, 4096); /* too late: the data were taken with the notification */
    assert_true(backing_end(&machine, VIRTIO_BLK_OK));
    assert_ended(&driver, 0, VIRTIO_BLK_S_OK, 1);
    assert_true(machine_interrupted(&machine));
    assert_int_equal(port_get(&machine, driver.isr, 1), 1);
    assert_false(machine_interrupted(&machine));

    ask(&driver, 1, VIRTIO_BLK_T_IN, 8, DATA_GPA + 0xF00, 1024); /* crosses a page */
    ring_notify(&driver, &driver.requests);
    assert_int_equal(*ram(&driver, DATA_GPA + 0xF00), 0);
    memset(machine.dirty, 0, sizeof(machine.dirty));
    assert_true(backing_end(&machine, VIRTIO_BLK_OK));
    assert_ended(&driver, 1, VIRTIO_BLK_S_OK, 1025);
    assert_int_equal(*ram(&driver, DATA_GPA + 0xEFF), 0);
    assert_int_equal(*ram(&driver, DATA_GPA + 0xF00), 0xA5);
    assert_int_equal(*ram(&driver, DATA_GPA + 0xF00 + 1023), 0xA5);
    assert_int_equal(*ram(&driver, DATA_GPA + 0xF00 + 1024), 0);
    /* the buffer's two pages, the status byte's, the used ring's */
    assert_true(machine.dirty[0] == (UINT64_C(3) << 0x14 | UINT64_C(1) << 0x10 | UINT64_C(1) << 8));
    machine_fini(&machine);
}

static void requests_end_in_their_order_and_no_other(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    for (unsigned n = 0; n < 5; n++)
        ask(&driver, n, n % 2 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, n, DATA_GPA + n * 512, 512);
    ring_notify(&driver, &driver.requests);
    assert_int_equal(machine.backing->submitted, 5);
    assert_int_equal(virtio_blk_complete(&machine.blk, 1, VIRTIO_BLK_OK, machine.backing->data[1]), -EPROTO);
    assert_nothing_ended(&driver);
    for (unsigned n = 0; n < 5; n++) {
        assert_true(backing_end(&machine, VIRTIO_BLK_OK));
        assert_ended(&driver, n, VIRTIO_BLK_S_OK, n % 2 ? 513 : 1);
    }
    assert_int_equal(virtio_blk_complete(&machine.blk, 5, VIRTIO_BLK_OK, NULL), -EPROTO);
    machine_fini(&machine);
}

static void an_error_of_the_file_reaches_the_guest_and_leaves_its_buffer_alone(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    memset(ram(&driver, DATA_GPA), 0x77, 512);
    ask(&driver, 0, VIRTIO_BLK_T_IN, 0, DATA_GPA, 512);
    ask(&driver, 1, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    ring_notify(&driver, &driver.requests);
    assert_int_equal(machine.backing->requests[1].operation, VIRTIO_BLK_FLUSH);
    assert_true(backing_end(&machine, VIRTIO_BLK_IOERR));
    assert_true(backing_end(&machine, VIRTIO_BLK_IOERR));
    assert_ended(&driver, 0, VIRTIO_BLK_S_IOERR, 1);
    assert_ended(&driver, 1, VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(*ram(&driver, DATA_GPA), 0x77);
    assert_int_equal(status_get(&driver), 0x0F);
    machine_fini(&machine);
}

static void writes_are_durable_by_themselves_for_a_driver_without_flush(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    ask(&driver, 0, VIRTIO_BLK_T_OUT, 0, DATA_GPA, 512);
    ring_notify(&driver, &driver.requests);
    assert_false(machine.backing->requests[0].durable);
    restart(&driver, FEATURES & ~(UINT64_C(1) << VIRTIO_BLK_F_FLUSH));
    ask(&driver, 0, VIRTIO_BLK_T_OUT, 0, DATA_GPA, 512);
    ring_notify(&driver, &driver.requests);
    assert_true(machine.backing->requests[1].durable);
    machine_fini(&machine);
}

static void the_disk_tells_its_name(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    ask(&driver, 0, VIRTIO_BLK_T_GET_ID, 0, DATA_GPA, 20);
    ask(&driver, 1, VIRTIO_BLK_T_GET_ID, 0, DATA_GPA + 64, 3); /* a short buffer gets what fits */
    ring_notify(&driver, &driver.requests);
    assert_ended(&driver, 0, VIRTIO_BLK_S_OK, 21);
    assert_ended(&driver, 1, VIRTIO_BLK_S_OK, 4);
    assert_string_equal((char *)ram(&driver, DATA_GPA), "ftvmm");
    assert_memory_equal(ram(&driver, DATA_GPA + 64), "ftv\0", 4);
    assert_int_equal(machine.backing->submitted, 0);
    machine_fini(&machine);
}

static void impossible_requests_are_refused_at_once(void **unused)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t bytes;
        uint8_t status;
    } cases[] = {
        {VIRTIO_BLK_T_IN, BLK_SECTORS, 512, VIRTIO_BLK_S_IOERR},      /* behind the end */
        {VIRTIO_BLK_T_IN, BLK_SECTORS - 1, 1024, VIRTIO_BLK_S_IOERR}, /* across the end */
        {VIRTIO_BLK_T_OUT, BLK_SECTORS - 1, 1024, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, UINT64_MAX, 512, VIRTIO_BLK_S_IOERR}, /* wraps */
        {VIRTIO_BLK_T_OUT, UINT64_MAX / 512, 512, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_OUT, UINT64_MAX - 1, 1024, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, 0, 0, VIRTIO_BLK_S_IOERR}, /* nothing */
        {VIRTIO_BLK_T_OUT, 0, 0, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, 0, 511, VIRTIO_BLK_S_IOERR}, /* no whole sectors */
        {VIRTIO_BLK_T_OUT, 0, 513, VIRTIO_BLK_S_IOERR},
        {VIRTIO_BLK_T_IN, 0, VIRTIO_BLK_DATA_BYTES_MAX + 512, VIRTIO_BLK_S_IOERR}, /* more than told */
        {VIRTIO_BLK_T_OUT, 0, VIRTIO_BLK_DATA_BYTES_MAX + 512, VIRTIO_BLK_S_IOERR},
        {11 /* discard, not offered */, 0, 512, VIRTIO_BLK_S_UNSUPP},
        {UINT32_MAX, 0, 512, VIRTIO_BLK_S_UNSUPP},
    };
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ask(&driver, 0, cases[i].type, cases[i].sector, DATA_GPA, cases[i].bytes);
        ring_notify(&driver, &driver.requests);
        assert_ended(&driver, 0, cases[i].status, 1);
        assert_int_equal(machine.blk.state.refused, i + 1);
    }
    assert_int_equal(machine.backing->submitted, 0);
    ask(&driver, 0, VIRTIO_BLK_T_IN, 0, DATA_GPA, VIRTIO_BLK_DATA_BYTES_MAX); /* as much as told */
    ask(&driver, 1, VIRTIO_BLK_T_IN, BLK_SECTORS - 1, DATA_GPA, 512);
    ring_notify(&driver, &driver.requests);
    assert_int_equal(machine.backing->submitted, 2);
    assert_int_equal(status_get(&driver), 0x0F);
    machine_fini(&machine);
}

static void a_readonly_disk_says_so_and_takes_no_write(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, true);
    assert_true(features_get(&driver) & UINT64_C(1) << VIRTIO_BLK_F_RO);
    ask(&driver, 0, VIRTIO_BLK_T_OUT, 0, DATA_GPA, 512);
    ask(&driver, 1, VIRTIO_BLK_T_IN, 0, DATA_GPA, 512);
    ring_notify(&driver, &driver.requests);
    assert_ended(&driver, 0, VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(machine.backing->submitted, 1);
    machine_fini(&machine);
}

/* Data in many pieces, status in the last piece of them, everything in an indirect table. */
static void scattered_buffers_are_filled_in_order(void **unused)
{
    struct vring_desc table[VIRTIO_BLK_SEGMENTS_MAX + 3];
    struct machine machine;
    struct driver driver;
    uint32_t head, written;
    unsigned pieces = VIRTIO_BLK_SEGMENTS_MAX;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    for (unsigned i = 0; i < sizeof(machine.backing->image); i++)
        machine.backing->image[i] = (uint8_t)(i * 7 + i / 256);
    for (unsigned round = 0; round < 2; round++) {
        uint32_t bytes = (pieces - 1) * 512 + 512;

        put_header(&driver, 0, VIRTIO_BLK_T_IN, 3);
        table[0] = (struct vring_desc){.addr = HEADER_GPA(0), .len = 16, .flags = VRING_DESC_F_NEXT, .next = 1};
        for (unsigned i = 1; i <= pieces; i++)
            table[i] = (struct vring_desc){.addr = DATA_GPA + (pieces - i) * 1024, .len = i == pieces ? 513 : 512,
                                           .flags = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, .next = (uint16_t)(i + 1)};
        table[pieces].flags = VRING_DESC_F_WRITE; /* its last byte is the status */
        memcpy(ram(&driver, 0x9000), table, sizeof(table));
        ring_describe(&driver, &driver.requests, 0, 0x9000, 16 * (pieces + 1), VRING_DESC_F_INDIRECT, 0);
        ring_offer(&driver, &driver.requests, 0);
        ring_notify(&driver, &driver.requests);
        assert_true(ring_u16(&driver, driver.requests.used_gpa + 2) == driver.requests.used_index + round);
        if (round == 0) {
            assert_true(backing_end(&machine, VIRTIO_BLK_OK));
            for (unsigned i = 0; i < pieces; i++)
                assert_memory_equal(ram(&driver, DATA_GPA + (pieces - 1 - i) * 1024),
                                    machine.backing->image + (3 + i) * 512, 512);
            assert_int_equal(*ram(&driver, DATA_GPA + 512), VIRTIO_BLK_S_OK);
        }
        assert_true(ring_take(&driver, &driver.requests, &head, &written));
        assert_int_equal(written, round == 0 ? bytes + 1 : 1);
        pieces++; /* one piece more than the disk has told: refused */
    }
    assert_int_equal(machine.blk.state.refused, 1);
    machine_fini(&machine);
}

static void a_request_without_header_or_status_needs_reset(void **unused)
{
    static const struct {
        uint32_t header_bytes;
        bool status;
    } cases[] = {{16, false}, {15, true}};
    struct machine machine;
    struct driver driver;

    (void)unused;
    for (unsigned i = 0; i < 2; i++) {
        begin(&machine, &driver, FEATURES, false);
        put_header(&driver, 0, VIRTIO_BLK_T_FLUSH, 0);
        ring_describe(&driver, &driver.requests, 0, HEADER_GPA(0), cases[i].header_bytes,
                      cases[i].status ? VRING_DESC_F_NEXT : 0, 1);
        ring_describe(&driver, &driver.requests, 1, STATUS_GPA(0), 1, VRING_DESC_F_WRITE, 0);
        ring_offer(&driver, &driver.requests, 0);
        ring_notify(&driver, &driver.requests);
        assert_int_equal(status_get(&driver), 0x4F);
        assert_int_equal(port_get(&machine, driver.isr, 1), 2);
        assert_int_equal(machine.backing->submitted, 0);
        machine_fini(&machine);
    }
}

static void loops_and_wild_addresses_need_reset_and_what_is_under_way_ends_unseen(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    for (unsigned i = 0; i < 3; i++) {
        begin(&machine, &driver, FEATURES, false);
        ask(&driver, 0, VIRTIO_BLK_T_IN, 0, DATA_GPA, 512);
        ring_notify(&driver, &driver.requests);
        put_header(&driver, 1, VIRTIO_BLK_T_IN, 0);
        ring_describe(&driver, &driver.requests, 3, HEADER_GPA(1), 16, VRING_DESC_F_NEXT, i == 0 ? 3 : 4);
        ring_describe(&driver, &driver.requests, 4, i == 1 ? UINT64_MAX - 100 : TEST_RAM_BYTES - 511, 512,
                      VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 5);
        ring_describe(&driver, &driver.requests, 5, STATUS_GPA(1), 1, VRING_DESC_F_WRITE, 0);
        ring_offer(&driver, &driver.requests, 3);
        ring_notify(&driver, &driver.requests);
        assert_int_equal(status_get(&driver), 0x4F);
        assert_int_equal(machine.backing->submitted, 1);
        memset(machine.backing->image, 0x99, 512);
        assert_true(backing_end(&machine, VIRTIO_BLK_OK));
        assert_nothing_ended(&driver);
        assert_int_equal(*ram(&driver, DATA_GPA), 0);
        assert_int_equal(*ram(&driver, STATUS_GPA(0)), UNTOUCHED);
        machine_fini(&machine);
    }
}

static void a_reset_orphans_what_is_under_way(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    memset(machine.backing->image, 0x99, 512);
    ask(&driver, 0, VIRTIO_BLK_T_IN, 0, DATA_GPA, 512);
    ask(&driver, 1, VIRTIO_BLK_T_OUT, 5, DATA_GPA, 512);
    ring_notify(&driver, &driver.requests);
    restart(&driver, FEATURES);
    ask(&driver, 2, VIRTIO_BLK_T_IN, 0, DATA_GPA + 0x2000, 512);
    ring_notify(&driver, &driver.requests);
    assert_int_equal(machine.backing->submitted, 3);
    assert_true(backing_end(&machine, VIRTIO_BLK_OK));
    assert_true(backing_end(&machine, VIRTIO_BLK_OK));
    assert_nothing_ended(&driver);
    assert_int_equal(*ram(&driver, DATA_GPA), 0);
    assert_true(backing_end(&machine, VIRTIO_BLK_OK));
    assert_ended(&driver, 2, VIRTIO_BLK_S_OK, 513);
    assert_int_equal(*ram(&driver, DATA_GPA + 0x2000), 0x99);
    machine_fini(&machine);
}

/* One head offered over and over: the disk takes as much as it has room for, and the rest when it has room again. */
static void more_requests_than_there_is_room_for_wait_in_the_queue(void **unused)
{
    struct machine machine;
    struct driver driver;
    unsigned ended = 0;

    (void)unused;
    begin(&machine, &driver, FEATURES, false);
    for (unsigned part = 0; part < 2; part++) {
        ask(&driver, 0, VIRTIO_BLK_T_IN, 1, DATA_GPA, 512);
        for (unsigned i = 1; i < 50; i++)
            ring_offer(&driver, &driver.requests, 0);
        ring_notify(&driver, &driver.requests);
    }
    assert_int_equal(machine.backing->submitted, VIRTIO_BLK_REQUESTS_MAX);
    virtio_blk_continue(&machine.blk);
    assert_int_equal(machine.backing->submitted, VIRTIO_BLK_REQUESTS_MAX);
    assert_true(backing_end(&machine, VIRTIO_BLK_OK));
    assert_int_equal(machine.backing->submitted, VIRTIO_BLK_REQUESTS_MAX);
    virtio_blk_continue(&machine.blk);
    assert_int_equal(machine.backing->submitted, VIRTIO_BLK_REQUESTS_MAX + 1);
    for (ended = 1; backing_end(&machine, VIRTIO_BLK_OK); ended++)
        virtio_blk_continue(&machine.blk);
    assert_int_equal(ended, 100);
    assert_int_equal(status_get(&driver), 0x0F);
    machine_fini(&machine);
}

static void requests_offered_before_driver_ok_are_taken_then(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    machine_add_disk(&machine, false);
    driver_probe(&driver, &machine);
    driver_negotiate(&driver, FEATURES);
    ring_setup(&driver, &driver.requests);
    ask(&driver, 0, VIRTIO_BLK_T_IN, 0, DATA_GPA, 512);
    ring_notify(&driver, &driver.requests);
    assert_int_equal(machine.backing->submitted, 0);
    status_put(&driver, 0x0F);
    assert_int_equal(machine.backing->submitted, 1);
    machine_fini(&machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probe_finds_the_disk),
        cmocka_unit_test(what_is_written_is_read_back_and_only_completion_touches_memory),
        cmocka_unit_test(requests_end_in_their_order_and_no_other),
        cmocka_unit_test(an_error_of_the_file_reaches_the_guest_and_leaves_its_buffer_alone),
        cmocka_unit_test(writes_are_durable_by_themselves_for_a_driver_without_flush),
        cmocka_unit_test(the_disk_tells_its_name),
        cmocka_unit_test(impossible_requests_are_refused_at_once),
        cmocka_unit_test(a_readonly_disk_says_so_and_takes_no_write),
        cmocka_unit_test(scattered_buffers_are_filled_in_order),
        cmocka_unit_test(a_request_without_header_or_status_needs_reset),
        cmocka_unit_test(loops_and_wild_addresses_need_reset_and_what_is_under_way_ends_unseen),
        cmocka_unit_test(a_reset_orphans_what_is_under_way),
        cmocka_unit_test(more_requests_than_there_is_room_for_wait_in_the_queue),
        cmocka_unit_test(requests_offered_before_driver_ok_are_taken_then),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
