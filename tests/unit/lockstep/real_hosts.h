/*
 * Hosts of a test as real ftvmm processes on this machine's KVM, with a guest of a few bytes that works its memory, and
 * ftctl to ask them. What is wrong fails the test, with the last words of all hosts.
 */
#ifndef FTVMM_TESTS_LOCKSTEP_REAL_HOSTS_H
#define FTVMM_TESTS_LOCKSTEP_REAL_HOSTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <cjson/cJSON.h>

struct host {
    pid_t pid;
    unsigned number;
    char control[96], console[96], said[96];
};

/* A byte in each page that the guest writes is changed behind its back, where it does not look. */
void host_spoil(const struct host *host);
/* An instruction of its guest is another from now on. */
void host_spoil_code(const struct host *host);
/* What this backup saved of the difference with this number, from 1. The caller deletes it; the test fails if it is none. */
cJSON *host_difference(const struct host *host, unsigned number);


/* Make and remove what all hosts of a test share. 0 or not. */
int hosts_open(const char *ftvmm_path, const char *ftctl_path);
int hosts_close(void);

/* `arguments`: words in the shell's way, without quotes. Dies with the test. */
struct host host_start(unsigned number, const char *command, const char *arguments);
/* Waits until the host has ended; its status as waitpid tells it. */
int host_end(const struct host *host);
void host_fail(const struct host *host, const char *what);

/* ftctl's answer to these words; cJSON_Delete it. NULL: there is none. */
cJSON *host_ask(const struct host *host, const char *words);
/* Waits until the status says so. */
void host_await(const struct host *host, const char *role, bool protected);
/* A number of the status, 0 if it is not there; and waits until it is at least so much. */
uint64_t host_number(const struct host *host, const char *object, const char *name);
void host_await_number(const struct host *host, const char *object, const char *name, uint64_t least);
/* On stderr, so far. */
bool host_has_said(const struct host *host, const char *words);
/* The new backup of `live`, at an address of its own; it is protected then. */
struct host host_protect(const struct host *live, unsigned number);

#endif
