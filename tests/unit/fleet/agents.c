/* Agents as processes; see agents.h. */
#include "tests/unit/fleet/agents.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"

static const char *ftagent, *auth;
static char urls[512], dir[32], sleeper[48];
static atomic_bool never;
const char *agents_sleeper = sleeper;

void agents_open(const char *ftagent_path, const char *fleet_urls, const char *fleet_auth)
{
    FILE *file;

    ftagent = ftagent_path;
    auth = fleet_auth;
    snprintf(urls, sizeof(urls), "%s", fleet_urls);
    snprintf(dir, sizeof(dir), "/tmp/ftvmm-fleet-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(sleeper, sizeof(sleeper), "%s/sleeper", dir);
    file = fopen(sleeper, "w");
    assert_non_null(file);
    fputs("#!/bin/sh\nexec sleep 150\n", file);
    fclose(file);
    assert_int_equal(chmod(sleeper, 0700), 0);
}

void agents_close(void)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

struct agent agent_named(const char *name)
{
    struct agent agent = { 0 };
    char command[512];

    snprintf(agent.name, sizeof(agent.name), "%s", name);
    snprintf(agent.dir, sizeof(agent.dir), "%s/%s", dir, name);
    snprintf(agent.said, sizeof(agent.said), "%s/said", agent.dir);
    snprintf(command, sizeof(command), "mkdir -p -m 700 %s/vms %s/run && chmod 700 %s", agent.dir, agent.dir,
             agent.dir);
    assert_int_equal(system(command), 0);
    return agent;
}

/* `words`: for ftvmm backup. */
void agent_describe(const struct agent *agent, const char *vm, const char *address, const char *words)
{
    char path[160], copy[1024], *rest = copy, *word;
    cJSON *object = cJSON_CreateObject(), *list;
    char *text;
    FILE *file;

    cJSON_AddStringToObject(object, "listen", address);
    cJSON_AddNumberToObject(object, "memory_mib", 64);
    list = cJSON_AddArrayToObject(object, "arguments");
    snprintf(copy, sizeof(copy), "%s", words);
    while ((word = strsep(&rest, " ")) != NULL)
        if (*word != '\0')
            cJSON_AddItemToArray(list, cJSON_CreateString(word));
    snprintf(path, sizeof(path), "%s/vms/%s.json", agent->dir, vm);
    file = fopen(path, "w");
    assert_non_null(file);
    text = cJSON_Print(object);
    fputs(text, file);
    fclose(file);
    free(text);
    cJSON_Delete(object);
}

void agent_start(struct agent *agent, const char *memory, const char *program)
{
    char vms[128], run[128];
    pid_t parent = getpid();

    snprintf(vms, sizeof(vms), "%s/vms", agent->dir);
    snprintf(run, sizeof(run), "%s/run", agent->dir);
    agent->pid = fork();
    assert_true(agent->pid >= 0);
    if (agent->pid == 0) {
        int said = open(agent->said, O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(125);
        dup2(said, 2);
        execl(ftagent, ftagent, "run", "--fleet", urls, "--name", agent->name, "--memory", memory, "--guests", "4",
              "--vms", vms, "--run", run, "--ftvmm", program, "--lease", "5", auth != NULL ? "--fleet-auth" : NULL,
              auth, NULL);
        _exit(99);
    }
}

void agent_kill(struct agent *agent, int signal_number, int expected)
{
    int status;

    kill(agent->pid, signal_number);
    assert_int_equal(waitpid(agent->pid, &status, 0), agent->pid);
    assert_int_equal(WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status), expected);
    agent->pid = 0;
}

void agents_say(void)
{
    char command[128];

    snprintf(command, sizeof(command), "tail -n 20 %s/*/said >&2", dir);
    if (system(command) != 0)
        print_message("no agent has said anything\n");
}

/* What the fleet is, as ftagent tells; cJSON_Delete it. */
cJSON *fleet_status(void)
{
    static char said[1 << 20];
    char command[1024];
    size_t bytes;
    FILE *pipe;

    snprintf(command, sizeof(command), "timeout 40 %s status --json --fleet %s %s %s", ftagent, urls,
             auth != NULL ? "--fleet-auth" : "", auth != NULL ? auth : "");
    pipe = popen(command, "r");
    assert_non_null(pipe);
    bytes = fread(said, 1, sizeof(said) - 1, pipe);
    said[bytes] = '\0';
    return pclose(pipe) == 0 ? cJSON_Parse(said) : NULL;
}

const cJSON *host_of(const cJSON *fleet, const char *name)
{
    const cJSON *host;

    cJSON_ArrayForEach(host, cJSON_GetObjectItem(fleet, "hosts"))
        if (strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(host, "name")), name) == 0)
            return host;
    return NULL;
}

