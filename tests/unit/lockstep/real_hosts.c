/* Hosts of a test as real ftvmm processes, and their guest (real_hosts.h). */
#include "tests/unit/lockstep/real_hosts.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/boot/fake_kernel.h"
#include "tests/unit/cmocka_prelude.h"

#define LIMIT_NS (120 * NS_PER_S)

/*
 * The guest: reads the clock again and again, mixes what it has read, writes that into pages all over 16 MiB, computes a
 * while without any exit, and prints how far it is. No stack, no interrupts.
 */
extern const uint8_t guest_code[], guest_code_end[];
__asm__(".pushsection .rodata\n"
        ".globl guest_code, guest_code_end\n"
        "guest_code:\n"
        "  xor %ebx, %ebx\n"
        "  mov $0x1234567, %r12\n"
        "  mov $0x2000000, %r13\n"
        "  movabs $0x9E3779B97F4A7C15, %r14\n"
        "1: inc %rbx\n"
        "  in $0xF5, %eax\n" /* the machine's clock; RDX has its high half */
        "  xor %rax, %r12\n"
        "  imul %r14, %r12\n"
        "  mov %r12, %rcx\n"
        "  shr $29, %rcx\n"
        "  xor %rcx, %r12\n"
        "  mov %r12, %rcx\n"
        "  and $0xFFF000, %ecx\n"
        "  mov %r12, (%r13, %rcx)\n"
        "  add %rbx, 8(%r13, %rcx)\n"
        "  test $63, %bl\n"
        "  jnz 1b\n"
        "  mov $20000, %ecx\n"
        "2: dec %ecx\n"
        "  jnz 2b\n"
        "  test $511, %ebx\n"
        "  jnz 1b\n"
        "  mov $0x3F8, %dx\n"
        "  mov $16, %ecx\n"
        "3: rol $4, %rbx\n"
        "  mov %bl, %al\n"
        "  and $15, %al\n"
        "  add $0x41, %al\n" /* A to P */
        "  out %al, %dx\n"
        "  dec %ecx\n"
        "  jnz 3b\n"
        "  mov $10, %al\n"
        "  out %al, %dx\n"
        "  jmp 1b\n"
        "guest_code_end:\n"
        ".popsection\n");

static const char *ftvmm, *ftctl;
const char *hosts_arguments = "";
static char directory[64], differences[96], kernel[96];

static void kernel_write(const uint8_t *code, size_t code_bytes)
{
    static struct fake_kernel fake;
    size_t bytes;
    uint8_t *image;
    FILE *file;

    fake_kernel_build(&fake);
    memcpy(fake.text, (const uint8_t[]){ 0xe9, 0xfb, 0x03, 0, 0 }, 5); /* jmp to 0x400 */
    assert_true(code_bytes <= FAKE_TEXT_BYTES - 0x400);
    memcpy(fake.text + 0x400, code, code_bytes);
    image = fake_bzimage(fake.bytes, fake.size, FAKE_LZ4, &bytes);
    snprintf(kernel, sizeof(kernel), "%s/kernel", directory);
    file = fopen(kernel, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(image, 1, bytes, file), bytes);
    fclose(file);
    free(image);
}

const char *host_words(struct host *host, unsigned number)
{
    static char words[1024];

    *host = (struct host){ .number = number };
    snprintf(host->control, sizeof(host->control), "%s/%u.sock", directory, number);
    snprintf(host->console, sizeof(host->console), "%s/%u.console", directory, number);
    snprintf(host->said, sizeof(host->said), "%s/%u.said", directory, number);
    snprintf(words, sizeof(words),
             "--kernel %s --arbiter dir:%s --control %s --console %s --peer-timeout 1000 --heartbeat 20 "
             "--max-input-delay 5000 --segment 20 --ring 1 --max-pause 100",
             kernel, directory, host->control, host->console);
    return words;
}

struct host host_start_in(int network, unsigned number, const char *command, const char *arguments)
{
    static char line[2048];
    struct host host;
    char *words[64], *rest = line;
    const char *all = host_words(&host, number);
    int count = 0;

