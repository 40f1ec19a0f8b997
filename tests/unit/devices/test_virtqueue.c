/* The split virtqueue against well-behaved and hostile guests. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>
#include <string.h>

#include <linux/virtio_ring.h>

#include "vmm/virtqueue.h"

#define RAM_BYTES 0x10000u
#define DESC      0x1000u
#define AVAIL     0x2000u
#define USED      0x3000u
#define INDIRECT  0x4000u
#define BUFFER    0x8000u
#define SIZE      8u

struct bench {
    struct virtqueue queue;
    struct guest_memory memory;
    struct virtqueue_chain chain;
    uint64_t dirty[1];
    uint16_t avail_index;
};

static void bench_init(struct bench *bench, bool event_idx, bool indirect)
{
    memset(bench, 0, sizeof(*bench));
    bench->memory = (struct guest_memory){.base = calloc(1, RAM_BYTES), .bytes = RAM_BYTES, .dirty = bench->dirty};
    assert_non_null(bench->memory.base);
    virtqueue_init(&bench->queue, SIZE);
    bench->queue.descriptors_gpa = DESC;
    bench->queue.available_gpa = AVAIL;
    bench->queue.used_gpa = USED;
    assert_int_equal(virtqueue_enable(&bench->queue, &bench->memory, event_idx, indirect), 0);
}

static void bench_fini(struct bench *bench)
{
    free(bench->memory.base);
}

static void put_u16(struct bench *bench, uint64_t gpa, uint16_t value)
{
    memcpy(bench->memory.base + gpa, &value, 2);
}

static uint16_t get_u16(struct bench *bench, uint64_t gpa)
{
    uint16_t value;

    memcpy(&value, bench->memory.base + gpa, 2);
    return value;
}

static void describe(struct bench *bench, uint64_t table, unsigned index, uint64_t gpa, uint32_t bytes, uint16_t flags,
                     uint16_t next)
{
    struct vring_desc desc = {.addr = gpa, .len = bytes, .flags = flags, .next = next};

    memcpy(bench->memory.base + table + index * sizeof(desc), &desc, sizeof(desc));
}

static void offer(struct bench *bench, uint16_t head)
{
    put_u16(bench, AVAIL + 4 + 2 * (bench->avail_index % SIZE), head);
    put_u16(bench, AVAIL + 2, ++bench->avail_index);
}

static int pop(struct bench *bench)
{
    return virtqueue_pop(&bench->queue, &bench->memory, &bench->chain);
}

/* The offered chain at descriptor 0 must break the queue in this way, for good, and change no guest memory. */
static void assert_breaks(struct bench *bench, enum virtqueue_fault fault)
{
    uint8_t *before = malloc(RAM_BYTES);

    assert_non_null(before);
    memcpy(before, bench->memory.base, RAM_BYTES);
    assert_int_equal(pop(bench), -EPROTO);
    assert_int_equal(bench->queue.fault, fault);
    assert_int_equal(pop(bench), -EPROTO);
    assert_int_equal(virtqueue_waiting(&bench->queue, &bench->memory), 0);
    virtqueue_push(&bench->queue, &bench->memory, 0, 0);
    virtqueue_set_notify(&bench->queue, &bench->memory, true);
    assert_false(virtqueue_interrupt_due(&bench->queue, &bench->memory));
    assert_memory_equal(before, bench->memory.base, RAM_BYTES);
    free(before);
}

