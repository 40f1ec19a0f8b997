/* What a peer may put into the log: every kind at its right size passes, anything else is refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <linux/kvm.h>

#include "tests/unit/words.h"
#include "vmm/cpuid.h"
#include "vmm/event.h"
#include "vmm/guest_clock.h"
#include "vmm/guest_memory.h"
#include "vmm/time_pack.h"
#include "vmm/virtio_blk.h"

static _Alignas(8) uint8_t payload[CHANNEL_PAYLOAD_MAX_BYTES];

static int check(uint16_t kind, uint32_t bytes)
{
    struct channel_record record = { .lsn = 1, .kind = kind, .bytes = bytes, .payload = payload };

    return event_check(&record);
}

static void event_fixed_kinds_pass_at_their_size_only(void **state)
{
    const struct {
        uint16_t kind;
        uint32_t bytes;
    } kinds[] = {
        { EVENT_OUTPUT, sizeof(struct event_output) },     { EVENT_PROGRESS, sizeof(struct event_progress) },
        { EVENT_SYNC, sizeof(struct vcpu_state) },
        { EVENT_VERIFY, sizeof(struct vcpu_registers) },   { EVENT_SEGMENT, sizeof(struct event_segment) },
        { EVENT_END, sizeof(struct event_end) },           { EVENT_HANDOVER, sizeof(struct event_handover) },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        assert_int_equal(check(kinds[i].kind, kinds[i].bytes), 0);
        assert_int_equal(check(kinds[i].kind, kinds[i].bytes - 1), -EBADMSG);
        assert_int_equal(check(kinds[i].kind, kinds[i].bytes + 8), -EBADMSG);
        assert_int_equal(check(kinds[i].kind, 0), -EBADMSG);
    }
}

static void event_sync_ends_where_zeroes_begin(void **state)
{
    (void)state;
    for (uint32_t bytes = EVENT_SYNC_BYTES_MIN; bytes <= sizeof(struct vcpu_state); bytes += 8) {
        assert_int_equal(check(EVENT_SYNC, bytes), 0);
        assert_int_equal(check(EVENT_SYNC, bytes + 4), -EBADMSG);
    }
    assert_int_equal(check(EVENT_SYNC, EVENT_SYNC_BYTES_MIN - 8), -EBADMSG);
}

static void event_times_may_be_several(void **state)
{
    (void)state;
    memset(payload, 0, TIME_PACK_BYTES_MAX + 2);
    assert_int_equal(check(EVENT_TIME, 0), -EBADMSG);
    assert_int_equal(check(EVENT_TIME, sizeof(struct event_time) - 1), -EBADMSG);
    assert_int_equal(check(EVENT_TIME, sizeof(struct event_time)), 0);
    assert_int_equal(check(EVENT_TIME, sizeof(struct event_time) + 1), -EBADMSG); /* half a look */
    assert_int_equal(check(EVENT_TIME, sizeof(struct event_time) + 2), 0);
    assert_int_equal(check(EVENT_TIME, TIME_PACK_BYTES_MAX), 0);
    assert_int_equal(check(EVENT_TIME, TIME_PACK_BYTES_MAX + 2), -EBADMSG);
}

static void event_disk_answers_must_be_possible(void **state)
{
    struct event_disk *disk = (void *)payload;

    (void)state;
    memset(payload, 0, sizeof(*disk));
    assert_int_equal(check(EVENT_DISK, sizeof(*disk)), 0);
    assert_int_equal(check(EVENT_DISK, sizeof(*disk) - 1), -EBADMSG);
    assert_int_equal(check(EVENT_DISK, sizeof(*disk) + 512), -EBADMSG);
    disk->bytes = 512;
    assert_int_equal(check(EVENT_DISK, sizeof(*disk) + 512), 0);
    assert_int_equal(check(EVENT_DISK, sizeof(*disk)), -EBADMSG);
    disk->status = VIRTIO_BLK_IOERR; /* an error brings no data */
    assert_int_equal(check(EVENT_DISK, sizeof(*disk) + 512), -EBADMSG);
    disk->bytes = 0;
    assert_int_equal(check(EVENT_DISK, sizeof(*disk)), 0);
    disk->status = VIRTIO_BLK_UNSUPPORTED; /* is answered without the file */
    assert_int_equal(check(EVENT_DISK, sizeof(*disk)), -EBADMSG);
    disk->status = VIRTIO_BLK_OK;
    disk->bytes = UINT32_MAX - 7; /* would wrap */
    assert_int_equal(check(EVENT_DISK, sizeof(*disk) - 8), -EBADMSG);
    assert_int_equal(check(EVENT_DISK, sizeof(*disk)), -EBADMSG);
}