    snprintf(line, sizeof(line), "%s %s --memory 64 --name many %s %s%s %s %s", ftvmm, command, all,
             strcmp(command, "backup") == 0 ? "--differences " : "",
             strcmp(command, "backup") == 0 ? differences : "", hosts_arguments, arguments);
    while ((words[count] = strsep(&rest, " ")) != NULL)
        count += *words[count] != '\0';
    host.pid = fork();
    assert_true(host.pid >= 0);
    if (host.pid == 0) {
        int said = open(host.said, O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(said, 2);
        if (network >= 0 && setns(network, CLONE_NEWNET) != 0)
            _exit(98);
        execv(ftvmm, words);
        _exit(99);
    }
    return host;
}

struct host host_start(unsigned number, const char *command, const char *arguments)
{
    return host_start_in(-1, number, command, arguments);
}

void host_fail(const struct host *host, const char *what)
{
    char command[256];

    fprintf(stderr, "host %u: %s; all have said:\n", host->number, what);
    snprintf(command, sizeof(command), "cd %s && tail -n +1 *.said >&2", directory);
    if (system(command) != 0)
        fprintf(stderr, "nothing\n");
    fail();
}

cJSON *host_ask(const struct host *host, const char *words)
{
    static char said[65536];
    char command[512];
    FILE *pipe;
    size_t bytes;

    snprintf(command, sizeof(command), "timeout 40 %s --socket %s --json %s 2>/dev/null", ftctl, host->control, words);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    bytes = fread(said, 1, sizeof(said) - 1, pipe);
    said[bytes] = '\0';
    pclose(pipe);
    return cJSON_Parse(said);
}

bool host_has_ended(const struct host *host)
{
    siginfo_t info = { 0 };

    return waitid(P_PID, (id_t)host->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

bool host_is(const struct host *host, const char *role, bool protected)
{
    cJSON *answer = host_has_ended(host) ? NULL : host_ask(host, "status");
    const cJSON *status = cJSON_GetObjectItem(answer, "status");
    const char *now = cJSON_GetStringValue(cJSON_GetObjectItem(status, "role"));
    bool is = now != NULL && strcmp(now, role) == 0 && cJSON_IsTrue(cJSON_GetObjectItem(status, "running")) &&
              cJSON_IsTrue(cJSON_GetObjectItem(status, "protected")) == protected;

    cJSON_Delete(answer);
    return is;
}

void host_await(const struct host *host, const char *role, bool protected)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (!host_is(host, role, protected)) {
        if (host_has_ended(host))
            host_fail(host, "it has ended");
        if (clock_now_ns() > limit_ns)
            host_fail(host, role);
        clock_sleep_ns(20 * NS_PER_MS);
    }
}

int host_end(const struct host *host)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;
    int status;

    while (waitpid(host->pid, &status, WNOHANG) == 0) {
        if (clock_now_ns() > limit_ns) {
            kill(host->pid, SIGKILL);
            host_fail(host, "it does not end");
        }
        clock_sleep_ns(10 * NS_PER_MS);
    }
    return status;
}

bool host_has_said(const struct host *host, const char *words)
{
    static char text[65536];
    FILE *file = fopen(host->said, "r");

    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    return strstr(text, words) != NULL;
}

void host_await_said(const struct host *host, const char *words)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (!host_has_said(host, words)) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, words);
        clock_sleep_ns(20 * NS_PER_MS);
    }
}

void hosts_stop(const struct host *live, const struct host *backup)
{
    cJSON_Delete(host_ask(live, "stop"));
    if (host_end(live) != 0)
        host_fail(live, "it did not stop in order");
    if (host_end(backup) != 0 || !host_has_said(backup, "equal to the primary's to the last byte"))
        host_fail(backup, "it has not found the guest equal");
}

uint64_t host_ram_at(const struct host *host)
{
    char path[64], line[512];
    uint64_t base = 0;
    FILE *maps;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)host->pid);
    maps = fopen(path, "r");
    assert_non_null(maps);
    while (base == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (strstr(line, "memfd:guest memory") != NULL)
            base = strtoull(line, NULL, 16);
    fclose(maps);
    assert_true(base != 0);
    return base;
}

int shell(const char **said, const char *format, ...)
{
    static char text[65536];
    char command[2048];
    va_list args;
    FILE *pipe;
    size_t bytes;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    bytes = fread(text, 1, sizeof(text) - 1, pipe);
    text[bytes] = '\0';
    *said = text;
    return WEXITSTATUS(pclose(pipe));
}

uint64_t host_number(const struct host *host, const char *object, const char *name)
{
    cJSON *answer = host_ask(host, "status");
    const cJSON *part = cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "status"), object);
    double number = cJSON_GetNumberValue(cJSON_GetObjectItem(part, name));

    cJSON_Delete(answer);
    return number > 0 ? (uint64_t)number : 0; /* not a number: there is none yet */
}

void host_await_number(const struct host *host, const char *object, const char *name, uint64_t least)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (host_number(host, object, name) < least) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, name);
        clock_sleep_ns(20 * NS_PER_MS);
    }
}

