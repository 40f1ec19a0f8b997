/*
 * One guest that outlives its hosts, again and again: real ftvmm processes, a real vCPU, a guest of a few bytes. Each host
 * in turn is killed or hands over, and the survivor is given a new backup while the guest runs on. Every backup compares
 * the registers at each position and all of RAM now and then, and at the end to the last byte; so a transfer that left
 * anything out, or took the pair apart, is found. argv[1]: ftvmm, argv[2]: ftctl.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "tests/unit/boot/fake_kernel.h"
#include "tests/unit/cmocka_prelude.h"

#define LIMIT_NS (60 * NS_PER_S)
#define HOSTS    7 /* one after the other, the first two begin as a pair */

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
static char directory[64], kernel[96];
static unsigned seed;

struct host {
    pid_t pid;
    unsigned number;
    char control[96], console[96], said[96];
};

static void kernel_write(void)
{
    static struct fake_kernel fake;
    size_t bytes;
    uint8_t *image;
    FILE *file;

    fake_kernel_build(&fake);
    memcpy(fake.text, (const uint8_t[]){ 0xe9, 0xfb, 0x03, 0, 0 }, 5); /* jmp to 0x400 */
    memcpy(fake.text + 0x400, guest_code, (size_t)(guest_code_end - guest_code));
    image = fake_bzimage(fake.bytes, fake.size, FAKE_LZ4, &bytes);
    snprintf(kernel, sizeof(kernel), "%s/kernel", directory);
    file = fopen(kernel, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(image, 1, bytes, file), bytes);
    fclose(file);
    free(image);
}

/* `arguments`: words in the shell's way, without quotes. */
static struct host host_start(unsigned number, const char *command, const char *arguments)
{
    static char line[2048];
    struct host host = { .number = number };
    char *words[64], *rest = line;
    int count = 0;

    snprintf(host.control, sizeof(host.control), "%s/%u.sock", directory, number);
    snprintf(host.console, sizeof(host.console), "%s/%u.console", directory, number);
    snprintf(host.said, sizeof(host.said), "%s/%u.said", directory, number);
    snprintf(line, sizeof(line),
             "%s %s --kernel %s --memory 64 --name many --arbiter dir:%s --control %s --console %s --peer-timeout 1000 "
             "--heartbeat 20 --max-input-delay 5000 --segment 20 --ring 1 --max-pause 100 %s",
             ftvmm, command, kernel, directory, host.control, host.console, arguments);
    while ((words[count] = strsep(&rest, " ")) != NULL)
        count += *words[count] != '\0';
    host.pid = fork();
    assert_true(host.pid >= 0);
    if (host.pid == 0) {
        int said = open(host.said, O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(said, 2);
        execv(ftvmm, words);
        _exit(99);
    }
    return host;
}

static void fail_with_words(const struct host *host, const char *what)
{
    char command[256];

    fprintf(stderr, "host %u: %s; all have said:\n", host->number, what);
    snprintf(command, sizeof(command), "cd %s && tail -n +1 *.said >&2", directory);
    if (system(command) != 0)
        fprintf(stderr, "nothing\n");
    fail();
}

static cJSON *ask(const struct host *host, const char *words)
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

/* Waits until the status says so. */
static void await(const struct host *host, const char *role, bool protected)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (clock_now_ns() < limit_ns) {
        siginfo_t info = { 0 };
        cJSON *answer = ask(host, "status"), *status = cJSON_GetObjectItem(answer, "status");
        const char *now = cJSON_GetStringValue(cJSON_GetObjectItem(status, "role"));
        bool is = now != NULL && strcmp(now, role) == 0 && cJSON_IsTrue(cJSON_GetObjectItem(status, "running")) &&
                  cJSON_IsTrue(cJSON_GetObjectItem(status, "protected")) == protected;

        cJSON_Delete(answer);
        if (is)
            return;
        if (waitid(P_PID, (id_t)host->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0)
            fail_with_words(host, "it has ended");
        clock_sleep_ns(20 * NS_PER_MS);
    }
    fail_with_words(host, role);
}

static int host_end(const struct host *host)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;
    int status;

    while (waitpid(host->pid, &status, WNOHANG) == 0) {
        if (clock_now_ns() > limit_ns) {
            kill(host->pid, SIGKILL);
            fail_with_words(host, "it does not end");
        }
        clock_sleep_ns(10 * NS_PER_MS);
    }
    return status;
}

static bool has_said(const struct host *host, const char *words)
{
    static char text[65536];
    FILE *file = fopen(host->said, "r");

    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    return strstr(text, words) != NULL;
}

static uint64_t number_of(const struct host *host, const char *object, const char *name)
{
    cJSON *answer = ask(host, "status");
    const cJSON *part = cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "status"), object);
    double number = cJSON_GetNumberValue(cJSON_GetObjectItem(part, name));

    cJSON_Delete(answer);
    return number > 0 ? (uint64_t)number : 0; /* not a number: there is none yet */
}

static void await_number(const struct host *host, const char *object, const char *name, uint64_t least)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (number_of(host, object, name) < least) {
        if (clock_now_ns() > limit_ns)
            fail_with_words(host, name);
        clock_sleep_ns(20 * NS_PER_MS);
    }
}

