/* The network card as a driver sees it: probe, negotiation, frames both ways, and a hostile guest. */
#include "virtio_driver.h"

#include <errno.h>

static void fill(uint8_t *frame, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        frame[i] = (uint8_t)(seed * 31 + i * 7);
}

static void probe_finds_every_structure(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    assert_int_equal(pci_get(&machine, 0x00, 4), 0x10411AF4);
    assert_int_equal(pci_get(&machine, 0x08, 1), 0x01);
    assert_int_equal(pci_get(&machine, 0x3C, 2), 0x010B); /* pin A, line 11 */
    driver_probe(&driver, &machine);
    assert_true(driver.common && driver.isr && driver.notify && driver.device && driver.window);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_NUMQ, 2), 3);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_MSIX, 2), 0xFFFF);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(port_get(&machine, (uint16_t)(driver.device + i), 1), test_mac[i]);
    assert_int_equal(port_get(&machine, driver.device + 6, 2), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(port_get(&machine, driver.device + 10, 2), 1500);
    assert_int_equal(port_get(&machine, driver.device, 4), 0x12005452);
    machine_fini(&machine);
}

static void negotiation_accepts_offered_features_only(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    assert_true(features_get(&driver) == ALL_FEATURES);
    common_put(&driver, VIRTIO_PCI_COMMON_DFSELECT, 4, 2);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_DF, 4), 0);
    driver_negotiate(&driver, ALL_FEATURES);
    assert_int_equal(status_get(&driver), 0x0B);
    driver_negotiate(&driver, BASIC_FEATURES);
    assert_int_equal(status_get(&driver), 0x0B);
    driver_negotiate(&driver, BASIC_FEATURES | UINT64_C(1) << VIRTIO_NET_F_CTRL_VLAN); /* not offered */
    assert_int_equal(status_get(&driver), 0x03);
    status_put(&driver, 0x07); /* DRIVER_OK without FEATURES_OK */
    assert_int_equal(status_get(&driver), 0x03);
    driver_negotiate(&driver, UINT64_C(1) << VIRTIO_NET_F_MAC); /* legacy */
    assert_int_equal(status_get(&driver), 0x03);
    driver_negotiate(&driver, BASIC_FEATURES);
    features_put(&driver, ALL_FEATURES); /* too late */
    assert_true(machine.net.card.state.driver_features == BASIC_FEATURES);
    machine_fini(&machine);
}

static void registers_of_absent_queues_read_zero(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    common_put(&driver, VIRTIO_PCI_COMMON_Q_SELECT, 2, 3);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
    common_put(&driver, VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0x1000);
    common_put(&driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_Q_DESCLO, 4), 0);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    machine_fini(&machine);
}

static void narrow_and_wide_accesses_merge_into_registers(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    common_put(&driver, VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0x11223340);
    common_put(&driver, VIRTIO_PCI_COMMON_Q_DESCLO + 1, 1, 0xAA);
    common_put(&driver, VIRTIO_PCI_COMMON_Q_DESCLO + 2, 2, 0xBBCC);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_Q_DESCLO, 4), 0xBBCCAA40);
    common_put(&driver, VIRTIO_PCI_COMMON_STATUS, 4, 0x00010003); /* status, generation, queue select */
    assert_int_equal(status_get(&driver), 0x03);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_Q_SELECT, 2), 1);
    assert_int_equal(port_get(&machine, TEST_PORT + 0x7E, 4), UINT32_MAX); /* runs past the BAR */
    port_put(&machine, TEST_PORT + 0x7E, 4, 0);
    machine_fini(&machine);
}

