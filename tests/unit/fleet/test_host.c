/* A host of the fleet without etcd: its two values, read from any bytes; the choice of a host; descriptions of VMs. */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "fleet/description.h"
#include "fleet/host.h"
#include "tests/unit/cmocka_prelude.h"

static char why[FLEET_WHY_BYTES];

static struct fleet_host *host_new(const char *name)
{
    struct fleet_host *host = calloc(1, sizeof(*host));

    assert_non_null(host);
    snprintf(host->name, sizeof(host->name), "%s", name);
    host->present = true;
    strcpy(host->boot, "b");
    strcpy(host->cpu, "GenuineIntel 6-143-8");
    strcpy(host->microcode, "0x2b");
    host->memory_mib = 1024;
    host->guests = 4;
    host->vm_count = 1;
    strcpy(host->vms[0].name, "web");
    strcpy(host->vms[0].address, "verbs:10.9.0.2:7471");
    host->vms[0].memory_mib = 256;
    return host;
}

static void claim_add(struct fleet_host *host, const char *vm, const char *by, uint32_t memory_mib,
                      enum fleet_claim_state state)
{
    struct fleet_claim *claim = fleet_host_add_claim(host);

    assert_non_null(claim);
    strcpy(claim->vm, vm);
    snprintf(claim->id, sizeof(claim->id), "%016x", host->claim_count);
    strcpy(claim->by, by);
    claim->state = state;
    claim->memory_mib = memory_mib;
    if (state == FLEET_STARTED)
        strcpy(claim->address, "verbs:10.9.0.2:7472");
    if (state == FLEET_REFUSED)
        strcpy(claim->why, "no \"room\" \\ left");
}

static void values_come_back_as_they_went(void **state)
{
    struct fleet_host *host = host_new("beta"), *back = calloc(1, sizeof(*back));
    char *presence, *ledger;

    (void)state;
    claim_add(host, "web", "alpha", 256, FLEET_ASKED);
    claim_add(host, "db", "", 512, FLEET_STARTED);
    claim_add(host, "db2", "gamma", 512, FLEET_REFUSED);
    presence = fleet_presence_encode(host);
    ledger = fleet_ledger_encode(host);
    strcpy(back->name, "beta");
    assert_int_equal(fleet_presence_decode(back, presence, strlen(presence), why), 0);
    assert_int_equal(fleet_ledger_decode(back, ledger, strlen(ledger), why), 0);
    assert_memory_equal(host, back, sizeof(*host));
    free(presence);
    free(ledger);
    free(host);
    free(back);
}

static void garbage_is_refused_in_words(void **state)
{
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "null",
        "7",
        "\"x\"",
        "{}",
        "{\"version\":2,\"claims\":[],\"vms\":[]}",
        "{\"version\":1}",
        "{\"version\":1,\"claims\":7,\"vms\":7}",
        "{\"version\":1,\"claims\":[7]}",
        "{\"version\":1,\"claims\":[{\"vm\":\"../x\",\"id\":\"0123456789abcdef\",\"by\":\"a\",\"state\":\"asked\","
        "\"memory_mib\":1,\"address\":\"\",\"why\":\"\"}]}",
        "{\"version\":1,\"claims\":[{\"vm\":\"x\",\"id\":\"0123456789ABCDEF\",\"by\":\"a\",\"state\":\"asked\","
        "\"memory_mib\":1,\"address\":\"\",\"why\":\"\"}]}",
        "{\"version\":1,\"claims\":[{\"vm\":\"x\",\"id\":\"0123456789abcdef\",\"by\":\"a\",\"state\":\"asked\","
        "\"memory_mib\":-1,\"address\":\"\",\"why\":\"\"}]}",
        "{\"version\":1,\"claims\":[{\"vm\":\"x\",\"id\":\"0123456789abcdef\",\"by\":\"a\",\"state\":\"asked\","
        "\"memory_mib\":1e300,\"address\":\"\",\"why\":\"\"}]}",
        "{\"version\":1,\"claims\":[{\"vm\":\"x\",\"id\":\"0123456789abcdef\",\"by\":\"a\",\"state\":\"started\","
        "\"memory_mib\":1,\"address\":\"ftp:x\",\"why\":\"\"}]}",
        "{\"version\":1,\"claims\":[{\"vm\":\"x\",\"id\":\"0123456789abcdef\",\"by\":\"\\u001b[2J\",\"state\":"
        "\"asked\","
        "\"memory_mib\":1,\"address\":\"\",\"why\":\"\"}]}",
    };
    struct fleet_host *host = host_new("beta");
    char *long_one = malloc(FLEET_VALUE_BYTES + 2);

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        host->claim_count = 1;
        host->present = true;
        why[0] = '\0';
        assert_int_equal(fleet_presence_decode(host, bad[i], strlen(bad[i]), why), -EBADMSG);
        assert_false(host->present);
        assert_int_equal(host->vm_count, 0);
        assert_true(strlen(why) > 5);
        why[0] = '\0';
        assert_int_equal(fleet_ledger_decode(host, bad[i], strlen(bad[i]), why), -EBADMSG);
        assert_int_equal(host->claim_count, 0);
        assert_true(strlen(why) > 5);
    }
    memset(long_one, ' ', FLEET_VALUE_BYTES + 1);
    long_one[FLEET_VALUE_BYTES + 1] = '\0';
    assert_int_equal(fleet_ledger_decode(host, long_one, FLEET_VALUE_BYTES + 1, why), -EBADMSG);
    assert_non_null(strstr(why, "more than any of ours"));
    free(long_one);
    free(host);
}