/* The new backup of `live`, at an address of its own. */
static struct host host_protect(const struct host *live, unsigned number)
{
    char arguments[96], words[96];
    struct host backup;
    cJSON *answer;

    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-%u", (int)getpid(), number);
    backup = host_start(number, "backup", arguments);
    snprintf(words, sizeof(words), "protect shm:many-%d-%u", (int)getpid(), number);
    answer = ask(live, words);
    if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok"))) {
        fprintf(stderr, "%s\n", cJSON_GetStringValue(cJSON_GetObjectItem(answer, "error")));
        fail_with_words(live, "it gets no backup");
    }
    cJSON_Delete(answer);
    await(live, "primary", true);
    return backup;
}

static void a_guest_outlives_its_hosts(void **state)
{
    char arguments[160];
    struct host live, backup;
    uint64_t positions = 0, began_ns = clock_now_ns();

    (void)state;
    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-1", (int)getpid());
    backup = host_start(1, "backup", arguments);
    snprintf(arguments, sizeof(arguments), "--verify --spare none --backup shm:many-%d-1", (int)getpid());
    live = host_start(0, "primary", arguments);
    await(&live, "primary", true);
    for (unsigned number = 2; number < HOSTS; number++) {
        bool handed = number % 3 == 0;
        uint64_t now;

        clock_sleep_ns((uint64_t)(rand_r(&seed) % 300) * NS_PER_MS);
        if (handed) {
            cJSON *answer = ask(&live, "failover");

            if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")))
                fail_with_words(&live, "it does not hand over");
            cJSON_Delete(answer);
            assert_int_equal(WEXITSTATUS(host_end(&live)), 3);
        } else {
            kill(live.pid, SIGKILL);
            assert_int_equal(WTERMSIG(host_end(&live)), SIGKILL);
        }
        live = backup;
        await(&live, "alone", false);
        now = number_of(&live, "lockstep", "positions");
        assert_true(now > positions);
        positions = now;
        backup = host_protect(&live, number);
    }
    cJSON_Delete(ask(&live, "stop"));
    if (host_end(&live) != 0)
        fail_with_words(&live, "it did not stop in order");
    if (host_end(&backup) != 0 || !has_said(&backup, "equal to the primary's to the last byte"))
        fail_with_words(&backup, "it has not found the guest equal");
    printf("a guest of %u hosts, %llu positions, %.1f s\n", HOSTS, (unsigned long long)positions,
           (double)(clock_now_ns() - began_ns) / (double)NS_PER_S);
}

/* A guest that was started alone gets its first backup, which is killed in the midst; then another, which is not. */
static void a_backup_that_dies_on_the_way_does_no_harm(void **state)
{
    struct host live = host_start(20, "run", ""), backup;
    char arguments[160];

    (void)state;
    await(&live, "alone", false);
    for (unsigned i = 0; i < 3; i++) {
        char words[96];
        cJSON *answer;

        snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-half%u", (int)getpid(), i);
        backup = host_start(21 + i, "backup", arguments);
        snprintf(words, sizeof(words), "protect shm:many-%d-half%u & sleep 0.%u", (int)getpid(), i, 1 + i);
        answer = ask(&live, words);
        kill(backup.pid, SIGKILL);
        (void)host_end(&backup);
        cJSON_Delete(answer);
        await(&live, "alone", false);
    }
    backup = host_protect(&live, 30);
    cJSON_Delete(ask(&live, "stop"));
    if (host_end(&live) != 0)
        fail_with_words(&live, "it did not stop in order");
    if (host_end(&backup) != 0 || !has_said(&backup, "equal to the primary's to the last byte"))
        fail_with_words(&backup, "it has not found the guest equal");
}

/* The primary dies while its state is on the way: what has come is no guest, and nobody goes live. */
static void a_primary_that_dies_on_the_way_leaves_no_second_guest(void **state)
{
    struct host live = host_start(40, "run", "--transfer-rate 1"), backup;
    char arguments[160], words[96];

    (void)state;
    await(&live, "alone", false);
    await_number(&live, "lockstep", "positions", 2000); /* pages enough for some seconds */
    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-cut", (int)getpid());
    backup = host_start(41, "backup", arguments);
    snprintf(words, sizeof(words), "protect shm:many-%d-cut & true", (int)getpid());
    cJSON_Delete(ask(&live, words));
    await_number(&live, "protection", "sent_pages", 100);
    kill(live.pid, SIGKILL);
    (void)host_end(&live);
    assert_int_equal(WEXITSTATUS(host_end(&backup)), 1);
    assert_true(has_said(&backup, "it cannot go on here"));
}

static int set_up(void **state)
{
    const char *given = getenv("FTVMM_TEST_SEED");

    (void)state;
    seed = given != NULL ? (unsigned)strtoul(given, NULL, 0) : (unsigned)clock_now_ns();
    printf("seed %u\n", seed);
    snprintf(directory, sizeof(directory), "/tmp/ftvmm-protect.XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    kernel_write();
    return 0;
}

static int tear_down(void **state)
{
    char command[96];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_outlives_its_hosts),
        cmocka_unit_test(a_backup_that_dies_on_the_way_does_no_harm),
        cmocka_unit_test(a_primary_that_dies_on_the_way_leaves_no_second_guest),
    };

    if (argc != 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
