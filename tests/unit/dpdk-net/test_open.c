/* What net_open says when it cannot: each bad port gives an error and a sentence with the cause. */
#include "support.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dpdk-net/net.h"
#include "dpdk-net/survey.h"

/* net_open's result; its sentences (stderr) go to `said`. */
static int open_saying(const struct net_options *options, char *said, size_t size)
{
    char path[] = "/tmp/ftvmm-test-open-XXXXXX";
    int file = mkstemp(path), terminal = dup(STDERR_FILENO);
    struct net *net;
    ssize_t bytes;
    int error;

    assert_true(file >= 0 && terminal >= 0);
    unlink(path);
    dup2(file, STDERR_FILENO);
    error = net_open(&net, options);
    dup2(terminal, STDERR_FILENO);
    close(terminal);
    bytes = pread(file, said, size - 1, 0);
    said[bytes > 0 ? bytes : 0] = '\0';
    close(file);
    if (error != 0)
        assert_null(net);
    net_close(net);
    return error;
}

static void open_bad_port_says_why(void **state)
{
    static const struct {
        const char *port;
        int error;
        const char *cause;
    } cases[] = {
        { "af_packet:nosuchif0", -ENODEV, "nosuchif0 does not exist" },
        { "net_af_packet0,iface=nosuchif1", -ENODEV, "nosuchif1 does not exist" },
        { "af_packet:", -EINVAL, "must name one interface" },
        { "af_packet:averyveryverylongname", -EINVAL, "1 to 15 characters" },
        { "tap:", -EINVAL, "must name one interface" },
        { "memif:,client", -EINVAL, "must name one interface or socket" },
        { "memif:/tmp/x,sideways", -EINVAL, "',client' or ',server'" },
        { "eth1", -EINVAL, "is not understood" },
        { "", -EINVAL, "is not understood" },
        { "net_nonesuch0", -ENODEV, "no driver for 'net_nonesuch'" },
        { "7f:1f.7", -EBUSY, "not started for the PCI device 0000:7f:1f.7" },
        { NULL, -EINVAL, "no network port" },
    };
    char said[4096];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct net_options options = { .port = cases[i].port };
        int error = open_saying(&options, said, sizeof(said));

        if (strstr(said, cases[i].cause) == NULL || error != cases[i].error)
            fail_msg("port '%s': %d, '%s'", cases[i].port != NULL ? cases[i].port : "(none)", error, said);
    }
}

static void open_bad_capacity_says_why(void **state)
{
    struct net_options options = { .port = "net_null0", .hold_frames = 1000 };
    char said[4096];

    (void)state;
    assert_int_equal(open_saying(&options, said, sizeof(said)), -EINVAL);
    assert_non_null(strstr(said, "hold_frames is 1000; it must be a power of two"));
    options.hold_frames = 0;
    options.receive_frames = 1u << 31;
    assert_int_equal(open_saying(&options, said, sizeof(said)), -EINVAL);
    assert_non_null(strstr(said, "receive_frames is 2147483648"));
}

static void open_bad_mtu_says_why(void **state)
{
    struct net_options options = { .port = "net_null0", .mtu = NET_MTU_MAX + 1 };
    char said[4096];

    (void)state;
    assert_int_equal(open_saying(&options, said, sizeof(said)), -EINVAL);
    assert_non_null(strstr(said, "an MTU of 9001: give 576 to 9000"));
    options.mtu = NET_MTU_MIN - 1;
    assert_int_equal(open_saying(&options, said, sizeof(said)), -EINVAL);
    options = (struct net_options){ .port = "net_af_packet8,iface=lo", .mtu = 9000 };
    assert_int_equal(open_saying(&options, said, sizeof(said)), -EINVAL);
    assert_non_null(strstr(said, "room for frames of 2048 bytes"));
    assert_non_null(strstr(said, "framesz=12288,blocksz=12288"));
}

static void open_leaves_the_cpu_affinity_alone(void **state)
{
    struct net_options options = { .port = "net_null1" };
    cpu_set_t before, after;
    char said[4096];

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(open_saying(&options, said, sizeof(said)), 0);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

static void open_close_open_again(void **state)
{
    char said[4096];

    (void)state;
    for (int i = 0; i < 5; i++) {
        struct net_options options = { .port = "net_null2" };

        if (open_saying(&options, said, sizeof(said)) != 0)
            fail_msg("round %d: %s", i, said);
    }
}

/* ---- what a host could open ---- */

static unsigned kinds_usable, kinds_told;
static bool remedies_told, packet_usable, tap_usable;

static void hear_kind(bool good, const char *what, const char *found, const char *remedy)
{
    kinds_told++;
    kinds_usable += good;
    remedies_told = remedies_told && found[0] != '\0' && good == (remedy[0] == '\0' || strcmp(found, "no network card") == 0);
    packet_usable = packet_usable || (good && strcmp(what, "port af_packet") == 0);
    tap_usable = tap_usable || (good && strcmp(what, "port tap") == 0);
}

static void survey(void)
{
    kinds_usable = kinds_told = 0;
    packet_usable = tap_usable = false;
    remedies_told = true;
    net_survey(hear_kind);
}

static void survey_tells_what_is_usable_and_what_mends_the_rest(void **state)
{
    int status;
    pid_t child;

    (void)state;
    survey();
    assert_true(kinds_told >= 6);
    if (geteuid() != 0)
        skip();
    assert_true(packet_usable && tap_usable);
    child = fork();
    if (child == 0) { /* the same, of nobody */
        if (setgid(65534) != 0 || setuid(65534) != 0)
            _exit(9);
        survey();
        _exit(packet_usable || tap_usable ? 1 : !remedies_told ? 2 : kinds_usable == 0 ? 3 : 0); /* memif is for all */
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(open_bad_port_says_why),
        cmocka_unit_test(open_bad_capacity_says_why),
        cmocka_unit_test(open_bad_mtu_says_why),
        cmocka_unit_test(open_leaves_the_cpu_affinity_alone),
        cmocka_unit_test(open_close_open_again),
        cmocka_unit_test(survey_tells_what_is_usable_and_what_mends_the_rest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
