/* Hosts of a test with a disk, and their images (disk_hosts.h). */
#include "tests/unit/lockstep/disk_hosts.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/disk_guest.h"

#define LIMIT_NS    (60 * NS_PER_S)
#define SPOILT      48u /* places */
#define BLOCK_BYTES 65536u

static const char *image_path(unsigned number)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%u.img", hosts_directory(), number);
    return path;
}

int disk_hosts_open(const char *ftvmm_path, const char *ftctl_path)
{
    return hosts_open_with(ftvmm_path, ftctl_path, __start_disk_guest, (size_t)(__stop_disk_guest - __start_disk_guest));
}

static int image_open(unsigned number)
{
    int fd = open(image_path(number), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    return fd;
}

void disk_hosts_image(unsigned number, bool shared)
{
    static char words[160];
    int fd = image_open(number);

    if (lseek(fd, 0, SEEK_END) == 0)
        assert_int_equal(ftruncate(fd, DISK_GUEST_IMAGE_BYTES), 0);
    close(fd);
    snprintf(words, sizeof(words), "--disk %s%s", image_path(number), shared ? ",mode=shared" : "");
    hosts_arguments = words;
}

/* Both at once: the guest may just be changing one of them, and then overwrites what is put there. */
void disk_hosts_divert(const struct host *host, unsigned *seed)
{
    const struct disk_guest_course other = { .random = (uint64_t)rand_r(seed), .read = (uint64_t)rand_r(seed) };
    char path[64];
    int memory;

    snprintf(path, sizeof(path), "/proc/%d/mem", (int)host->pid);
    memory = open(path, O_RDWR | O_CLOEXEC);
    assert_true(memory >= 0);
    assert_int_equal(pwrite(memory, &other, sizeof(other), (off_t)(host_ram_at(host) + DISK_GUEST_STATE)), sizeof(other));
    close(memory);
}

/* Or it could find out, be healed, and be spoilt again by the rest. */
void disk_hosts_spoil(const struct host *host, bool divert, unsigned *seed)
{
    int fd = image_open(host->number);
    siginfo_t info = { 0 };

    assert_int_equal(kill(host->pid, SIGSTOP), 0);
    assert_int_equal(waitid(P_PID, (id_t)host->pid, &info, WSTOPPED), 0);
    for (unsigned i = 0; i < SPOILT; i++) {
        uint8_t byte = (uint8_t)(1 + rand_r(seed) % 255);
        off_t at = rand_r(seed) % DISK_GUEST_CELLS * (off_t)DISK_GUEST_APART_BYTES;

        at += i % 2 == 0 ? rand_r(seed) % DISK_GUEST_CELL_BYTES
                         : DISK_GUEST_CELL_BYTES + rand_r(seed) % (DISK_GUEST_APART_BYTES - DISK_GUEST_CELL_BYTES);
        assert_int_equal(pwrite(fd, &byte, 1, i == 1 ? DISK_GUEST_IMAGE_BYTES - 1 : at), 1);
    }
    if (divert)
        disk_hosts_divert(host, seed);
    kill(host->pid, SIGCONT);
    close(fd);
}

void disk_hosts_cut(unsigned number)
{
    assert_int_equal(truncate(image_path(number), DISK_GUEST_IMAGE_BYTES - 4096), 0);
}

uint64_t disk_hosts_told(const struct host *host, char letter)
{
    static char text[4 << 20];
    FILE *file = fopen(host->console, "r");
    uint64_t number = 0;
    const char *at = text;

    if (file == NULL) /* it has said nothing yet */
        return 0;
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    for (const char *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        if (*at == 'W')
            host_fail(host, "its guest has read what it has never written");
        if (*at == letter && end == at + 9)
            number = strtoull(at + 1, NULL, 16);
    }
    return number;
}

void disk_hosts_await(const struct host *host, char letter, uint64_t least)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (disk_hosts_told(host, letter) < least) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, "its guest does not get on");
        clock_sleep_ns(20 * NS_PER_MS);
    }
}

void disk_hosts_check(unsigned number, uint64_t told)
{
    static uint64_t least[DISK_GUEST_CELLS], words[DISK_GUEST_CELL_BYTES / 8];
    int fd = image_open(number);

    memset(least, 0, sizeof(least));
    for (uint64_t write = 1; write <= told; write++)
        least[disk_guest_cell(write)] = write;
    for (uint32_t cell = 0; cell < DISK_GUEST_CELLS; cell++) {
        uint64_t found;

        assert_int_equal(pread(fd, words, sizeof(words), cell * (off_t)DISK_GUEST_APART_BYTES), sizeof(words));
        found = words[0] & 0xFFFFFFFFFF;
        assert_true(found >= least[cell]);
        assert_true(found == 0 || disk_guest_cell(found) == cell);
        for (unsigned i = 0; i < DISK_GUEST_CELL_BYTES / 8; i++)
            assert_true(words[i] == disk_guest_word(found, cell));
    }
    close(fd);
}

void disk_hosts_check_equal(unsigned one, unsigned other)
{
    static uint8_t blocks[2][BLOCK_BYTES];
    int fds[2] = { image_open(one), image_open(other) };

    for (off_t at = 0; at < (off_t)DISK_GUEST_IMAGE_BYTES; at += BLOCK_BYTES) {
        ssize_t got = pread(fds[0], blocks[0], BLOCK_BYTES, at);

        assert_true(got > 0);
        assert_int_equal(pread(fds[1], blocks[1], BLOCK_BYTES, at), got);
        if (memcmp(blocks[0], blocks[1], (size_t)got) != 0)
            fail_msg("the images %u and %u differ in the block at byte %lld", one, other, (long long)at);
    }
    close(fds[0]);
    close(fds[1]);
}
