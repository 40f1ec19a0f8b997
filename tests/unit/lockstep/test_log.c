/* `ftvmm log`: a log with every kind of record as text and as JSON; filters, sums, and logs that are not whole. */
#include "tests/unit/cmocka_prelude.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "channel/channel.h"
#include "tests/unit/words.h"
#include "vmm/event.h"
#include "vmm/guest_clock.h"
#include "vmm/log.h"

#define FILE_HEAD_BYTES 128
#define FRAME_BYTES     60

static char directory[] = "/tmp/ftvmm-log.XXXXXX";
static char path[64], address[80];

/* ---- making logs ---- */

static void *open_record(struct channel *log, uint16_t kind, uint64_t position, size_t bytes)
{
    void *payload;

    assert_int_equal(channel_reserve(log, kind, position, bytes, &payload), 0);
    memset(payload, 0, bytes);
    return payload;
}

static void put(struct channel *log, uint16_t kind, uint64_t position, const void *payload, size_t bytes)
{
    memcpy(open_record(log, kind, position, bytes), payload, bytes);
    channel_commit(log);
}

static void put_time(struct channel *log, uint64_t position, uint64_t time_ns)
{
    put(log, EVENT_TIME, position, &(struct event_time){ .time_ns = time_ns }, sizeof(struct event_time));
}

static void put_start(struct channel *log)
{
    static const char brand[48] = "Some CPU of 3 GHz";
    struct event_start *start =
        open_record(log, EVENT_START, 0, sizeof(*start) + 3 * sizeof(struct kvm_cpuid_entry2));
    struct kvm_cpuid_entry2 *leaves = (void *)(start + 1);

    *start = (struct event_start){ .unix_seconds = 1700000000, .verify = 1, .cpuid_entries = 3 };
    memset(start->rng_seed, 0xA5, sizeof(start->rng_seed));
    for (uint32_t i = 0; i < 3; i++) {
        leaves[i].function = 0x80000002 + i;
        memcpy(&leaves[i].eax, brand + 16 * i, 16);
    }
    channel_commit(log);
}

/* Two pages, one of zeroes. */
static void put_pages(struct channel *log, uint64_t position)
{
    uint8_t *at = open_record(log, EVENT_PAGES, position, 2 * sizeof(struct event_page) + 4096);

    *(struct event_page *)at = (struct event_page){ .gpa = 0x5000, .bytes = 0 };
    *(struct event_page *)(at + sizeof(struct event_page)) = (struct event_page){ .gpa = 0x9000, .bytes = 4096 };
    channel_commit(log);
}

static const uint8_t tcp_frame[FRAME_BYTES] = {
    0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6, 0x08, 0x00,                   /* Ethernet: IPv4 */
    0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6, 0, 0, 192, 168, 1, 2, 192, 168, 1, 50,      /* 46 bytes, TCP */
    0x9c, 0x40, 0x18, 0xeb, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0, 0, 0, 0, 0, 0, /* 40000 > 6379, push, ack */
    'I', 'N', 'C', 'R', 'x', '!',
};

static void put_frame(struct channel *log, uint64_t position)
{
    struct event_frame *frame = open_record(log, EVENT_FRAME, position, sizeof(*frame) + sizeof(tcp_frame));

    frame->flags = EVENT_FRAME_CHECKSUM_RIGHT;
    memcpy(frame + 1, tcp_frame, sizeof(tcp_frame));
    channel_commit(log);
}

static struct channel *log_create(void)
{
    struct channel_options options = {
        .address = address, .hello = { .vm = "web\x1b[2J", .generation = 7, .digest = { 0xab, 0xcd } }
    };
    struct channel *log;

    assert_int_equal(channel_open_sender(&log, &options), 0);
    return log;
}

