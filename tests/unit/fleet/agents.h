/*
 * Agents of a test as processes, with a real etcd behind them; and a primary's search for a spare. What is wrong fails
 * the test, with the last words of all agents.
 */
#ifndef FTVMM_TESTS_FLEET_AGENTS_H
#define FTVMM_TESTS_FLEET_AGENTS_H

#include <stdbool.h>
#include <sys/types.h>

#include <cjson/cJSON.h>

#include "fleet/spare.h"

#define AGENTS_LIMIT_NS (60 * NS_PER_S)

struct agent {
    pid_t pid;
    char name[16], dir[64], said[80];
};

/* A directory for all, and a program in ftvmm's place where no guest is needed; `auth`: --fleet-auth, NULL: none. */
void agents_open(const char *ftagent, const char *urls, const char *auth);
void agents_close(void);
extern const char *agents_sleeper; /* that program: it stays until it is killed */
void agents_say(void);             /* their last words */

struct agent agent_named(const char *name);
/* VM.json of 64 MiB; `words`: for ftvmm backup. */
void agent_describe(const struct agent *agent, const char *vm, const char *address, const char *words);
/* Under a lease of 5 s. Dies with the test. */
void agent_start(struct agent *agent, const char *memory, const char *program);
/* And waits for its end: an exit status, or a signal's number, negative. */
void agent_kill(struct agent *agent, int signal_number, int expected);

/* The process that an agent has started for VM; 0: none that lives. */
pid_t backup_pid(const struct agent *agent, const char *vm);
/* Waits for it; and ends it. */
pid_t backup_await(const struct agent *agent, const char *vm);
void backup_kill(const struct agent *agent, const char *vm);

/* What the fleet is, as ftagent tells; cJSON_Delete it. NULL: etcd does not answer. And a host in it, NULL: there is
 * none. */
cJSON *fleet_status(void);
const cJSON *host_of(const cJSON *fleet, const char *name);
/* Waits until the host is as present as told and has so much memory free; < 0: whatever it has. */
void await_host(const char *name, bool present, int free_mib);

/* A search for 64 MiB. */
struct fleet_spare *search(const char *vm, const char *own_host);
/* One such: what it returns, and what it has found. */
int find(const char *vm, const char *own_host);
extern char found_address[FLEET_ADDRESS_BYTES], found[FLEET_NAME_BYTES], found_why[FLEET_WHY_BYTES];
void found_is(int rc, const char *host);

#endif
