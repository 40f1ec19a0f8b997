/* Pages of forced syncs: whatever was written, and whatever the other guest has made of its memory meanwhile, it has the same
 * pages afterwards; and of what it has seen before only the words that have changed travel. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/words.h"
#include "vmm/pages.h"

#define PAGES (3 * PAGE_COPIES_PLACES)
#define WORDS (PAGES / 64)

struct end {
    struct guest_memory memory;
    struct page_copies *copies;
};

static struct end from, to;
static uint64_t marked[WORDS], travelled[WORDS];
static uint64_t random_state;
static size_t bytes_sent, pages_sent, delta_pages;

static void open_end(struct end *end)
{
    end->memory.bytes = (uint64_t)PAGES * GUEST_PAGE_BYTES;
    end->memory.base = mmap(NULL, end->memory.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(end->memory.base, MAP_FAILED);
    assert_int_equal(page_copies_open(&end->copies), 0);
}

static int open_both(void **state)
{
    (void)state;
    open_end(&from);
    open_end(&to);
    memset(marked, 0, sizeof(marked));
    return 0;
}

static int close_both(void **state)
{
    (void)state;
    for (struct end *end = &from; end != NULL; end = end == &from ? &to : NULL) {
        munmap(end->memory.base, end->memory.bytes);
        page_copies_close(end->copies);
    }
    return 0;
}

static void write_word(uint64_t gpa, uint64_t value)
{
    memcpy(from.memory.base + gpa, &value, sizeof(value));
    marked[gpa / GUEST_PAGE_BYTES / 64] |= UINT64_C(1) << (gpa / GUEST_PAGE_BYTES % 64);
}

/* As event_check sees it, then as a backup takes it. */
static void take_record(const uint8_t *payload, size_t bytes)
{
    struct channel_record record = {
        .lsn = 1, .position = 1, .kind = EVENT_PAGES, .bytes = (uint32_t)bytes, .payload = payload
    };
    size_t whole_bytes;
    uint8_t *whole;

    assert_int_equal(event_check(&record), 0);
    whole_bytes = pages_whole_bytes(payload, bytes);
    assert_in_range(whole_bytes, 1, CHANNEL_PAYLOAD_MAX_BYTES);
    whole = malloc(whole_bytes);
    assert_int_equal(pages_make_whole(to.copies, payload, bytes, whole), 0);
    record.payload = whole;
    record.bytes = (uint32_t)whole_bytes;
    assert_int_equal(event_check(&record), 0);
    assert_int_equal(pages_load(&to.memory, whole, whole_bytes), 0);
    free(whole);
}

static void sync_all(void)
{
    struct pages_batch batch;
    uint64_t page = 0;

    bytes_sent = pages_sent = delta_pages = 0;
    memcpy(travelled, marked, sizeof(marked));
    while (pages_take(&batch, &from.memory, from.copies, marked, &page)) {
        uint8_t *payload = malloc(batch.bytes);

        pages_write(&batch, &from.memory, from.copies, payload);
        take_record(payload, batch.bytes);
        free(payload);
        bytes_sent += batch.bytes;
        pages_sent += batch.count;
        for (unsigned i = 0; i < batch.count; i++)
            delta_pages += batch.heads[i].form == EVENT_PAGE_DELTA;
    }
    for (uint64_t i = 0; i < PAGES; i++)
        if (travelled[i / 64] >> (i % 64) & 1)
            assert_memory_equal(from.memory.base + i * GUEST_PAGE_BYTES, to.memory.base + i * GUEST_PAGE_BYTES,
                                GUEST_PAGE_BYTES);
}