static void chain_gathers_and_scatters_across_buffers(void **unused)
{
    struct bench bench;
    char text[16];

    (void)unused;
    bench_init(&bench, false, false);
    memcpy(bench.memory.base + BUFFER, "abc", 3);
    memcpy(bench.memory.base + BUFFER + 100, "defg", 4);
    describe(&bench, DESC, 5, BUFFER, 3, VRING_DESC_F_NEXT, 2);
    describe(&bench, DESC, 2, BUFFER + 100, 4, VRING_DESC_F_NEXT, 7);
    describe(&bench, DESC, 7, BUFFER + 0xFFE, 5, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 0);
    describe(&bench, DESC, 0, BUFFER + 0x3000, 6, VRING_DESC_F_WRITE, 99);
    assert_int_equal(pop(&bench), 0);
    offer(&bench, 5);
    assert_int_equal(virtqueue_waiting(&bench.queue, &bench.memory), 1);
    assert_int_equal(pop(&bench), 1);
    assert_int_equal(bench.chain.head, 5);
    assert_int_equal(bench.chain.readable_bytes, 7);
    assert_int_equal(bench.chain.writable_bytes, 11);
    assert_int_equal(virtqueue_chain_read(&bench.chain, 0, text, sizeof(text)), 7);
    assert_memory_equal(text, "abcdefg", 7);
    assert_int_equal(virtqueue_chain_read(&bench.chain, 2, text, 3), 3);
    assert_memory_equal(text, "cde", 3);
    assert_int_equal(virtqueue_chain_read(&bench.chain, 7, text, 3), 0);
    assert_int_equal(virtqueue_chain_write(&bench.chain, &bench.memory, 3, "0123456789", 10), 8);
    assert_memory_equal(bench.memory.base + BUFFER + 0xFFE + 3, "01", 2);
    assert_memory_equal(bench.memory.base + BUFFER + 0x3000, "234567", 6);
    assert_true(bench.dirty[0] == (UINT64_C(1) << 9 | UINT64_C(1) << 11)); /* page 8 was not touched */
    assert_int_equal(pop(&bench), 0);
    bench_fini(&bench);
}

static void push_fills_the_used_ring_and_marks_it(void **unused)
{
    struct bench bench;
    uint32_t entry[2];

    (void)unused;
    bench_init(&bench, false, false);
    describe(&bench, DESC, 3, BUFFER, 8, VRING_DESC_F_WRITE, 0);
    for (unsigned i = 0; i < 3 * SIZE; i++) {
        offer(&bench, 3);
        assert_int_equal(pop(&bench), 1);
        virtqueue_push(&bench.queue, &bench.memory, bench.chain.head, 100 + i);
        assert_int_equal(get_u16(&bench, USED + 2), i + 1);
        memcpy(entry, bench.memory.base + USED + 4 + 8 * (i % SIZE), 8);
        assert_int_equal(entry[0], 3);
        assert_int_equal(entry[1], 100 + i);
    }
    assert_true(bench.dirty[0] == UINT64_C(1) << 3);
    bench_fini(&bench);
}

static void indices_wrap_at_65536(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, true, false);
    describe(&bench, DESC, 0, BUFFER, 8, 0, 0);
    for (unsigned i = 0; i < 70000; i++) {
        put_u16(&bench, AVAIL + 4 + 2 * SIZE, (uint16_t)i); /* used_event: interrupt each time */
        offer(&bench, 0);
        assert_int_equal(pop(&bench), 1);
        virtqueue_push(&bench.queue, &bench.memory, 0, 0);
        assert_true(virtqueue_interrupt_due(&bench.queue, &bench.memory));
    }
    assert_int_equal(pop(&bench), 0);
    bench_fini(&bench);
}

static void indirect_table_is_followed(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, false, true);
    describe(&bench, DESC, 0, BUFFER, 1, VRING_DESC_F_NEXT, 4); /* a direct one may precede it */
    describe(&bench, DESC, 4, INDIRECT, 3 * 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0);
    describe(&bench, INDIRECT, 0, BUFFER + 1, 2, VRING_DESC_F_NEXT, 2);
    describe(&bench, INDIRECT, 2, BUFFER + 3, 3, VRING_DESC_F_NEXT, 1);
    describe(&bench, INDIRECT, 1, BUFFER + 6, 4, VRING_DESC_F_WRITE, 0);
    offer(&bench, 0);
    assert_int_equal(pop(&bench), 1);
    assert_int_equal(bench.chain.readable, 3);
    assert_int_equal(bench.chain.readable_bytes, 6);
    assert_int_equal(bench.chain.writable_bytes, 4);
    bench_fini(&bench);
}