/* Every kind once (TIME twice), 3 s of virtual time, positions 0 to 40. */
static void log_with_every_kind(void)
{
    struct channel *log = log_create();
    struct event_segment *segment;
    struct vcpu_registers *registers;
    struct event_machine *machine;

    put_start(log);
    put(log, EVENT_SECTORS, 0, &(struct event_sectors){ .offset = 0x10000, .bytes = 4096, .zero = 1 },
        sizeof(struct event_sectors));
    put_time(log, 1, 1000000000);
    put_frame(log, 2);
    put(log, EVENT_CONSOLE, 3, "ls\n\x03\"\\", 6);
    put(log, EVENT_OUTPUT, 4,
        &(struct event_output){ .frames_built = 11, .frames_held = 1, .digest = 0xfeedfacecafebeef },
        sizeof(struct event_output));
    put(log, EVENT_PROGRESS, 5, &(struct event_progress){ .frames_sent = 12 }, sizeof(struct event_progress));
    put_pages(log, 6);
    ((struct vcpu_state *)open_record(log, EVENT_SYNC, 6, sizeof(struct vcpu_state)))->regs.rip = 0x1234567;
    channel_commit(log);
    registers = open_record(log, EVENT_VERIFY, 7, sizeof(*registers));
    registers->regs.rip = 0x7654321;
    registers->sregs.cr3 = 0x3000;
    channel_commit(log);
    put(log, EVENT_SEGMENT_PAGES, 7, &(struct event_segment_page){ .page = 0x77, .digest = 1 },
        sizeof(struct event_segment_page));
    segment = open_record(log, EVENT_SEGMENT, 7, sizeof(*segment));
    segment->ram_digest = 0x1111222233334444;
    channel_commit(log);
    put_time(log, 30, 3000000000);
    put(log, EVENT_DISK, 33, &(struct event_disk){ .number = 3, .digest = 7 }, sizeof(struct event_disk));
    put(log, EVENT_LINK, 34, &(struct event_link){ .up = 0 }, sizeof(struct event_link));
    put(log, EVENT_PLACE, 34, &(struct event_place){ .count = 4711, .rip = 0x20048, .clock = GUEST_CLOCK_STEP },
        sizeof(struct event_place));
    machine = open_record(log, EVENT_MACHINE, 34, sizeof(*machine));
    machine->frames_built = 21;
    channel_commit(log);
    put(log, EVENT_HANDOVER, 35, &(struct event_handover){ .frames_sent = 12 }, sizeof(struct event_handover));
    put(log, EVENT_STRETCH, 35, &(struct event_stretch){ .number = 1234 }, sizeof(struct event_stretch));
    put(log, EVENT_END, 40,
        &(struct event_end){ .ram_digest = 0x5555666677778888, .vcpu_digest = 9, .reason = EVENT_END_HALTED },
        sizeof(struct event_end));
    channel_close(log);
}

#define EVERY_KIND_RECORDS 20

/* Progress at 1, 2, ...: small, so that places in the file are easily known: 64 bytes each. */
static void log_of_marks(uint64_t records, bool ended)
{
    struct channel *log = log_create();

    for (uint64_t i = 1; i <= records; i++)
        put(log, EVENT_PROGRESS, i, &(struct event_progress){ .frames_sent = i }, sizeof(struct event_progress));
    if (ended)
        put(log, EVENT_END, records + 1, &(struct event_end){ .reason = EVENT_END_STOPPED }, sizeof(struct event_end));
    channel_close(log);
}

/* ---- printing them ---- */

static char *printed; /* freed by the next one */
static const char *said;

static int print(const struct log_options *options)
{
    size_t bytes;
    FILE *out;
    int status;

    free(printed);
    out = open_memstream(&printed, &bytes);
    words_begin();
    status = log_print(options, out);
    said = words_end();
    fclose(out);
    return status;
}

static struct log_options everything(void)
{
    return (struct log_options){ .path = path, .to = UINT64_MAX };
}

static unsigned count_lines(const char *text)
{
    unsigned lines = 0;

    for (; *text != '\0'; text++)
        lines += *text == '\n';
    return lines;
}