static void event_frame_and_link_have_no_other_flags(void **state)
{
    struct event_frame *frame = (void *)payload;
    struct event_link *link = (void *)payload;

    (void)state;
    memset(payload, 0, sizeof(*frame));
    assert_int_equal(check(EVENT_FRAME, sizeof(*frame) + 13), -EBADMSG);
    assert_int_equal(check(EVENT_FRAME, sizeof(*frame) + 14), 0);
    assert_int_equal(check(EVENT_FRAME, sizeof(*frame) + EVENT_FRAME_MAX_BYTES), 0);
    assert_int_equal(check(EVENT_FRAME, sizeof(*frame) + EVENT_FRAME_MAX_BYTES + 1), -EBADMSG);
    frame->flags = EVENT_FRAME_CHECKSUM_RIGHT;
    assert_int_equal(check(EVENT_FRAME, sizeof(*frame) + 60), 0);
    frame->flags = 2;
    assert_int_equal(check(EVENT_FRAME, sizeof(*frame) + 60), -EBADMSG);
    assert_int_equal(check(EVENT_LINK, sizeof(*link)), -EBADMSG);
    link->up = 1;
    assert_int_equal(check(EVENT_LINK, sizeof(*link)), 0);
    assert_int_equal(check(EVENT_LINK, sizeof(*link) - 1), -EBADMSG);
}

static void event_places_name_a_clock_that_has_places(void **state)
{
    struct event_place *place = (void *)payload;
    struct event_start *start = (void *)payload;

    (void)state;
    memset(payload, 0, sizeof(*place));
    assert_int_equal(check(EVENT_PLACE, sizeof(*place)), -EBADMSG);
    place->clock = GUEST_CLOCK_STEP;
    assert_int_equal(check(EVENT_PLACE, sizeof(*place)), 0);
    assert_int_equal(check(EVENT_PLACE, sizeof(*place) + 8), -EBADMSG);
    place->clock = GUEST_CLOCK_AUTO;
    assert_int_equal(check(EVENT_PLACE, sizeof(*place)), -EBADMSG);
    memset(payload, 0, sizeof(*start));
    start->clock = GUEST_CLOCK_PMU;
    assert_int_equal(check(EVENT_START, sizeof(*start)), 0);
    start->clock = GUEST_CLOCK_AUTO; /* a wish, no clock */
    assert_int_equal(check(EVENT_START, sizeof(*start)), -EBADMSG);
}

static void event_unknown_kinds_are_refused(void **state)
{
    (void)state;
    assert_int_equal(check(0, 8), -EBADMSG);
    for (unsigned kind = EVENT_STRETCH + 1; kind < 65536; kind += 997)
        assert_int_equal(check((uint16_t)kind, 8), -EBADMSG);
}

static void event_start_count_must_match_its_size(void **state)
{
    struct event_start *start = (void *)payload;

    (void)state;
    memset(payload, 0, sizeof(*start));
    start->cpuid_entries = 3;
    assert_int_equal(check(EVENT_START, sizeof(*start) + 3 * sizeof(struct kvm_cpuid_entry2)), 0);
    assert_int_equal(check(EVENT_START, sizeof(*start) + 2 * sizeof(struct kvm_cpuid_entry2)), -EBADMSG);
    start->cpuid_entries = UINT32_MAX;
    assert_int_equal(check(EVENT_START, sizeof(*start) + 3 * sizeof(struct kvm_cpuid_entry2)), -EBADMSG);
    assert_int_equal(check(EVENT_START, 4), -EBADMSG);
}