static void enable_refuses_bad_rings(void **unused)
{
    static const struct {
        uint16_t size;
        uint64_t desc, avail, used;
        enum virtqueue_fault fault;
    } cases[] = {
        {0, DESC, AVAIL, USED, VIRTQUEUE_BAD_SIZE},
        {7, DESC, AVAIL, USED, VIRTQUEUE_BAD_SIZE},
        {512, DESC, AVAIL, USED, VIRTQUEUE_BAD_SIZE},
        {0xFFFF, DESC, AVAIL, USED, VIRTQUEUE_BAD_SIZE},
        {8, DESC + 8, AVAIL, USED, VIRTQUEUE_MISALIGNED},
        {8, DESC, AVAIL + 1, USED, VIRTQUEUE_MISALIGNED},
        {8, DESC, AVAIL, USED + 2, VIRTQUEUE_MISALIGNED},
        {8, RAM_BYTES - 112, AVAIL, USED, VIRTQUEUE_RING_OUTSIDE},
        {8, DESC, RAM_BYTES - 20, USED, VIRTQUEUE_RING_OUTSIDE},
        {8, DESC, AVAIL, RAM_BYTES - 68, VIRTQUEUE_RING_OUTSIDE},
        {8, UINT64_MAX - 15, AVAIL, USED, VIRTQUEUE_RING_OUTSIDE},
        {8, DESC, UINT64_MAX - 1, USED, VIRTQUEUE_RING_OUTSIDE},
        {8, DESC, AVAIL, UINT64_MAX - 3, VIRTQUEUE_RING_OUTSIDE},
    };
    struct bench bench;

    (void)unused;
    bench_init(&bench, false, false);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        virtqueue_init(&bench.queue, cases[i].size);
        bench.queue.descriptors_gpa = cases[i].desc;
        bench.queue.available_gpa = cases[i].avail;
        bench.queue.used_gpa = cases[i].used;
        assert_int_equal(virtqueue_enable(&bench.queue, &bench.memory, true, true), -EPROTO);
        assert_int_equal(bench.queue.fault, cases[i].fault);
        assert_int_equal(pop(&bench), -EPROTO);
    }
    virtqueue_init(&bench.queue, 8); /* rings that end as near to the end of RAM as alignment lets them are good */
    bench.queue.descriptors_gpa = RAM_BYTES - 128;
    bench.queue.available_gpa = RAM_BYTES - 22;
    bench.queue.used_gpa = RAM_BYTES - 72;
    assert_int_equal(virtqueue_enable(&bench.queue, &bench.memory, true, true), 0);
    bench_fini(&bench);
}

static void index_jump_breaks(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, false, false);
    describe(&bench, DESC, 0, BUFFER, 8, 0, 0);
    put_u16(&bench, AVAIL + 2, SIZE + 1);
    assert_int_equal(virtqueue_waiting(&bench.queue, &bench.memory), SIZE + 1);
    assert_breaks(&bench, VIRTQUEUE_INDEX_JUMP);
    bench_fini(&bench);
    bench_init(&bench, false, false);
    put_u16(&bench, AVAIL + 2, 0xFFFF); /* backwards */
    assert_breaks(&bench, VIRTQUEUE_INDEX_JUMP);
    bench_fini(&bench);
}

