/* The command line of replay and log, and where the fleet is: what is understood, and what is refused with a sentence. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>

#include "tests/unit/words.h"
#include "vmm/event.h"
#include "vmm/options.h"

#define ARGUMENTS_MAX 16

static struct options options;
static const char *said;

/* Parses a line of words as main would. The words live until the next call. */
static int parse(const char *line)
{
    static char words[512];
    char *argv[ARGUMENTS_MAX + 1] = { "ftvmm" }, *rest = words;
    int argc = 1, status = 0, rc;

    snprintf(words, sizeof(words), "%s", line);
    while (argc < ARGUMENTS_MAX && (argv[argc] = strsep(&rest, " ")) != NULL)
        argc++;
    optind = 1;
    words_begin();
    rc = options_parse(&options, argc, argv, &status);
    said = words_end();
    if (rc < 0)
        assert_int_equal(status, 2);
    return rc;
}

static void expect_refused(const char *line, const char *sentence)
{
    assert_int_equal(parse(line), -EINVAL);
    if (strstr(said, sentence) == NULL)
        fail_msg("'%s' is refused without '%s': %s", line, sentence, said);
    options_free(&options);
}

static void options_replay_stops_and_dumps_where_it_is_told(void **state)
{
    (void)state;
    assert_int_equal(parse("replay --kernel k --until 4711 --dump /tmp/d /tmp/log"), 0);
    assert_int_equal(options.command, COMMAND_REPLAY);
    assert_int_equal(options.lockstep.until_position, 4711);
    assert_string_equal(options.dump_path, "/tmp/d");
    assert_string_equal(options.peer, "file:/tmp/log");
    options_free(&options);
    assert_int_equal(parse("replay --kernel k /tmp/log"), 0);
    assert_int_equal(options.lockstep.until_position, 0); /* to the end */
    assert_null(options.dump_path);
    options_free(&options);
}

static void options_until_and_dump_are_for_replay_only(void **state)
{
    (void)state;
    expect_refused("run --kernel k --until 5", "belong to replay");
    expect_refused("record --kernel k --dump d /tmp/log", "belong to replay");
    expect_refused("log --dump d /tmp/log", "belong to replay");
    expect_refused("replay --kernel k --until 0 /tmp/log", "--until takes a whole number from 1");
    expect_refused("replay --kernel k --until -5 /tmp/log", "--until takes a whole number from 1");
    expect_refused("replay --kernel k --until 99999999999999999999 /tmp/log", "--until takes");
    expect_refused("replay --kernel k --until 5", "needs the name of a file");
}

static void options_gdb_is_for_replay_and_a_kept_log_for_backups(void **state)
{
    (void)state;
    assert_int_equal(parse("replay --kernel k --gdb 127.0.0.1:1234 /tmp/log"), 0);
    assert_string_equal(options.gdb, "127.0.0.1:1234");
    options_free(&options);
    expect_refused("record --kernel k --gdb 127.0.0.1:1234 /tmp/log", "belong to replay");
    assert_int_equal(parse("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d"), 0);
    assert_string_equal(options.keep_log.directory, "/tmp/d");
    assert_int_equal(options.keep_log.span_ns, 600 * NS_PER_S);
    options_free(&options);
    assert_int_equal(parse("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d,minutes=0.5,size=768"), 0);
    assert_int_equal(options.keep_log.span_ns, 30 * NS_PER_S);
    assert_int_equal(options.keep_log.bytes, UINT64_C(768) << 20);
    options_free(&options);
    expect_refused("primary --kernel k --backup shm:a --arbiter dir:/a --keep-log /tmp/d", "belongs to backup");
    expect_refused("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d,size=767", "three times --memory");
    expect_refused("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d,minutes=0", "a number from 0.01");
    expect_refused("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d,minutes=inf", "a number from 0.01");
    expect_refused("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d,minutes=5x", "a number from 0.01");
    expect_refused("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log /tmp/d,hours=5", "takes DIR");
    expect_refused("backup --kernel k --listen shm:a --arbiter dir:/a --keep-log ,size=800", "the name of a directory");
}

static void options_log_needs_a_file_and_no_kernel(void **state)
{
    (void)state;
    assert_int_equal(parse("log /tmp/log"), 0);
    assert_int_equal(options.command, COMMAND_LOG);
    assert_string_equal(options.log.path, "/tmp/log");
    assert_int_equal(options.log.kinds, 0);
    assert_int_equal(options.log.from, 0);
    assert_int_equal(options.log.to, UINT64_MAX);
    assert_false(options.log.json || options.log.summary);
    options_free(&options);
    expect_refused("log", "needs the name of a file");
    expect_refused("log a b", "one word too many");
}