/* The line that has `what`; fails the test if there is none. */
static const char *line_with(const char *what)
{
    static char line[8192];
    const char *at = strstr(printed, what), *end;

    if (at == NULL)
        fail_msg("nothing printed has '%s':\n%s", what, printed);
    while (at > printed && at[-1] != '\n')
        at--;
    end = strchrnul(at, '\n');
    snprintf(line, sizeof(line), "%.*s", (int)(end - at), at);
    return line;
}

static void expect_line(const char *what, const char *also)
{
    if (strstr(line_with(what), also) == NULL)
        fail_msg("the line with '%s' lacks '%s': %s", what, also, line_with(what));
}

static void log_text_says_what_each_record_holds(void **state)
{
    struct log_options options = everything();

    (void)state;
    log_with_every_kind();
    assert_int_equal(print(&options), 0);
    assert_string_equal(said, "");
    expect_line(" start ", "clock=\"2023-11-14T22:13:20Z\"");
    expect_line(" start ", "cpu=\"Some CPU of 3 GHz\"");
    assert_null(strstr(printed, "a5a5a5a5")); /* the guest's seed stays in the log */
    expect_line(" time ", "         3          1 time          time_ns=1000000000");
    expect_line(" frame ", "frame_bytes=60 checksum_right=1 frame=\"ipv4 tcp 192.168.1.2:40000 > 192.168.1.50:6379 PA data 6\"");
    expect_line(" console ", "typed=\"ls\\n\\x03\\\"\\\\\"");
    expect_line(" output ", "frames_built=11 frames_held=1 digest=0xfeedfacecafebeef");
    expect_line(" progress ", "frames_sent=12");
    expect_line(" pages ", "pages=2 zero_pages=1 delta_pages=0 first_gpa=0x0000000000005000 last_gpa=0x0000000000009000");
    expect_line(" sync ", "rip=0x0000000001234567");
    expect_line(" place ", "guest_clock=\"step\" count=4711 rip=0x0000000000020048");
    expect_line(" stretch ", "stretch=1234");
    expect_line(" verify ", "rip=0x0000000007654321");
    expect_line(" verify ", "cr3=0x0000000000003000");
    expect_line(" segment-pages ", "pages=1 first_gpa=0x0000000000077000");
    expect_line(" segment ", "ram_digest=0x1111222233334444");
    expect_line(" end ", "reason=\"halted\" ram_digest=0x5555666677778888");
}

static void log_json_has_an_object_for_each_record_of_every_kind(void **state)
{
    struct log_options options = everything();
    uint64_t seen = 0, lsn = 0;

    (void)state;
    log_with_every_kind();
    options.json = true;
    assert_int_equal(print(&options), 0);
    assert_int_equal(count_lines(printed), EVERY_KIND_RECORDS);
    for (char *rest = printed, *line; (line = strsep(&rest, "\n")) != NULL && *line != '\0';) {
        cJSON *object = cJSON_Parse(line);
        const char *kind = cJSON_GetStringValue(cJSON_GetObjectItem(object, "kind"));

        assert_non_null(kind);
        assert_int_equal((uint64_t)cJSON_GetNumberValue(cJSON_GetObjectItem(object, "lsn")), ++lsn);
        assert_true(cJSON_IsNumber(cJSON_GetObjectItem(object, "position")));
        if (strcmp(kind, "console") == 0)
            assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "typed")), "ls\\n\\x03\\\"\\\\");
        if (strcmp(kind, "output") == 0) /* more than a double holds */
            assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "digest")), "0xfeedfacecafebeef");
        seen |= UINT64_C(1) << event_kind_named(kind, strlen(kind));
        cJSON_Delete(object);
    }
    for (uint16_t kind = 1; kind < EVENT_KIND_ROOM; kind++)
        if (strcmp(event_name(kind), "unknown") != 0)
            assert_true(seen >> kind & 1); /* a new kind wants its record in log_with_every_kind */
}

static void log_kinds_choose_the_lines_and_not_the_sums(void **state)
{
    struct log_options options = everything();

    (void)state;
    log_with_every_kind();
    options.kinds = UINT64_C(1) << EVENT_TIME | UINT64_C(1) << EVENT_END;
    options.json = true;
    assert_int_equal(print(&options), 0);
    assert_int_equal(count_lines(printed), 3);
    options.json = false;
    assert_int_equal(print(&options), 0);
    assert_null(strstr(printed, "frames_built"));
    assert_non_null(line_with("records      20 in "));
}