/* Waits until the host is as present as told and has so much memory free; < 0: whatever it has. */
void await_host(const char *name, bool present, int free_mib)
{
    for (uint64_t until_ns = clock_now_ns() + AGENTS_LIMIT_NS; clock_now_ns() < until_ns;
         clock_sleep_ns(100 * NS_PER_MS)) {
        cJSON *fleet = fleet_status();
        const cJSON *host = host_of(fleet, name), *free = cJSON_GetObjectItem(host, "free_mib");
        bool is = fleet != NULL && cJSON_IsTrue(cJSON_GetObjectItem(host, "present")) == present &&
                  (free_mib < 0 || (cJSON_IsNumber(free) && free->valueint == free_mib));

        cJSON_Delete(fleet);
        if (is)
            return;
    }
    agents_say();
    fail_msg("host %s is not %s with %d MiB free", name, present ? "present" : "away", free_mib);
}

/* The process that an agent has started for VM, from its file; 0: none that lives, whose lock it is. */
pid_t backup_pid(const struct agent *agent, const char *vm)
{
    char path[160];
    int pid = 0;
    FILE *file;

    snprintf(path, sizeof(path), "%s/run/%s.backup", agent->dir, vm);
    file = fopen(path, "r");
    if (file != NULL && flock(fileno(file), LOCK_SH | LOCK_NB) == 0) {
        fclose(file);
        return 0;
    }
    if (file != NULL && fscanf(file, "%*[^\n]\n%d", &pid) != 1)
        pid = 0;
    if (file != NULL)
        fclose(file);
    return pid;
}

/* What has been claimed is started a moment later. */
pid_t backup_await(const struct agent *agent, const char *vm)
{
    pid_t pid = 0;

    for (uint64_t until_ns = clock_now_ns() + AGENTS_LIMIT_NS; pid == 0 && clock_now_ns() < until_ns;) {
        pid = backup_pid(agent, vm);
        if (pid == 0)
            clock_sleep_ns(20 * NS_PER_MS);
    }
    assert_true(pid > 0);
    return pid;
}

void backup_kill(const struct agent *agent, const char *vm)
{
    assert_int_equal(kill(backup_await(agent, vm), SIGKILL), 0);
}

/* ---- a primary's side ---- */

struct fleet_spare *search(const char *vm, const char *own_host)
{
    struct fleet_spare *spare;
    struct fleet_spare_options options = {
        .urls = urls,
        .auth_dir = auth,
        .auth_option = "--fleet-auth",
        .own_host = own_host,
        .vm = vm,
        .memory_mib = 64,
        .cancel = &never,
    };
    assert_int_equal(fleet_spare_open(&spare, &options), 0);
    return spare;
}

char found_address[FLEET_ADDRESS_BYTES], found[FLEET_NAME_BYTES], found_why[FLEET_WHY_BYTES];

int find(const char *vm, const char *own_host)
{
    struct fleet_spare *spare = search(vm, own_host);
    int rc = fleet_spare_find(spare, found_address, found, found_why);

    fleet_spare_close(spare);
    return rc;
}

void found_is(int rc, const char *host)
{
    if (rc != 0 || strcmp(found, host) != 0) {
        agents_say();
        fail_msg("%s was to be found: %d, %s", host, rc, rc == 0 ? found : found_why);
    }
}