static void hostile_chains_break_each_in_its_way(void **unused)
{
    static const struct {
        enum virtqueue_fault fault;
        bool no_indirect;
        uint16_t head;
        struct vring_desc table[3];    /* descriptors 0 to 2 */
        struct vring_desc indirect[2]; /* at INDIRECT */
    } cases[] = {
        {.fault = VIRTQUEUE_HEAD_OUTSIDE, .head = SIZE},
        {.fault = VIRTQUEUE_HEAD_OUTSIDE, .head = 0xFFFF},
        {.fault = VIRTQUEUE_HEAD_OUTSIDE, .table = {{BUFFER, 1, VRING_DESC_F_NEXT, SIZE}}},
        {.fault = VIRTQUEUE_CHAIN_LOOP,
         .no_indirect = true,
         .table = {{BUFFER, 1, VRING_DESC_F_NEXT, 1}, {BUFFER, 1, VRING_DESC_F_NEXT, 0}}},
        {.fault = VIRTQUEUE_CHAIN_LOOP, .table = {{BUFFER, 1, VRING_DESC_F_NEXT, 0}}},
        {.fault = VIRTQUEUE_BUFFER_OUTSIDE, .table = {{RAM_BYTES - 7, 8, 0, 0}}},
        {.fault = VIRTQUEUE_BUFFER_OUTSIDE, .table = {{RAM_BYTES, 1, 0, 0}}},
        {.fault = VIRTQUEUE_BUFFER_OUTSIDE, .table = {{UINT64_MAX, 2, 0, 0}}},
        {.fault = VIRTQUEUE_BUFFER_OUTSIDE, .table = {{BUFFER, UINT32_MAX, VRING_DESC_F_WRITE, 0}}},
        {.fault = VIRTQUEUE_BUFFER_EMPTY, .table = {{BUFFER, 0, 0, 0}}},
        {.fault = VIRTQUEUE_BUFFER_ORDER,
         .table = {{BUFFER, 1, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1}, {BUFFER, 1, 0, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_REFUSED,
         .no_indirect = true,
         .table = {{INDIRECT, 16, VRING_DESC_F_INDIRECT, 0}},
         .indirect = {{BUFFER, 1, 0, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_REFUSED,
         .table = {{INDIRECT, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1}, {BUFFER, 1, 0, 0}},
         .indirect = {{BUFFER, 1, 0, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_REFUSED, /* nested, into itself */
         .table = {{INDIRECT, 16, VRING_DESC_F_INDIRECT, 0}},
         .indirect = {{INDIRECT, 16, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_SIZE, .table = {{INDIRECT, 0, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_SIZE, .table = {{INDIRECT, 24, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_SIZE, .table = {{INDIRECT, (SIZE + 1) * 16, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_SIZE, .table = {{INDIRECT, 0xFFFFFFF0u, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_SIZE, .table = {{RAM_BYTES - 8, 16, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_INDIRECT_SIZE, .table = {{UINT64_MAX - 7, 16, VRING_DESC_F_INDIRECT, 0}}},
        {.fault = VIRTQUEUE_HEAD_OUTSIDE, /* next beyond the indirect table, though inside the queue's */
         .table = {{INDIRECT, 32, VRING_DESC_F_INDIRECT, 0}},
         .indirect = {{BUFFER, 1, VRING_DESC_F_NEXT, 2}}},
        {.fault = VIRTQUEUE_CHAIN_LOOP,
         .table = {{INDIRECT, 32, VRING_DESC_F_INDIRECT, 0}},
         .indirect = {{BUFFER, 1, VRING_DESC_F_NEXT, 1}, {BUFFER, 1, VRING_DESC_F_NEXT, 0}}},
    };

    (void)unused;
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench bench;

        bench_init(&bench, false, !cases[i].no_indirect);
        memcpy(bench.memory.base + DESC, cases[i].table, sizeof(cases[i].table));
        memcpy(bench.memory.base + INDIRECT, cases[i].indirect, sizeof(cases[i].indirect));
        offer(&bench, cases[i].head);
        assert_breaks(&bench, cases[i].fault);
        assert_true(strlen(virtqueue_fault_text(cases[i].fault)) > 10);
        bench_fini(&bench);
    }
}

static void more_buffers_than_the_queue_breaks(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, false, true);
    for (uint16_t i = 0; i < SIZE - 1; i++)
        describe(&bench, DESC, i, BUFFER, 1, VRING_DESC_F_NEXT, i + 1);
    describe(&bench, DESC, SIZE - 1, INDIRECT, 32, VRING_DESC_F_INDIRECT, 0);
    describe(&bench, INDIRECT, 0, BUFFER, 1, VRING_DESC_F_NEXT, 1);
    describe(&bench, INDIRECT, 1, BUFFER, 1, 0, 0);
    offer(&bench, 0);
    assert_breaks(&bench, VIRTQUEUE_CHAIN_TOO_LONG);
    bench_fini(&bench);
}

static void interrupts_follow_the_flag_without_event_idx(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, false, false);
    describe(&bench, DESC, 0, BUFFER, 8, 0, 0);
    assert_false(virtqueue_interrupt_due(&bench.queue, &bench.memory));
    virtqueue_push(&bench.queue, &bench.memory, 0, 0);
    assert_true(virtqueue_interrupt_due(&bench.queue, &bench.memory));
    assert_false(virtqueue_interrupt_due(&bench.queue, &bench.memory));
    put_u16(&bench, AVAIL, VRING_AVAIL_F_NO_INTERRUPT);
    virtqueue_push(&bench.queue, &bench.memory, 0, 0);
    assert_false(virtqueue_interrupt_due(&bench.queue, &bench.memory));
    virtqueue_set_notify(&bench.queue, &bench.memory, false);
    assert_int_equal(get_u16(&bench, USED), VRING_USED_F_NO_NOTIFY);
    virtqueue_set_notify(&bench.queue, &bench.memory, true);
    assert_int_equal(get_u16(&bench, USED), 0);
    bench_fini(&bench);
}

static void interrupts_follow_the_event_index(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, true, false);
    put_u16(&bench, AVAIL, VRING_AVAIL_F_NO_INTERRUPT); /* means nothing with EVENT_IDX */
    put_u16(&bench, AVAIL + 4 + 2 * SIZE, 2);           /* interrupt when entry 2 has been used */
    for (unsigned i = 0; i < 6; i++) {
        virtqueue_push(&bench.queue, &bench.memory, 0, 0);
        assert_int_equal(virtqueue_interrupt_due(&bench.queue, &bench.memory), i == 2);
    }
    put_u16(&bench, AVAIL + 4 + 2 * SIZE, 7);
    for (unsigned i = 0; i < 3; i++) /* entries 6, 7, 8 in one go pass the index */
        virtqueue_push(&bench.queue, &bench.memory, 0, 0);
    assert_true(virtqueue_interrupt_due(&bench.queue, &bench.memory));
    bench_fini(&bench);
}

static void notify_event_index_matches_what_a_driver_tests(void **unused)
{
    struct bench bench;
    uint16_t event;

    (void)unused;
    bench_init(&bench, true, false);
    describe(&bench, DESC, 0, BUFFER, 8, 0, 0);
    for (unsigned i = 0; i < 5; i++) {
        offer(&bench, 0);
        pop(&bench);
    }
    virtqueue_set_notify(&bench.queue, &bench.memory, true);
    event = get_u16(&bench, USED + 4 + 8 * SIZE);
    assert_true(vring_need_event(event, 6, 5));
    virtqueue_set_notify(&bench.queue, &bench.memory, false);
    event = get_u16(&bench, USED + 4 + 8 * SIZE);
    for (unsigned ahead = 6; ahead < 5 + 60000; ahead += 7)
        assert_false(vring_need_event(event, (uint16_t)ahead, 5));
    bench_fini(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chain_gathers_and_scatters_across_buffers),
        cmocka_unit_test(push_fills_the_used_ring_and_marks_it),
        cmocka_unit_test(indices_wrap_at_65536),
        cmocka_unit_test(indirect_table_is_followed),
        cmocka_unit_test(enable_refuses_bad_rings),
        cmocka_unit_test(index_jump_breaks),
        cmocka_unit_test(hostile_chains_break_each_in_its_way),
        cmocka_unit_test(more_buffers_than_the_queue_breaks),
        cmocka_unit_test(interrupts_follow_the_flag_without_event_idx),
        cmocka_unit_test(interrupts_follow_the_event_index),
        cmocka_unit_test(notify_event_index_matches_what_a_driver_tests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