static void event_pages_must_be_whole(void **state)
{
    struct event_page page = { .gpa = 8 * GUEST_PAGE_BYTES, .bytes = GUEST_PAGE_BYTES };
    uint32_t whole = sizeof(page) + GUEST_PAGE_BYTES;

    (void)state;
    memcpy(payload, &page, sizeof(page));
    assert_int_equal(check(EVENT_PAGES, whole), 0);
    assert_int_equal(check(EVENT_PAGES, whole - 1), -EBADMSG);
    assert_int_equal(check(EVENT_PAGES, sizeof(page) - 1), -EBADMSG);
    page.gpa++;
    memcpy(payload, &page, sizeof(page));
    assert_int_equal(check(EVENT_PAGES, whole), -EBADMSG);
    page = (struct event_page){ .gpa = 0, .bytes = 100 };
    memcpy(payload, &page, sizeof(page));
    assert_int_equal(check(EVENT_PAGES, sizeof(page) + 100), -EBADMSG);
    page = (struct event_page){ .gpa = 0, .bytes = GUEST_PAGE_BYTES, .form = 2 };
    memcpy(payload, &page, sizeof(page));
    assert_int_equal(check(EVENT_PAGES, whole), -EBADMSG);
}

static int check_pages(uint64_t position, uint32_t bytes)
{
    struct channel_record record = {
        .lsn = 1, .position = position, .kind = EVENT_PAGES, .bytes = bytes, .payload = payload
    };
    int rc;

    words_begin();
    rc = event_check(&record);
    words_end();
    return rc;
}

static void event_page_has_the_words_that_it_names(void **state)
{
    struct {
        struct event_page head;
        uint64_t words[520];
    } *page = (void *)payload;

    (void)state;
    for (unsigned count = 0; count <= 512; count++) { /* the first words of the page */
        unsigned stretches = (count + 63) / 64;
        uint32_t bytes = 8 * (1 + stretches + count);

        page->head = (struct event_page){ .gpa = 8 * GUEST_PAGE_BYTES, .form = EVENT_PAGE_DELTA, .bytes = bytes };
        page->words[0] = (1u << stretches) - 1;
        for (unsigned i = 1; i <= stretches; i++)
            page->words[i] = i < stretches || count % 64 == 0 ? UINT64_MAX : ~(UINT64_MAX << count % 64);
        assert_int_equal(check_pages(1, 16 + bytes), bytes <= EVENT_DELTA_BYTES_MAX ? 0 : -EBADMSG);
        assert_int_equal(check_pages(0, 16 + bytes), -EBADMSG); /* in a transfer */
        assert_int_equal(check_pages(1, 16 + bytes - 1), -EBADMSG);
        page->head.bytes += 8; /* one more than it names */
        assert_int_equal(check_pages(1, 16 + bytes + 8), -EBADMSG);
        page->head.bytes = 8 * stretches; /* not even all the stretches */
        assert_int_equal(check_pages(1, 16 + 8 * stretches), -EBADMSG);
    }
    page->head.bytes = 8;
    page->words[0] = 1u << EVENT_STRETCHES; /* beyond the page */
    assert_int_equal(check_pages(1, 16 + 8), -EBADMSG);
    page->words[0] = 0;
    assert_int_equal(check_pages(1, 16 + 8), 0);
    page->head.bytes = 4;
    assert_int_equal(check_pages(1, 16 + 4), -EBADMSG);
}

static void event_pages_are_no_more_than_fit_when_whole(void **state)
{
    struct event_page *pages = (void *)payload;

    (void)state;
    for (uint64_t i = 0; i <= PAGES_PER_RECORD; i++)
        pages[i] = (struct event_page){ .gpa = i * GUEST_PAGE_BYTES };
    assert_int_equal(check_pages(1, PAGES_PER_RECORD * sizeof(*pages)), 0);
    assert_int_equal(check_pages(1, (PAGES_PER_RECORD + 1) * sizeof(*pages)), -EBADMSG);
}