/* Sends one frame from two buffers, header apart. */
static void send_frame(struct driver *driver, const uint8_t *frame, size_t bytes, uint16_t head)
{
    uint64_t gpa = 0x10000 + (uint64_t)head * 0x800;

    memset(ram(driver, gpa), 0, VIRTIO_NET_HEADER_BYTES);
    memcpy(ram(driver, gpa + VIRTIO_NET_HEADER_BYTES), frame, bytes);
    ring_describe(driver, &driver->tx, head, gpa, VIRTIO_NET_HEADER_BYTES, VRING_DESC_F_NEXT, head + 1);
    ring_describe(driver, &driver->tx, head + 1, gpa + VIRTIO_NET_HEADER_BYTES, (uint32_t)bytes, 0, 0);
    ring_offer(driver, &driver->tx, head);
}

static void frame_sent_leaves_within_the_notification(void **unused)
{
    static const size_t sizes[] = {14, 60, 1514, 1518};
    struct machine machine;
    struct driver driver;
    uint8_t frame[1518];
    uint32_t head, written;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        fill(frame, sizes[i], i);
        send_frame(&driver, frame, sizes[i], 4);
        assert_int_equal(machine.frames, i);
        ring_notify(&driver, &driver.tx);
        assert_int_equal(machine.frames, i + 1);
        assert_int_equal(machine.frame_bytes, sizes[i]);
        assert_memory_equal(machine.frame, frame, sizes[i]);
        assert_true(ring_take(&driver, &driver.tx, &head, &written));
        assert_int_equal(head, 4);
        assert_int_equal(written, 0);
        assert_true(machine_interrupted(&machine));
        assert_int_equal(port_get(&machine, driver.isr, 1), 1);
        assert_false(machine_interrupted(&machine));
        assert_int_equal(port_get(&machine, driver.isr, 1), 0);
    }
    machine_fini(&machine);
}

static void one_notification_sends_all_that_waits_in_order(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[64];

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, ALL_FEATURES);
    for (uint16_t i = 0; i < 10; i++) {
        fill(frame, sizeof(frame), i);
        send_frame(&driver, frame, sizeof(frame), i * 2);
    }
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 10);
    assert_memory_equal(machine.frame, frame, sizeof(frame));
    assert_int_equal(ring_u16(&driver, driver.tx.used_gpa + 2), 10);
    assert_int_equal(ring_u16(&driver, driver.tx.used_gpa + 4 + 8 * 256), 10); /* avail_event: notify the next */
    machine_fini(&machine);
}

static void frame_of_impossible_length_is_dropped_and_returned(void **unused)
{
    static const size_t sizes[] = {13, 1519, 1};
    struct machine machine;
    struct driver driver;
    uint8_t frame[1519];
    uint32_t head, written;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    for (unsigned i = 0; i < 3; i++) {
        fill(frame, sizes[i], i);
        send_frame(&driver, frame, sizes[i], 0);
        ring_notify(&driver, &driver.tx);
        assert_int_equal(machine.net.state.sent_dropped_frames, i + 1);
        assert_true(ring_take(&driver, &driver.tx, &head, &written));
    }
    assert_int_equal(machine.frames, 0);
    assert_int_equal(status_get(&driver), 0x0F);
    machine_fini(&machine);
}

static void frames_offered_before_driver_ok_leave_then(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[60] = {1};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_negotiate(&driver, BASIC_FEATURES);
    ring_setup(&driver, &driver.rx);
    ring_setup(&driver, &driver.tx);
    send_frame(&driver, frame, sizeof(frame), 0);
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 0);
    status_put(&driver, 0x0F);
    assert_int_equal(machine.frames, 1);
    machine_fini(&machine);
}

