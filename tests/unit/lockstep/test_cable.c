/*
 * The guest's cable at its positions: the real I/O thread, the real positions of a machine that runs alone, and a memif
 * port whose other end the test holds. Only the guest is missing: the test sends for it.
 */
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"
#include "vmm/io_thread.h"

#define POSITIONS    40u
#define PER_POSITION 250u /* frames; a guest's queue holds 256 */
#define FRAME_BYTES  1500u
#define WAIT_NS      (20 * NS_PER_S)

static const uint8_t mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

struct bench {
    struct lockstep *ls;
    struct net *far;
    pthread_t io_thread, far_thread;
    _Atomic bool far_ends;
    _Atomic uint64_t came, wrong; /* at the far end, in order or not */
    _Atomic uint64_t announced;   /* RARP: where the guest is */
    uint64_t gap_ns; /* between two looks of the far end */
};

static char near_port[96], far_port[112];

static void bench_open(struct bench *bench)
{
    struct net_options options = { .port = near_port };
    struct lockstep *ls = calloc(1, sizeof(*ls));
    struct virtio_net_cable cable = { .ctx = ls, .transmit = lockstep_frame_out, .filter = lockstep_filter_out };
    static unsigned count;

    *bench = (struct bench){ .ls = ls };
    snprintf(near_port, sizeof(near_port), "memif:ftvmm-cable-%d-%u", (int)getpid(), ++count);
    snprintf(far_port, sizeof(far_port), "%s,client", near_port);
    memcpy(options.mac, mac, sizeof(mac));
    assert_int_equal(net_open(&ls->net, &options), 0);
    ls->options = (struct lockstep_options){ .peer_timeout_ns = NS_PER_S, .max_input_delay_ns = 10 * NS_PER_S,
                                             .idle = { .sleep_ns = 50 * NS_PER_US } };
    ls->console_in = calloc(1, sizeof(*ls->console_in));
    ls->machine.vcpu.run = calloc(1, sizeof(struct kvm_run));
    ls->machine.exit = VCPU_EXIT_FORCED;
    pic_init(&ls->machine.pic);
    pit_init(&ls->machine.pit, 0);
    rtc_init(&ls->machine.rtc, 0, 0);
    pci_init(&ls->machine.pci, &ls->machine.pic);
    assert_int_equal(virtio_net_init(&ls->machine.net, &ls->machine.pci, 1, 0xC000, mac, 1500, &ls->machine.memory,
                                     &cable), 0);
    assert_int_equal(vcpu_enter_thread(&ls->machine.vcpu), 0);
    ls->clock_offset_ns = -(int64_t)clock_now_ns();
    COUNT_SET(ls->role, ROLE_ALONE);
    COUNT_SET(ls->beat_ns, clock_now_ns());
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->deadline_ns, UINT64_MAX);
    COUNT_SET(ls->opened, true);
    COUNT_SET(ls->running, true);
    assert_int_equal(pthread_create(&bench->io_thread, NULL, io_thread_run, ls), 0);
}

/* Takes what comes, slowly; each frame bears its number. */
static void *far_main(void *arg)
{
    struct bench *bench = arg;

    while (!atomic_load(&bench->far_ends)) {
        const uint8_t *frame;
        size_t bytes;
        bool ignored;

        net_poll_live(bench->far, UINT64_MAX);
        for (; (frame = net_receive_peek(bench->far, &bytes, &ignored)) != NULL; net_receive_pop(bench->far)) {
            uint64_t number;

            if (frame[12] == 0x80 && frame[13] == 0x35) {
                atomic_fetch_add(&bench->announced, 1);
                continue;
            }
            memcpy(&number, frame + 14, sizeof(number));
            if (bytes != FRAME_BYTES || number != atomic_load(&bench->came))
                atomic_fetch_add(&bench->wrong, 1);
            atomic_fetch_add(&bench->came, 1);
        }
        clock_sleep_ns(bench->gap_ns);
    }
    return NULL;
}

static void far_open(struct bench *bench, uint64_t gap_ns)
{
    struct net_options options = { .port = far_port };

    bench->gap_ns = gap_ns;
    assert_int_equal(net_open(&bench->far, &options), 0);
    assert_int_equal(pthread_create(&bench->far_thread, NULL, far_main, bench), 0);
}

static void bench_close(struct bench *bench)
{
    struct lockstep *ls = bench->ls;

    atomic_store(&ls->finished, true);
    pthread_join(bench->io_thread, NULL);
    if (bench->far != NULL) {
        atomic_store(&bench->far_ends, true);
        pthread_join(bench->far_thread, NULL);
        net_close(bench->far);
        clock_sleep_ns(100 * NS_PER_MS); /* EAL's thread has then seen it (DPDK 22.11's memif wants that) */
    }
    net_close(ls->net);
    free(ls->machine.vcpu.run);
    free(ls->console_in);
    free(ls);
}