static void log_positions_choose_lines_and_sums(void **state)
{
    struct log_options options = everything();

    (void)state;
    log_with_every_kind();
    options.from = 2;
    options.to = 6;
    assert_int_equal(print(&options), 0);
    assert_null(strstr(printed, " start "));
    assert_null(strstr(printed, " verify "));
    assert_non_null(line_with("records      6 in "));
    expect_line("positions ", " 2 to 6");
    expect_line("virtual time ", " 0.000000 s, from 1.000000 s to 1.000000 s"); /* no TIME in there */
    expect_line("state ", "read up to --to");
    options.to = 40;
    assert_int_equal(print(&options), 0);
    expect_line("state ", "whole");
    expect_line("virtual time ", " 2.000000 s, from 1.000000 s to 3.000000 s");
}

static uint64_t number_in(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);

    if (!cJSON_IsNumber(item))
        fail_msg("the summary has no number '%s'", name);
    return (uint64_t)cJSON_GetNumberValue(item);
}

static void log_summary_adds_up(void **state)
{
    struct log_options options = everything();
    struct stat status;
    uint64_t bytes = 0, records = 0;
    cJSON *root, *kind, *syncs;

    (void)state;
    log_with_every_kind();
    options.summary = options.json = true;
    assert_int_equal(print(&options), 0);
    assert_int_equal(count_lines(printed), 1);
    root = cJSON_Parse(printed);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(number_in(root, "file_bytes"), status.st_size - FILE_HEAD_BYTES);
    assert_int_equal(number_in(root, "record_bytes"), status.st_size - FILE_HEAD_BYTES); /* too short for a pad */
    assert_int_equal(number_in(root, "records"), EVERY_KIND_RECORDS);
    assert_int_equal(number_in(root, "first_lsn"), 1);
    assert_int_equal(number_in(root, "last_lsn"), EVERY_KIND_RECORDS);
    assert_int_equal(number_in(root, "first_position"), 0);
    assert_int_equal(number_in(root, "last_position"), 40);
    assert_int_equal(number_in(root, "first_time_ns"), 0);
    assert_int_equal(number_in(root, "last_time_ns"), 3000000000);
    assert_int_equal(number_in(root, "records_per_s"), EVERY_KIND_RECORDS / 3);
    assert_int_equal(number_in(root, "generation"), 7);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(root, "vm")), "web\\x1b[2J");
    syncs = cJSON_GetObjectItem(root, "forced_syncs");
    assert_int_equal(number_in(syncs, "count"), 1);
    assert_int_equal(number_in(syncs, "pages"), 2);
    assert_int_equal(number_in(syncs, "zero_pages"), 1);
    assert_int_equal(number_in(syncs, "most_pages"), 2);
    cJSON_ArrayForEach(kind, cJSON_GetObjectItem(root, "kinds")) {
        records += number_in(kind, "records");
        bytes += number_in(kind, "bytes");
    }
    assert_int_equal(records, EVERY_KIND_RECORDS);
    assert_int_equal(bytes, number_in(root, "record_bytes"));
    assert_int_equal(number_in(cJSON_GetObjectItem(cJSON_GetObjectItem(root, "kinds"), "time"), "records"), 2);
    cJSON_Delete(root);
}

static void log_cut_off_is_printed_as_far_as_it_goes(void **state)
{
    struct log_options options = everything();

    (void)state;
    options.json = true;
    for (unsigned cut = 0; cut < 2; cut++) { /* between two records, and within one */
        log_of_marks(20, true);
        assert_int_equal(truncate(path, FILE_HEAD_BYTES + 12 * 64 + (cut ? 40 : 0)), 0);
        assert_int_equal(print(&options), 1);
        assert_int_equal(count_lines(printed), 12);
        assert_non_null(strstr(said, "ends at position 12 without the guest's end"));
        if (cut)
            assert_non_null(strstr(said, "cut off at offset"));
    }
    log_of_marks(20, false);
    options.json = false;
    assert_int_equal(print(&options), 1);
    expect_line("state ", "cut off");
    assert_non_null(line_with("records      20 in 1280 bytes"));
}