static void event_random_bytes_never_read_beyond_the_payload(void **state)
{
    unsigned seed = 20;

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    for (int round = 0; round < 200000; round++) {
        size_t bytes = (size_t)rand() % 96;
        uint8_t *exact = malloc(bytes ? bytes : 1); /* a heap block of its own: sanitizers see a byte too far */
        struct channel_record record = { .kind = EVENT_PAGES, .bytes = (uint32_t)bytes, .payload = exact };

        for (size_t i = 0; i < bytes; i++)
            exact[i] = (uint8_t)(rand() % 3 ? 0 : rand());
        if (bytes % 16 != 0)
            assert_int_equal(event_check(&record), -EBADMSG); /* pages that fit here carry no bytes: 16 each */
        else
            (void)event_check(&record);
        free(exact);
    }
}

static void count_value(void *ctx, const char *name, uint64_t value)
{
    (void)value;
    assert_true(strlen(name) > 0);
    ++*(unsigned *)ctx;
}

static void count_text(void *ctx, const char *name, const char *text)
{
    assert_true(strlen(name) > 0);
    for (; *text != '\0'; text++)
        assert_in_range((uint8_t)*text, 0x20, 0x7e);
    ++*(unsigned *)ctx;
}

/* Whatever the bytes, if the record passes it can be read, in a heap block of its own size, and its texts print. */
static void event_of_random_bytes_that_passes_can_be_read(void **state)
{
    const uint32_t sizes[] = { 8, 14, sizeof(struct event_place), sizeof(struct event_stretch), sizeof(struct event_output),
                               sizeof(struct event_machine), 16, 24, 60, 1500, sizeof(struct event_start) + 2 * 40,
                               16 + 4096, sizeof(struct vcpu_state),
                               sizeof(struct vcpu_registers), sizeof(struct event_segment) };
    uint32_t passed = 0;
    unsigned seed = 21;

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    words_begin();
    for (int round = 0; round < 20000; round++) {
        uint16_t kind = (uint16_t)(1 + rand() % EVENT_STRETCH);
        uint32_t bytes = sizes[(size_t)rand() % (sizeof(sizes) / sizeof(sizes[0]))];
        uint8_t *exact = malloc(bytes);
        struct channel_record record = { .lsn = 1, .kind = kind, .bytes = bytes, .payload = exact };
        unsigned values = 0;
        const struct event_reader reader = {
            .ctx = &values, .number = count_value, .hex = count_value, .text = count_text
        };

        for (uint32_t i = 0; i < bytes; i++)
            exact[i] = (uint8_t)rand();
        if (kind == EVENT_START && bytes >= sizeof(struct event_start))
            *(struct event_start *)exact = (struct event_start){ .cpuid_entries = 2 };
        if (kind == EVENT_LINK)
            ((struct event_link *)exact)->up &= 1;
        if (kind == EVENT_PLACE && bytes == sizeof(struct event_place))
            ((struct event_place *)exact)->clock = 1 + (uint32_t)rand() % 2;
        if (kind == EVENT_FRAME)
            ((struct event_frame *)exact)->flags &= EVENT_FRAME_CHECKSUM_RIGHT;
        if (kind == EVENT_PAGES) /* one with bytes, or some without */
            for (uint32_t at = 0; at + sizeof(struct event_page) <= bytes && (at == 0 || bytes < 4096); at += 16)
                *(struct event_page *)(exact + at) =
                    (struct event_page){ .gpa = (uint64_t)rand() << 12, .bytes = bytes == 16 + 4096 ? 4096 : 0 };
        if (kind == EVENT_DISK && bytes >= sizeof(struct event_disk))
            *(struct event_disk *)exact = (struct event_disk){ .status = (uint32_t)rand() % 2 };
        if (kind == EVENT_SECTORS && bytes >= sizeof(struct event_sectors))
            *(struct event_sectors *)exact = (struct event_sectors){ .bytes = 512, .zero = (uint32_t)rand() % 2 };
        if (event_check(&record) == 0) {
            event_read(&record, &reader);
            assert_true(values > 0);
            passed |= 1u << kind;
        }
        free(exact);
    }
    words_end();
    for (uint16_t kind = 1; kind <= EVENT_STRETCH; kind++)
        if (!(passed >> kind & 1))
            fail_msg("no %s record has passed: the sizes above lack its own", event_name(kind));
}