/* One position, at which the guest sends so many frames; how long its arrival took. */
static uint64_t position(struct bench *bench, unsigned frames)
{
    const struct net_offload finished = { 0 };
    struct lockstep *ls = bench->ls;
    uint8_t frame[FRAME_BYTES] = { 0x52, 0x54, 0, 9, 9, 9 };
    uint64_t began_ns = clock_now_ns();

    ls->machine.position++;
    primary_arrive(ls);
    began_ns = clock_now_ns() - began_ns;
    assert_int_equal(ls->failure, 0);
    memcpy(frame + 6, mac, 6);
    for (unsigned i = 0; i < frames; i++) {
        memcpy(frame + 14, &ls->frames_built, sizeof(ls->frames_built));
        lockstep_frame_out(ls, frame, sizeof(frame), &finished);
    }
    ls->output_pending = false;
    return began_ns;
}

static void wait_for_link(struct bench *bench, bool up)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;

    while (bench->ls->machine.net.state.link_up != up && clock_now_ns() < deadline_ns) {
        position(bench, 0);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_int_equal(bench->ls->machine.net.state.link_up, up);
}

static void guest_waits_for_room_and_loses_nothing(void **state)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
    struct net_statistics statistics;
    struct bench bench;

    (void)state;
    bench_open(&bench);
    far_open(&bench, NS_PER_MS); /* 32 frames a ms at most, far fewer than the guest makes */
    wait_for_link(&bench, true);
    for (unsigned i = 0; i < POSITIONS; i++)
        position(&bench, PER_POSITION);
    while (atomic_load(&bench.came) < POSITIONS * PER_POSITION && clock_now_ns() < deadline_ns)
        clock_sleep_ns(NS_PER_MS);
    assert_int_equal(atomic_load(&bench.came), POSITIONS * PER_POSITION);
    assert_int_equal(atomic_load(&bench.wrong), 0);
    net_get_statistics(bench.ls->net, &statistics);
    assert_int_equal(statistics.dropped_hold_full, 0);
    print_message("%llu waits, %llu ms in all\n", (unsigned long long)COUNT_GET(bench.ls->hold_full_stalls),
                  (unsigned long long)(COUNT_GET(bench.ls->hold_full_ns) / NS_PER_MS));
    assert_true(COUNT_GET(bench.ls->hold_full_stalls) > 5);
    bench_close(&bench);
}

/* With nobody at the other end nothing leaves: the guest is not made to wait for ever, nor anew at each position. */
static void guest_whose_frames_do_not_leave_goes_on(void **state)
{
    uint64_t longest_ns = 0, began_ns;
    struct net_statistics statistics;
    struct bench bench;
    unsigned waits = 0;

    (void)state;
    bench_open(&bench);
    wait_for_link(&bench, false);
    began_ns = clock_now_ns();
    for (unsigned i = 0; i < 20; i++) {
        uint64_t took_ns = position(&bench, PER_POSITION);

        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
        waits += took_ns > 100 * NS_PER_MS;
    }
    assert_true(longest_ns < 4 * NS_PER_S);
    assert_in_range(waits, 1, 8); /* the port drops what has waited for a second: then there is room again */
    assert_true(clock_now_ns() - began_ns < WAIT_NS);
    net_get_statistics(bench.ls->net, &statistics);
    assert_true(statistics.dropped_transmit + statistics.dropped_hold_full > 1000);
    bench_close(&bench);
}

static void link_of_the_port_is_an_input(void **state)
{
    struct bench bench;
    uint8_t generation;

    (void)state;
    bench_open(&bench);
    assert_true(bench.ls->machine.net.state.link_up);
    wait_for_link(&bench, false); /* nobody is there yet */
    generation = bench.ls->machine.net.card.state.config_generation;
    assert_int_equal(generation, 1);
    position(&bench, 0);
    assert_int_equal(bench.ls->machine.net.card.state.config_generation, generation); /* once for a change */
    far_open(&bench, NS_PER_MS);
    wait_for_link(&bench, true);
    assert_int_equal(bench.ls->machine.net.card.state.config_generation, generation + 1);
    /* The LAN has learnt nothing while the cable was out. */
    for (uint64_t deadline_ns = clock_now_ns() + WAIT_NS; atomic_load(&bench.announced) < 3 && clock_now_ns() < deadline_ns;)
        clock_sleep_ns(NS_PER_MS);
    assert_int_equal(atomic_load(&bench.announced), 3);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_waits_for_room_and_loses_nothing),
        cmocka_unit_test(guest_whose_frames_do_not_leave_goes_on),
        cmocka_unit_test(link_of_the_port_is_an_input),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