static void only_the_words_that_changed_travel_again(void **state)
{
    const uint64_t gpa = 5 * GUEST_PAGE_BYTES;

    (void)state;
    for (unsigned word = 0; word < 512; word++)
        write_word(gpa + 8 * word, word + 1);
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page) + GUEST_PAGE_BYTES);
    write_word(gpa, 7); /* two words of the first stretch, the last of the last one */
    write_word(gpa + 504, 7);
    write_word(gpa + 4088, 7);
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page) + 8 * (1 + 2 + 3));
    write_word(gpa + 504, 7); /* as it was */
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page) + 8);
    for (unsigned word = 0; word < (EVENT_DELTA_BYTES_MAX - 8) / 8 - 6; word++) /* in six stretches */
        write_word(gpa + 8 * word, 1000 + word);
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page) + EVENT_DELTA_BYTES_MAX);
    for (unsigned word = 0; word < (EVENT_DELTA_BYTES_MAX - 8) / 8 - 5; word++)
        write_word(gpa + 8 * word, 2000 + word);
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page) + GUEST_PAGE_BYTES);
    for (unsigned word = 0; word < 512; word++)
        write_word(gpa + 8 * word, 0);
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page));
    write_word(gpa, 1); /* a page of zeroes makes a copy, too */
    sync_all();
    assert_int_equal(bytes_sent, sizeof(struct event_page) + 8 * 3);
}

/* The other guest runs on: what it makes of its memory must not matter. */
static void scribble(uint64_t page)
{
    for (unsigned i = 0; i < 4; i++)
        to.memory.base[page * GUEST_PAGE_BYTES + test_random(&random_state) % GUEST_PAGE_BYTES] = (uint8_t)test_random(&random_state);
}

static void whatever_is_written_arrives(void **state)
{
    size_t deltas = 0, whole = 0;

    (void)state;
    random_state = test_seed("pages");
    for (unsigned round = 0; round < 400; round++) {
        unsigned pages = (unsigned)(test_random(&random_state) % (round % 40 == 0 ? 3000 : 60));

        for (unsigned i = 0; i < pages; i++) {
            /* Mostly the same few; and such as have one place between them. */
            uint64_t page = test_random(&random_state) % (i % 4 == 0 ? PAGE_COPIES_PLACES : 100) +
                            test_random(&random_state) % 3 * PAGE_COPIES_PLACES;
            unsigned kind = (unsigned)(test_random(&random_state) % 20);

            for (unsigned word = 0; word < GUEST_PAGE_BYTES / 8; word++)
                if (kind == 0 || (kind == 1 ? word % 8 == 0 : test_random(&random_state) % 128 == 0))
                    write_word(page * GUEST_PAGE_BYTES + 8 * word, kind == 0 ? 0 : test_random(&random_state));
            scribble(page);
        }
        sync_all();
        deltas += delta_pages;
        whole += pages_sent - delta_pages;
    }
    print_message("%zu pages as deltas, %zu whole\n", deltas, whole);
    assert_true(deltas > 2000 && whole > 2000);
}

static void after_a_transfer_no_copy_is_relied_on(void **state)
{
    (void)state;
    write_word(0, 1);
    sync_all();
    page_copies_clear(from.copies);
    page_copies_clear(to.copies);
    write_word(8, 1);
    sync_all();
    assert_int_equal(delta_pages, 0);
}

static void changes_of_a_page_that_never_came_are_refused(void **state)
{
    struct {
        struct event_page head;
        uint64_t stretches;
    } record = { { .gpa = PAGE_COPIES_PLACES * GUEST_PAGE_BYTES, .bytes = 8, .form = EVENT_PAGE_DELTA }, 0 };
    uint8_t whole[sizeof(struct event_page) + GUEST_PAGE_BYTES];

    (void)state;
    write_word(0, 1); /* has the place that this page would have */
    sync_all();
    words_begin();
    assert_int_equal(pages_make_whole(to.copies, &record, sizeof(record), whole), -EBADMSG);
    assert_non_null(strstr(words_end(), "0x4000000, which it has not brought before"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, open_both, close_both)
    const struct CMUnitTest tests[] = {
        TEST(only_the_words_that_changed_travel_again),
        TEST(whatever_is_written_arrives),
        TEST(after_a_transfer_no_copy_is_relied_on),
        TEST(changes_of_a_page_that_never_came_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
