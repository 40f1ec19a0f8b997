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

/* Words that every host_start adds; "". */
extern const char *hosts_arguments;

/* Make and remove what all hosts of a test share. 0 or not. */
int hosts_open(const char *ftvmm_path, const char *ftctl_path);
/* The same with another guest: code that runs wherever it is put. */
int hosts_open_with(const char *ftvmm_path, const char *ftctl_path, const uint8_t *code, size_t code_bytes);
const char *hosts_directory(void);
int hosts_close(void);
/* Where the hosts' files are: `kernel`, and what a test puts there; gone with hosts_close. */
const char *hosts_directory(void);

/* The words that all hosts' command lines have, name and memory left out; valid until the next call. *host gets its names;
 * there is no process yet. */
const char *host_words(struct host *host, unsigned number);
/* `arguments`: words in the shell's way, without quotes. Dies with the test. */
struct host host_start(unsigned number, const char *command, const char *arguments);
/* In this network namespace; -1: the test's own. */
struct host host_start_in(int network, unsigned number, const char *command, const char *arguments);
/* Waits until the host has ended; its status as waitpid tells it. */
int host_end(const struct host *host);
void host_fail(const struct host *host, const char *what);

/* ftctl's answer to these words; cJSON_Delete it. NULL: there is none. */
cJSON *host_ask(const struct host *host, const char *words);
bool host_has_ended(const struct host *host);
/* Does the status say so? */
bool host_is(const struct host *host, const char *role, bool protected);
/* Waits until the status says so. */
void host_await(const struct host *host, const char *role, bool protected);
/* A number of the status, 0 if it is not there; and waits until it is at least so much. */
uint64_t host_number(const struct host *host, const char *object, const char *name);
void host_await_number(const struct host *host, const char *object, const char *name, uint64_t least);
/* On stderr, so far. */
bool host_has_said(const struct host *host, const char *words);
void host_await_said(const struct host *host, const char *words);
/* The guest is stopped, and its backup must have found it equal. */
void hosts_stop(const struct host *live, const struct host *backup);
/* Where the guest's memory is in the process: /proc/PID/mem has it there. */
uint64_t host_ram_at(const struct host *host);
/* Runs a command line; its status. What it puts out is in *said, until the next one. */
__attribute__((format(printf, 2, 3)))
int shell(const char **said, const char *format, ...);
/* The new backup of `live`, at an address of its own; it is protected then. */
struct host host_protect(const struct host *live, unsigned number);

#endif