static void damage(off_t at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void log_damaged_is_printed_up_to_the_damage(void **state)
{
    struct log_options options = everything();

    (void)state;
    log_of_marks(20, true);
    damage(FILE_HEAD_BYTES + 7 * 64 + 33);
    assert_int_equal(print(&options), 1);
    assert_non_null(strstr(said, "damaged at offset"));
    expect_line("state ", "damaged");
    expect_line("records ", " 7 in ");
    options.to = 5; /* what lies behind is not looked at */
    assert_int_equal(print(&options), 0);
    assert_string_equal(said, "");
}

static void log_of_another_kind_or_version_is_refused(void **state)
{
    struct log_options options = everything();
    uint32_t version = 99;
    int fd;

    (void)state;
    log_of_marks(3, true);
    damage(90); /* the head */
    assert_int_equal(print(&options), 1);
    assert_non_null(strstr(said, "head of the log is damaged"));
    log_of_marks(3, true);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, &version, sizeof(version), 8), (ssize_t)sizeof(version));
    close(fd);
    assert_int_equal(print(&options), 1);
    assert_non_null(strstr(said, "it speaks version 99"));
    options.path = "/etc/passwd";
    assert_int_equal(print(&options), 1);
    assert_non_null(strstr(said, "this is no log of ftvmm"));
    options.path = "/nonexistent/log";
    assert_int_equal(print(&options), 1);
    assert_string_equal(printed, "");
    assert_non_null(strstr(said, "cannot read the log: No such file"));
}

static void log_with_records_that_cannot_be_is_damaged(void **state)
{
    struct log_options options = everything();

    (void)state;
    for (unsigned wrong = 0; wrong < 4; wrong++) {
        struct channel *log = log_create();

        put_time(log, 10, 1000);
        switch (wrong) {
        case 0: put(log, 99, 11, "12345678", 8); break;         /* no such kind */
        case 1: put(log, EVENT_TIME, 11, "1234", 4); break;      /* of another size */
        case 2: put_time(log, 9, 2000); break;                   /* back in positions */
        default: put_time(log, 11, 999); break;                  /* back in time */
        }
        put(log, EVENT_END, 12, &(struct event_end){ 0 }, sizeof(struct event_end));
        channel_close(log);
        assert_int_equal(print(&options), 1);
        expect_line("state ", "damaged");
        expect_line("records ", " 1 in ");
        assert_true(strlen(said) > 0);
    }
}

static void log_that_cannot_be_printed_is_an_error(void **state)
{
    struct log_options options = everything();
    FILE *full = fopen("/dev/full", "w");

    (void)state;
    log_of_marks(20, true);
    words_begin();
    assert_int_equal(log_print(&options, full), 1);
    said = words_end();
    fclose(full);
    assert_non_null(strstr(said, "not taken"));
}

static int group_setup(void **state)
{
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/log", directory);
    snprintf(address, sizeof(address), "file:%s", path);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    free(printed);
    unlink(path);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_text_says_what_each_record_holds),
        cmocka_unit_test(log_json_has_an_object_for_each_record_of_every_kind),
        cmocka_unit_test(log_kinds_choose_the_lines_and_not_the_sums),
        cmocka_unit_test(log_positions_choose_lines_and_sums),
        cmocka_unit_test(log_summary_adds_up),
        cmocka_unit_test(log_cut_off_is_printed_as_far_as_it_goes),
        cmocka_unit_test(log_damaged_is_printed_up_to_the_damage),
        cmocka_unit_test(log_of_another_kind_or_version_is_refused),
        cmocka_unit_test(log_with_records_that_cannot_be_is_damaged),
        cmocka_unit_test(log_that_cannot_be_printed_is_an_error),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