static void frame_received_lands_in_the_guests_buffer(void **unused)
{
    struct machine machine;
    struct driver driver;
    struct virtio_net_hdr_v1 header;
    uint8_t frame[1514];
    uint32_t head, written;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    assert_false(virtio_net_can_receive(&machine.net, 60));
    assert_int_equal(virtio_net_receive(&machine.net, frame, 60, false), -EAGAIN);
    driver_start(&driver, ALL_FEATURES);
    assert_false(virtio_net_can_receive(&machine.net, 60));
    assert_int_equal(virtio_net_receive(&machine.net, frame, 60, false), -EAGAIN);
    memset(ram(&driver, 0x10FF0), 0xEE, 0x1000);
    ring_describe(&driver, &driver.rx, 9, 0x10FF0, 12 + 1518, VRING_DESC_F_WRITE, 0); /* crosses a page */
    ring_offer(&driver, &driver.rx, 9);
    assert_true(virtio_net_can_receive(&machine.net, 60));
    memset(machine.dirty, 0, sizeof(machine.dirty));
    fill(frame, sizeof(frame), 3);
    assert_int_equal(virtio_net_receive(&machine.net, frame, sizeof(frame), false), 0);
    assert_true(ring_take(&driver, &driver.rx, &head, &written));
    assert_int_equal(head, 9);
    assert_int_equal(written, 12 + sizeof(frame));
    memcpy(&header, ram(&driver, 0x10FF0), sizeof(header));
    assert_int_equal(header.flags, 0);
    assert_int_equal(header.gso_type, VIRTIO_NET_HDR_GSO_NONE);
    assert_int_equal(header.num_buffers, 1);
    assert_memory_equal(ram(&driver, 0x10FF0 + 12), frame, sizeof(frame));
    assert_int_equal(*ram(&driver, 0x10FF0 + 12 + sizeof(frame)), 0xEE);
    /* pages 0x10 and 0x11 hold the buffer, 3 the used ring */
    assert_true(machine.dirty[0] == (UINT64_C(1) << 0x10 | UINT64_C(1) << 0x11 | UINT64_C(1) << 3));
    assert_true(machine_interrupted(&machine));
    assert_int_equal(port_get(&machine, driver.isr, 1), 1);
    assert_false(virtio_net_can_receive(&machine.net, 60));
    machine_fini(&machine);
}

static void frame_too_long_for_the_buffer_is_dropped_and_the_buffer_kept(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[1519] = {0};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    ring_describe(&driver, &driver.rx, 0, 0x10000, 12 + 100, VRING_DESC_F_WRITE, 0);
    ring_offer(&driver, &driver.rx, 0);
    assert_int_equal(virtio_net_receive(&machine.net, frame, 13, false), -EINVAL);
    assert_int_equal(virtio_net_receive(&machine.net, frame, 1519, false), -EINVAL);
    assert_int_equal(virtio_net_receive(&machine.net, frame, 101, false), -EMSGSIZE);
    assert_int_equal(machine.net.state.received_dropped_frames, 1);
    assert_int_equal(ring_u16(&driver, driver.rx.used_gpa + 2), 0);
    assert_int_equal(virtio_net_receive(&machine.net, frame, 100, false), 0);
    assert_int_equal(ring_u16(&driver, driver.rx.used_gpa + 2), 1);
    machine_fini(&machine);
}

static void suppressed_interrupts_stay_silent(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[60] = {0};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    ring_put_u16(&driver, driver.tx.avail_gpa, VRING_AVAIL_F_NO_INTERRUPT);
    send_frame(&driver, frame, sizeof(frame), 0);
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 1);
    assert_false(machine_interrupted(&machine));
    assert_int_equal(port_get(&machine, driver.isr, 1), 0);
    machine_fini(&machine);
}

static void receive_ring_asks_for_no_notifications(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    assert_int_equal(ring_u16(&driver, driver.rx.used_gpa), VRING_USED_F_NO_NOTIFY);
    assert_int_equal(ring_u16(&driver, driver.tx.used_gpa), 0);
    machine_fini(&machine);
}

static void link_change_interrupts_and_bumps_the_generation(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, ALL_FEATURES);
    virtio_net_set_link(&machine.net, true);
    assert_false(machine_interrupted(&machine));
    virtio_net_set_link(&machine.net, false);
    assert_true(machine_interrupted(&machine));
    assert_int_equal(port_get(&machine, driver.isr, 1), 2);
    assert_int_equal(port_get(&machine, driver.device + 6, 2), 0);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_CFGGENERATION, 1), 1);
    machine_fini(&machine);
}