struct host host_protect(const struct host *live, unsigned number)
{
    char arguments[96], words[96];
    struct host backup;
    cJSON *answer;

    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-%u", (int)getpid(), number);
    backup = host_start(number, "backup", arguments);
    snprintf(words, sizeof(words), "protect shm:many-%d-%u", (int)getpid(), number);
    answer = host_ask(live, words);
    if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok"))) {
        fprintf(stderr, "%s\n", cJSON_GetStringValue(cJSON_GetObjectItem(answer, "error")));
        host_fail(live, "it gets no backup");
    }
    cJSON_Delete(answer);
    host_await(live, "primary", true);
    return backup;
}

cJSON *host_difference(const struct host *host, unsigned number)
{
    static char text[4 << 20];
    char command[256];
    FILE *pipe;
    cJSON *report;

    snprintf(command, sizeof(command), "cat %s/differences/difference-*-%d-%u.json", directory, (int)host->pid, number);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    text[fread(text, 1, sizeof(text) - 1, pipe)] = '\0';
    pclose(pipe);
    report = cJSON_Parse(text);
    if (report == NULL)
        host_fail(host, "it has saved no report of a difference");
    return report;
}

/* The guest's RAM in that process: a descriptor for pread and pwrite, and where it begins. */
static int memory_open(const struct host *host, unsigned long long *base)
{
    char path[64];
    int memory;

    *base = host_ram_at(host);
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)host->pid);
    memory = open(path, O_RDWR);
    assert_true(memory >= 0);
    return memory;
}

void host_spoil(const struct host *host)
{
    unsigned long long base;
    int memory = memory_open(host, &base);
    siginfo_t info = { 0 };
    char byte = 0x55;

    /* At one moment of the guest: or it could find out, be healed, and be spoilt again by the rest. */
    assert_int_equal(kill(host->pid, SIGSTOP), 0);
    assert_int_equal(waitid(P_PID, (id_t)host->pid, &info, WSTOPPED), 0);
    for (unsigned page = 0; page < 4096; page++)
        assert_int_equal(pwrite(memory, &byte, 1, (off_t)(base + 0x2000000 + page * 4096ull + 16)), 1);
    kill(host->pid, SIGCONT);
    close(memory);
}

void host_spoil_code(const struct host *host)
{
    static const uint8_t shift[] = { 0x48, 0xc1, 0xe9, 0x1d }; /* shr $29, %rcx */
    static uint8_t ram[64 << 20];
    const uint8_t *code, *at;
    unsigned long long base;
    int memory = memory_open(host, &base);
    uint8_t other = 28;

    for (size_t bytes = 0; bytes < sizeof(ram); bytes += 1 << 20)
        assert_int_equal(pread(memory, ram + bytes, 1 << 20, (off_t)(base + bytes)), 1 << 20);
    code = memmem(ram, sizeof(ram), guest_code, (size_t)(guest_code_end - guest_code));
    assert_non_null(code);
    at = memmem(code, (size_t)(guest_code_end - guest_code), shift, sizeof(shift));
    assert_non_null(at);
    assert_int_equal(pwrite(memory, &other, 1, (off_t)(base + (size_t)(at + 3 - ram))), 1);
    close(memory);
}

int hosts_open(const char *ftvmm_path, const char *ftctl_path)
{
    return hosts_open_with(ftvmm_path, ftctl_path, guest_code, (size_t)(guest_code_end - guest_code));
}

int hosts_open_with(const char *ftvmm_path, const char *ftctl_path, const uint8_t *code, size_t code_bytes)
{
    /* Before others, where that may be: who is starved looks dead, as it should, and what else the machine does is no fault
     * that a test means. */
    (void)setpriority(PRIO_PROCESS, 0, -10);
    ftvmm = ftvmm_path;
    ftctl = ftctl_path;
    /* In memory if that can be: the arbiter is in it, and a busy disk can take seconds for its fsync. */
    snprintf(directory, sizeof(directory), "/dev/shm/ftvmm-hosts.XXXXXX");
    if (mkdtemp(directory) == NULL) {
        snprintf(directory, sizeof(directory), "/tmp/ftvmm-hosts.XXXXXX");
        if (mkdtemp(directory) == NULL)
            return -1;
    }
    snprintf(differences, sizeof(differences), "%s/differences", directory);
    kernel_write(code, code_bytes);
    return 0;
}

const char *hosts_directory(void)
{
    return directory;
}

int hosts_close(void)
{
    char command[96];

    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}
