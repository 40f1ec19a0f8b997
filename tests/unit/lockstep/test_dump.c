/* A dump: the files, who may read them, and whether every bit of the machine shows in them. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "tests/unit/words.h"
#include "vmm/machine_json.h"
#include "vmm/replay.h"

#define RAM_BYTES (UINT64_C(8) << 20)

static char directory[] = "/tmp/ftvmm-dump.XXXXXX";
static struct machine machine;
static struct vcpu_state vcpu;

static void frame_nowhere(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
    (void)ctx;
    (void)frame;
    (void)bytes;
    (void)offload;
}

static void filter_nowhere(void *ctx, const struct net_filter *filter)
{
    (void)ctx;
    (void)filter;
}

static void console_nowhere(void *ctx, uint8_t byte)
{
    (void)ctx;
    (void)byte;
}

static int machine_setup(void **state)
{
    const uint8_t mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };
    const struct virtio_net_cable cable = { .transmit = frame_nowhere, .filter = filter_nowhere };

    (void)state;
    memset(&machine, 0, sizeof(machine));
    memset(&vcpu, 0, sizeof(vcpu));
    machine.memory.bytes = RAM_BYTES;
    machine.memory.base = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (machine.memory.base == MAP_FAILED)
        return -1;
    pic_init(&machine.pic);
    pit_init(&machine.pit, 0);
    rtc_init(&machine.rtc, 1700000000, 0);
    uart_init(&machine.uart, &machine.pic, console_nowhere, NULL);
    pci_init(&machine.pci, &machine.pic);
    machine.position = 4711;
    machine.time_ns = UINT64_C(0xfedcba9876543211);
    machine.exit = VCPU_EXIT_HLT;
    vcpu.regs.rip = UINT64_C(0xffffffff81000001);
    vcpu.sregs.cs.selector = 0x10;
    vcpu.msrs[0] = 0xd01;
    return virtio_net_init(&machine.net, &machine.pci, 1, 0xC000, mac, NET_MTU_DEFAULT, &machine.memory, &cable);
}

static int machine_teardown(void **state)
{
    (void)state;
    return munmap(machine.memory.base, RAM_BYTES);
}

static const char *in_directory(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

static char *read_all(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "r");
    char *content;

    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    content = calloc(1, *bytes + 1);
    assert_int_equal(fread(content, 1, *bytes, file), *bytes);
    fclose(file);
    return content;
}

static void expect_private(const char *path, mode_t mode)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, mode);
}

static void remove_dump(const char *path)
{
    char file[160];

    snprintf(file, sizeof(file), "%s/ram", path);
    unlink(file);
    snprintf(file, sizeof(file), "%s/state.json", path);
    unlink(file);
    assert_int_equal(rmdir(path), 0);
}

static void dump_holds_ram_and_nobody_else_may_read_it(void **state)
{
    const char *path = in_directory("dump");
    char ram_path[160], state_path[160], *ram;
    struct stat status;
    size_t bytes;

    (void)state;
    snprintf(ram_path, sizeof(ram_path), "%s/ram", path);
    snprintf(state_path, sizeof(state_path), "%s/state.json", path);
    /* Runs of pages, single ones, the first, the last; one that begins with a zero. */
    for (unsigned page = 0; page < 700; page++)
        machine.memory.base[page * GUEST_PAGE_BYTES + page] = 1;
    machine.memory.base[1000 * GUEST_PAGE_BYTES + 4095] = 2;
    machine.memory.base[RAM_BYTES - 1] = 3;
    assert_int_equal(replay_dump_prepare(path), 0);
    assert_int_equal(replay_dump_write(path, &machine, &vcpu, 5), 0);
    expect_private(path, 0700);
    expect_private(ram_path, 0600);
    expect_private(state_path, 0600);
    ram = read_all(ram_path, &bytes);
    assert_int_equal(bytes, RAM_BYTES);
    assert_memory_equal(ram, machine.memory.base, RAM_BYTES);
    free(ram);
    assert_int_equal(stat(ram_path, &status), 0);
    assert_in_range(status.st_blocks * 512, 702 * GUEST_PAGE_BYTES, RAM_BYTES / 2); /* zeroes are holes */
    remove_dump(path);
}

static const char *text_at(const cJSON *root, const char *a, const char *b, const char *c)
{
    const cJSON *item = cJSON_GetObjectItem(cJSON_GetObjectItem(root, a), b);

    return cJSON_GetStringValue(c != NULL ? cJSON_GetObjectItem(item, c) : item);
}