static void reset_stops_everything_and_a_new_start_works(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[60] = {0};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, ALL_FEATURES);
    send_frame(&driver, frame, sizeof(frame), 0);
    ring_notify(&driver, &driver.tx);
    assert_true(machine_interrupted(&machine));
    status_put(&driver, 0);
    assert_int_equal(status_get(&driver), 0);
    assert_false(machine_interrupted(&machine));
    send_frame(&driver, frame, sizeof(frame), 0);
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 1);
    assert_false(virtio_net_can_receive(&machine.net, 60));
    memset(machine.memory.base, 0, 0x10000);
    driver_start(&driver, BASIC_FEATURES);
    send_frame(&driver, frame, sizeof(frame), 0);
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 2);
    machine_fini(&machine);
}

static void broken_transmit_ring_needs_reset(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[60] = {0};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    send_frame(&driver, frame, sizeof(frame), 0); /* a good one first */
    ring_describe(&driver, &driver.tx, 8, TEST_RAM_BYTES - 1, 100, 0, 0);
    ring_offer(&driver, &driver.tx, 8);
    send_frame(&driver, frame, sizeof(frame), 4);
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 1);
    assert_int_equal(status_get(&driver), 0x4F);
    assert_int_equal(port_get(&machine, driver.isr, 1), 3); /* queue and configuration change */
    ring_notify(&driver, &driver.tx);
    assert_int_equal(machine.frames, 1);
    status_put(&driver, 0x0F); /* the bit cannot be written away */
    assert_int_equal(status_get(&driver), 0x4F);
    status_put(&driver, 0);
    assert_int_equal(status_get(&driver), 0);
    machine_fini(&machine);
}

static void broken_receive_ring_needs_reset(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[60] = {0};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_start(&driver, BASIC_FEATURES);
    ring_put_u16(&driver, driver.rx.avail_gpa + 2, 300);
    assert_true(virtio_net_can_receive(&machine.net, 60));
    assert_int_equal(virtio_net_receive(&machine.net, frame, sizeof(frame), false), -EPROTO);
    assert_int_equal(status_get(&driver), 0x4F);
    assert_int_equal(port_get(&machine, driver.isr, 1), 2);
    assert_false(virtio_net_can_receive(&machine.net, 60));
    assert_int_equal(virtio_net_receive(&machine.net, frame, sizeof(frame), false), -EAGAIN);
    machine_fini(&machine);
}