/* RDTSCP, RDRAND, x2APIC and friends must not be seen; the invariant TSC must. */
static void cpuid_hides_what_is_not_the_same_twice(void **state)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[8];
    } table = { .head.nent = 8 };
    const uint32_t leaves[] = { 0, 1, 7, 0xd, 0x40000000, 0x80000001, 0x80000007, 0x8000000a };

    (void)state;
    for (unsigned i = 0; i < 8; i++)
        table.entries[i] = (struct kvm_cpuid_entry2){ .function = leaves[i], .eax = UINT32_MAX, .ebx = UINT32_MAX,
                                                      .ecx = UINT32_MAX, .edx = UINT32_MAX };
    cpuid_filter(&table.head);
    assert_int_equal(table.head.nent, 5);
    for (unsigned i = 0; i < table.head.nent; i++) {
        const struct kvm_cpuid_entry2 *e = &table.entries[i];

        if (e->function == 1) {
            assert_int_equal(e->ecx & (1u << 30 | 1u << 26 | 1u << 24 | 1u << 21 | 1u << 3), 0);
            assert_int_equal(e->edx & (1u << 9), 0);
            assert_int_equal(e->ebx >> 24, 0);
        }
        if (e->function == 7)
            assert_int_equal(e->ebx & (1u << 18 | 1u << 11 | 1u << 4 | 1u << 1), 0);
        if (e->function == 0x80000001)
            assert_int_equal(e->edx & (1u << 27), 0);
        if (e->function == 0x80000007)
            assert_int_equal(e->edx, 1u << 8);
    }
}

static void cpuid_tables_that_differ_are_refused_with_the_leaf(void **state)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[3];
    } table = { .head.nent = 3, .entries = { { .function = 0 }, { .function = 1 }, { .function = 0x80000001 } } };
    struct kvm_cpuid_entry2 theirs[3];
    uint32_t *const words[] = { &theirs[1].function, &theirs[1].index, &theirs[1].eax, &theirs[1].ebx, &theirs[1].ecx,
                                &theirs[1].edx };

    (void)state;
    memcpy(theirs, table.entries, sizeof(theirs));
    assert_int_equal(cpuid_compare(&table.head, theirs, 3), 0);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        for (unsigned bit = 0; bit < 32; bit++) {
            *words[i] ^= 1u << bit;
            words_begin();
            assert_int_equal(cpuid_compare(&table.head, theirs, 3), -EPROTO);
            assert_non_null(strstr(words_end(), "CPUID leaf 0x1 "));
            *words[i] ^= 1u << bit;
        }
    words_begin();
    assert_int_equal(cpuid_compare(&table.head, theirs, 2), -EPROTO);
    assert_non_null(strstr(words_end(), "CPUID leaf 0x80000001 "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(event_fixed_kinds_pass_at_their_size_only),
        cmocka_unit_test(event_sync_ends_where_zeroes_begin),
        cmocka_unit_test(event_times_may_be_several),
        cmocka_unit_test(event_disk_answers_must_be_possible),
        cmocka_unit_test(event_frame_and_link_have_no_other_flags),
        cmocka_unit_test(event_unknown_kinds_are_refused),
        cmocka_unit_test(event_places_name_a_clock_that_has_places),
        cmocka_unit_test(event_start_count_must_match_its_size),
        cmocka_unit_test(event_pages_must_be_whole),
        cmocka_unit_test(event_page_has_the_words_that_it_names),
        cmocka_unit_test(event_pages_are_no_more_than_fit_when_whole),
        cmocka_unit_test(event_random_bytes_never_read_beyond_the_payload),
        cmocka_unit_test(event_of_random_bytes_that_passes_can_be_read),
        cmocka_unit_test(cpuid_hides_what_is_not_the_same_twice),
        cmocka_unit_test(cpuid_tables_that_differ_are_refused_with_the_leaf),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