static void options_log_filters_are_understood(void **state)
{
    (void)state;
    assert_int_equal(parse("log --json --summary --kind time,segment-pages,end --kind frame --from 3 --to 3 f"), 0);
    assert_int_equal(options.log.kinds, UINT64_C(1) << EVENT_TIME | UINT64_C(1) << EVENT_SEGMENT_PAGES |
                                            UINT64_C(1) << EVENT_END | UINT64_C(1) << EVENT_FRAME);
    assert_int_equal(options.log.from, 3);
    assert_int_equal(options.log.to, 3);
    assert_true(options.log.json && options.log.summary);
    options_free(&options);
    expect_refused("log --kind time,fly f", "the kinds are start, time, ");
    expect_refused("log --kind unknown f", "the kinds are");
    expect_refused("log --kind ti f", "the kinds are");
    expect_refused("log --kind , f", "the kinds are");
    expect_refused("log --from 4 --to 3 f", "--from is behind --to");
    expect_refused("log --from x f", "--from takes a whole number");
    expect_refused("replay --kernel k --json f", "belong to log");
    expect_refused("record --kernel k --kind time f", "belong to log");
    expect_refused("run --kernel k --summary", "belong to log");
}

static void options_the_fleet_is_where_etcd_is(void **state)
{
    (void)state;
    assert_int_equal(parse("run --kernel k --arbiter etcd:http://a:1,http://b:1 --arbiter-auth d --spare fleet:alpha"), 0);
    assert_string_equal(options.fleet, "http://a:1,http://b:1");
    assert_string_equal(options.fleet_auth, "d");
    assert_string_equal(options.fleet_host, "alpha");
    options_free(&options);
    assert_int_equal(parse("primary --kernel k --arbiter etcd:http://a:1 --arbiter-auth d --fleet http://c:1 --backup shm:x"), 0);
    assert_string_equal(options.fleet, "http://c:1"); /* for 'ftctl protect fleet:' */
    assert_null(options.fleet_auth);
    assert_null(options.fleet_host);
    options_free(&options);
    assert_int_equal(parse("run --kernel k --arbiter dir:d --fleet http://c:1 --spare fleet:"), 0);
    assert_string_equal(options.fleet_host, ""); /* the host name */
    options_free(&options);
    expect_refused("run --kernel k --arbiter dir:d --spare fleet:", "needs --fleet URL");
    expect_refused("run --kernel k --arbiter dir:d --fleet http://c:1 --spare fleet:a/b", "this host's name");
    expect_refused("run --kernel k --fleet http://c:1 --spare fleet:a", "needs --arbiter");
    expect_refused("run --kernel k --arbiter dir:d --fleet-auth d", "belongs to --fleet");
    expect_refused("record --kernel k --fleet http://c:1 /tmp/log", "belongs to run, primary and backup");
}

static void options_clock_is_one_of_four(void **state)
{
    (void)state;
    assert_int_equal(parse("record --kernel k /tmp/log"), 0);
    assert_int_equal(options.lockstep.clock, GUEST_CLOCK_AUTO);
    options_free(&options);
    assert_int_equal(parse("record --kernel k --clock step /tmp/log"), 0);
    assert_int_equal(options.lockstep.clock, GUEST_CLOCK_STEP);
    options_free(&options);
    expect_refused("record --kernel k --clock sundial /tmp/log", "--clock takes auto, exits, pmu or step, not 'sundial'");
}

static void options_every_kind_is_named_in_the_help_sentence(void **state)
{
    (void)state;
    expect_refused("log --kind none f", "the kinds are");
    for (uint16_t kind = 1; kind < EVENT_KIND_ROOM; kind++)
        if (strcmp(event_name(kind), "unknown") != 0 && strstr(said, event_name(kind)) == NULL)
            fail_msg("the sentence does not name '%s': %s", event_name(kind), said);
}

static void options_cpus_are_two_that_the_process_may_use(void **state)
{
    char line[64];
    int cpu = sched_getcpu();

    (void)state;
    assert_true(cpu >= 0);
    snprintf(line, sizeof(line), "run --kernel k --cpu %d,%d", cpu, cpu);
    assert_int_equal(parse(line), 0);
    assert_true(options.cpus_given);
    assert_int_equal(options.vcpu_cpu, cpu);
    assert_int_equal(options.io_cpu, cpu);
    options_free(&options);
    assert_int_equal(parse("run --kernel k"), 0);
    assert_false(options.cpus_given);
    options_free(&options);
    expect_refused("run --kernel k --cpu 1", "two numbers of CPUs");
    expect_refused("run --kernel k --cpu 0,0,0", "two numbers of CPUs");
    expect_refused("run --kernel k --cpu 1023,0", "may not use");
    expect_refused("run --kernel k --cpu 0,70000", "may not use");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_replay_stops_and_dumps_where_it_is_told),
        cmocka_unit_test(options_until_and_dump_are_for_replay_only),
        cmocka_unit_test(options_gdb_is_for_replay_and_a_kept_log_for_backups),
        cmocka_unit_test(options_log_needs_a_file_and_no_kernel),
        cmocka_unit_test(options_log_filters_are_understood),
        cmocka_unit_test(options_the_fleet_is_where_etcd_is),
        cmocka_unit_test(options_clock_is_one_of_four),
        cmocka_unit_test(options_every_kind_is_named_in_the_help_sentence),
        cmocka_unit_test(options_cpus_are_two_that_the_process_may_use),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