static void dump_state_says_the_values(void **state)
{
    const char *path = in_directory("dump");
    char state_path[160], *text;
    size_t bytes;
    cJSON *root;

    (void)state;
    snprintf(state_path, sizeof(state_path), "%s/state.json", path);
    assert_int_equal(replay_dump_prepare(path), 0);
    assert_int_equal(replay_dump_write(path, &machine, &vcpu, 0xabc), 0);
    text = read_all(state_path, &bytes);
    root = cJSON_Parse(text);
    assert_non_null(root);
    assert_string_equal(text_at(root, "machine", "exit", NULL), "hlt");
    assert_string_equal(text_at(root, "machine", "ram_digest", NULL), "0x0000000000000abc");
    assert_string_equal(text_at(root, "machine", "time_ns", NULL), "0xfedcba9876543211");
    assert_string_equal(text_at(root, "vcpu", "registers", "rip"), "0xffffffff81000001");
    assert_string_equal(text_at(root, "vcpu", "registers", "cs.selector"), "0x0000000000000010");
    assert_string_equal(text_at(root, "vcpu", "msrs", "0xc0000080"), "0x0000000000000d01");
    assert_string_equal(text_at(root, "devices", "virtio_net", "mac"), "525400010203");
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(cJSON_GetObjectItem(root, "devices"), "pic")), 2);
    cJSON_Delete(root);
    free(text);
    remove_dump(path);
}

static char *state_text(void)
{
    cJSON *root = machine_json(&machine, &vcpu);
    char *text = cJSON_PrintUnformatted(root);

    cJSON_Delete(root);
    return text;
}

/* Flips a bit in each byte; how many of them do not show. */
static size_t hidden_bytes(void *begin, size_t bytes)
{
    char *before = state_text();
    size_t hidden = 0;

    for (uint8_t *at = begin; at < (uint8_t *)begin + bytes; at++) {
        char *after;

        *at ^= 1;
        after = state_text();
        hidden += strcmp(before, after) == 0;
        free(after);
        *at ^= 1;
    }
    free(before);
    return hidden;
}

static void dump_state_shows_every_bit(void **state)
{
    (void)state;
    assert_int_equal(hidden_bytes(&vcpu.regs, sizeof(vcpu.regs)), 0);
    assert_int_equal(hidden_bytes(vcpu.msrs, sizeof(vcpu.msrs)), 0);
    assert_int_equal(hidden_bytes(&vcpu.xsave, 416), 0);
    /* What the compiler pads, and nothing else, does not show. */
    assert_int_equal(hidden_bytes(&machine.pic, sizeof(machine.pic)), 0);
    assert_int_equal(hidden_bytes(&machine.pit, sizeof(machine.pit)), 3 * 2 + 7);
    assert_int_equal(hidden_bytes(&machine.rtc, sizeof(machine.rtc)), 7);
    assert_int_equal(hidden_bytes(&machine.uart.state, sizeof(machine.uart.state)), 0);
    assert_int_equal(hidden_bytes(&machine.net.card.state.queues, sizeof(machine.net.card.state.queues)), 3 * 4);
    assert_int_equal(hidden_bytes(&machine.net.state, sizeof(machine.net.state)), 7);
}

static void dump_is_never_written_over_anything(void **state)
{
    const char *path = in_directory("dump");

    (void)state;
    assert_int_equal(replay_dump_prepare(path), 0);
    words_begin();
    assert_int_equal(replay_dump_prepare(path), -EEXIST);
    assert_int_equal(replay_dump_prepare("/nonexistent/dump"), -ENOENT);
    assert_non_null(strstr(words_end(), "name a new one"));
    assert_int_equal(replay_dump_write(path, &machine, &vcpu, 0), 0);
    words_begin();
    assert_int_equal(replay_dump_write(path, &machine, &vcpu, 0), -EEXIST);
    words_end();
    replay_dump_forget(path); /* something is in it */
    assert_int_equal(access(path, F_OK), 0);
    remove_dump(path);
    assert_int_equal(replay_dump_prepare(path), 0);
    replay_dump_forget(path);
    assert_int_not_equal(access(path, F_OK), 0);
}

static int group_setup(void **state)
{
    (void)state;
    umask(022);
    return mkdtemp(directory) != NULL ? 0 : -1;
}

static int group_teardown(void **state)
{
    (void)state;
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(dump_holds_ram_and_nobody_else_may_read_it, machine_setup, machine_teardown),
        cmocka_unit_test_setup_teardown(dump_state_says_the_values, machine_setup, machine_teardown),
        cmocka_unit_test_setup_teardown(dump_state_shows_every_bit, machine_setup, machine_teardown),
        cmocka_unit_test_setup_teardown(dump_is_never_written_over_anything, machine_setup, machine_teardown),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