static void bad_ring_address_needs_reset(void **unused)
{
    struct machine machine;
    struct driver driver;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_negotiate(&driver, BASIC_FEATURES);
    driver.tx.used_gpa = UINT64_C(0xFFFFFFFFFFFFF000);
    ring_setup(&driver, &driver.tx);
    assert_int_equal(status_get(&driver), 0x4B);
    assert_int_equal(common_get(&driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    machine_fini(&machine);
}

static void used_ring_laid_over_the_available_index_ends(void **unused)
{
    struct machine machine;
    struct driver driver;
    uint8_t frame[60] = {0};

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    driver_negotiate(&driver, BASIC_FEATURES);
    ring_setup(&driver, &driver.rx);
    driver.tx.used_gpa = driver.tx.avail_gpa; /* used idx and avail idx are one: never empty, never full */
    ring_setup(&driver, &driver.tx);
    status_put(&driver, 0x0F);
    send_frame(&driver, frame, sizeof(frame), 0);
    ring_notify(&driver, &driver.tx);
    assert_in_range(machine.frames, 1, 256);
    /* Its entries laid over it instead: each returned chain moves the available index. */
    memset(machine.memory.base, 0, 0x10000);
    driver_negotiate(&driver, BASIC_FEATURES);
    driver.tx.used_gpa = driver.tx.avail_gpa - 28;
    ring_setup(&driver, &driver.tx);
    status_put(&driver, 0x0F);
    machine.frames = 0;
    for (uint16_t i = 0; i < 200; i += 2)
        send_frame(&driver, frame, sizeof(frame), i % 64);
    for (unsigned i = 0; i < 50; i++)
        ring_notify(&driver, &driver.tx);
    assert_in_range(machine.frames, 1, 256 * 50);
    machine_fini(&machine);
}

static void access_window_reaches_the_registers(void **unused)
{
    struct machine machine;
    struct driver driver;
    unsigned at;

    (void)unused;
    machine_init(&machine);
    driver_probe(&driver, &machine);
    at = driver.window;
    pci_put(&machine, at + 4, 1, 0);
    pci_put(&machine, at + 8, 4, 0x14); /* device status */
    pci_put(&machine, at + 12, 4, 1);
    pci_put(&machine, at + 16, 1, 0x03);
    assert_int_equal(status_get(&driver), 0x03);
    assert_int_equal(pci_get(&machine, at + 16, 1), 0x03);
    pci_put(&machine, at + 8, 4, 0x50); /* MAC */
    pci_put(&machine, at + 12, 4, 4);
    assert_int_equal(pci_get(&machine, at + 16, 4), 0x12005452);
    pci_put(&machine, at + 16, 4, 0); /* not writable */
    assert_int_equal(pci_get(&machine, at + 16, 4), 0x12005452);
    /* Places that do not exist neither read nor write anything. */
    pci_put(&machine, at + 8, 4, 0xFFFFFFFC);
    pci_put(&machine, at + 16, 4, 0x55AA55AA);
    assert_int_equal(pci_get(&machine, at + 16, 4), 0x55AA55AA);
    pci_put(&machine, at + 12, 4, 0);
    pci_put(&machine, at + 8, 4, 0x14);
    pci_put(&machine, at + 16, 1, 0x00);
    assert_int_equal(status_get(&driver), 0x03);
    pci_put(&machine, at + 4, 1, 2); /* no such BAR */
    pci_put(&machine, at + 12, 4, 1);
    pci_put(&machine, at + 16, 1, 0x00);
    assert_int_equal(status_get(&driver), 0x03);
    assert_int_equal(pci_get(&machine, at + 2, 2), 0x0514); /* length and type are read-only */
    machine_fini(&machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probe_finds_every_structure),
        cmocka_unit_test(negotiation_accepts_offered_features_only),
        cmocka_unit_test(registers_of_absent_queues_read_zero),
        cmocka_unit_test(narrow_and_wide_accesses_merge_into_registers),
        cmocka_unit_test(frame_sent_leaves_within_the_notification),
        cmocka_unit_test(one_notification_sends_all_that_waits_in_order),
        cmocka_unit_test(frame_of_impossible_length_is_dropped_and_returned),
        cmocka_unit_test(frames_offered_before_driver_ok_leave_then),
        cmocka_unit_test(frame_received_lands_in_the_guests_buffer),
        cmocka_unit_test(frame_too_long_for_the_buffer_is_dropped_and_the_buffer_kept),
        cmocka_unit_test(suppressed_interrupts_stay_silent),
        cmocka_unit_test(receive_ring_asks_for_no_notifications),
        cmocka_unit_test(link_change_interrupts_and_bumps_the_generation),
        cmocka_unit_test(reset_stops_everything_and_a_new_start_works),
        cmocka_unit_test(broken_transmit_ring_needs_reset),
        cmocka_unit_test(broken_receive_ring_needs_reset),
        cmocka_unit_test(bad_ring_address_needs_reset),
        cmocka_unit_test(used_ring_laid_over_the_available_index_ends),
        cmocka_unit_test(access_window_reaches_the_registers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