/* A true value with bytes changed, cut and doubled: whatever is believed of it can be written again. */
static void spoilt_values_are_refused_or_whole(void **state)
{
    const char *given = getenv("FTVMM_TEST_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 0) : (unsigned)clock_now_ns(), believed = 0;
    struct fleet_host *host = host_new("beta");
    char *text;
    size_t bytes;

    (void)state;
    printf("seed %u\n", seed);
    claim_add(host, "web", "alpha", 256, FLEET_ASKED);
    claim_add(host, "db", "alpha", 512, FLEET_STARTED);
    text = fleet_ledger_encode(host);
    bytes = strlen(text);
    for (unsigned i = 0; i < 20000; i++) {
        char *spoilt = malloc(bytes); /* no byte behind it: what reads on is found by a sanitizer */
        size_t count = rand_r(&seed) % 4 == 0 ? (size_t)rand_r(&seed) % bytes : bytes;

        memcpy(spoilt, text, count);
        for (unsigned change = (unsigned)rand_r(&seed) % 4; change > 0 && count > 0; change--)
            spoilt[(size_t)rand_r(&seed) % count] = (char)rand_r(&seed);
        if (fleet_ledger_decode(host, spoilt, count, why) == 0) {
            char *again = fleet_ledger_encode(host);

            assert_non_null(again);
            assert_int_equal(fleet_ledger_decode(host, again, strlen(again), why), 0);
            free(again);
            believed++;
        }
        free(spoilt);
    }
    assert_in_range(believed, 1, 19999);
    free(text);
    free(host);
}

static const struct fleet_wish wish = {
    .vm = "web", .memory_mib = 256, .cpu = "GenuineIntel 6-143-8", .microcode = "0x2b", .own_host = "alpha",
};

/* The same machine under another name. */
static const struct fleet_wish same_kernel = {
    .vm = "web", .memory_mib = 256, .cpu = "GenuineIntel 6-143-8", .microcode = "0x2b", .own_host = "alpha",
    .own_boot = "b",
};

static void expect_unfit(struct fleet_host *host, const char *words)
{
    const char *reason = fleet_host_unfit(host, &wish);

    if (words == NULL) {
        assert_null(reason);
    } else {
        assert_non_null(reason);
        assert_non_null(strstr(reason, words));
    }
    free(host);
}

static void only_fit_hosts_are_taken(void **state)
{
    struct fleet_host *host;

    (void)state;
    expect_unfit(host_new("beta"), NULL);
    expect_unfit(host_new("alpha"), "the guest runs there");
    assert_non_null(fleet_host_unfit(host = host_new("beta"), &same_kernel));
    free(host);
    host = host_new("beta");
    host->present = false;
    expect_unfit(host, "agent is not there");
    host = host_new("beta");
    strcpy(host->cpu, "GenuineIntel 6-143-7");
    expect_unfit(host, "CPU");
    host = host_new("beta");
    strcpy(host->vms[0].name, "db");
    expect_unfit(host, "no description");
    host = host_new("beta");
    host->vms[0].memory_mib = 128;
    expect_unfit(host, "another memory_mib");
    host = host_new("beta");
    claim_add(host, "db", "gamma", 769, FLEET_STARTED);
    expect_unfit(host, "too little memory");
    host = host_new("beta");
    claim_add(host, "db", "gamma", 769, FLEET_REFUSED); /* takes nothing any more */
    expect_unfit(host, NULL);
    host = host_new("beta");
    for (unsigned i = 0; i < 4; i++)
        claim_add(host, "db", "gamma", 0, FLEET_ASKED);
    expect_unfit(host, "as many guests");
    host = host_new("beta");
    claim_add(host, "web", "gamma", 256, FLEET_STARTED);
    expect_unfit(host, "a guest of this name");
    host = host_new("beta");
    claim_add(host, "web", "alpha", 256, FLEET_STARTED); /* ours already */
    expect_unfit(host, NULL);
    host = host_new("beta");
    claim_add(host, "db", "gamma", UINT32_MAX, FLEET_STARTED);
    claim_add(host, "db", "gamma", UINT32_MAX, FLEET_STARTED); /* sums do not wrap */
    expect_unfit(host, "too little memory");
}

static void the_emptiest_is_preferred(void **state)
{
    struct fleet_host *a = host_new("a"), *b = host_new("b");

    (void)state;
    assert_true(fleet_host_better(a, b, &wish)); /* by name */
    assert_false(fleet_host_better(b, a, &wish));
    claim_add(a, "db", "c", 1, FLEET_STARTED);
    assert_true(fleet_host_better(b, a, &wish));
    strcpy(b->microcode, "0x2c"); /* its CPUID might differ */
    assert_true(fleet_host_better(a, b, &wish));
    free(a);
    free(b);
}

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void descriptions_are_read_or_left_out(void **state)
{
    static const char good[] =
        "{\"listen\":\"tcp:10.0.0.2:7471\",\"memory_mib\":128,\"arguments\":[\"--kernel\",\"/k\"]}";
    struct descriptions *all = calloc(1, sizeof(*all));
    char dir[] = "/tmp/ftvmm-vms-XXXXXX", command[64];

    (void)state;
    assert_non_null(mkdtemp(dir));
    write_file(dir, "web.json", good);
    write_file(dir, "notes.txt", "no description");
    write_file(dir, "bad name.json", good);
    write_file(dir, "empty.json", "");
    write_file(dir, "listen.json", "{\"listen\":\"10.0.0.2\",\"memory_mib\":128,\"arguments\":[]}");
    write_file(dir, "memory.json", "{\"listen\":\"tcp:a:1\",\"memory_mib\":128.5,\"arguments\":[]}");
    write_file(dir, "words.json", "{\"listen\":\"tcp:a:1\",\"memory_mib\":128,\"arguments\":[1]}");
    write_file(dir, "name.json", "{\"listen\":\"tcp:a:1\",\"memory_mib\":128,\"arguments\":[\"--name=x\"]}");
    write_file(dir, "open.json", good);
    snprintf(command, sizeof(command), "chmod 666 %s/open.json", dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(descriptions_read(all, dir, true), 0);
    assert_int_equal(all->count, 1);
    assert_int_equal(all->bad, 7);
    assert_string_equal(all->of[0].vm.name, "web");
    assert_int_equal(all->of[0].vm.memory_mib, 128);
    assert_int_equal(all->of[0].argument_count, 2);
    assert_ptr_equal(descriptions_find(all, "web"), &all->of[0]);
    assert_null(descriptions_find(all, "empty"));
    descriptions_free(all);
    assert_int_equal(chmod(dir, 0777), 0); /* others could put one there */
    assert_int_equal(descriptions_read(all, dir, true), -EPERM);
    assert_int_equal(descriptions_read(all, "/nonexistent", true), -ENOENT);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
    free(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_back_as_they_went),
        cmocka_unit_test(garbage_is_refused_in_words),
        cmocka_unit_test(spoilt_values_are_refused_or_whole),
        cmocka_unit_test(only_fit_hosts_are_taken),
        cmocka_unit_test(the_emptiest_is_preferred),
        cmocka_unit_test(descriptions_are_read_or_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
