/* What the command line asked for. */
#ifndef FTVMM_VMM_OPTIONS_H
#define FTVMM_VMM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/lockstep.h"
#include "vmm/log.h"

enum command {
    COMMAND_RUN, COMMAND_PRIMARY, COMMAND_BACKUP, COMMAND_RECORD, COMMAND_REPLAY, COMMAND_LOG, COMMAND_CHECK
};

struct options {
    enum command command;
    const char *vm;
    struct machine_options machine;
    char *command_line;     /* owned; machine.command_line points here */
    struct disk_options disk;
    char *disk_path;        /* owned; disk.path points here */
    const char *net_port;   /* NULL: no cable */
    const char *peer;       /* channel address: --backup, --listen, or file:PATH of record and replay */
    const char *key_path;   /* NULL: none */
    enum channel_ack ack;
    const char *spare;      /* where a new backup is to be found; NULL: nobody has said */
    const char *fleet;      /* etcd's URLs, where hosts are registered; NULL: none */
    const char *fleet_auth; /* NULL: none */
    const char *fleet_host; /* this host's name there; NULL or empty: the host name */
    uint64_t max_pause_ns;  /* of a guest that is given a new backup */
    uint64_t transfer_bytes_per_s; /* 0: as fast as can be */
    const char *arbiter;
    const char *arbiter_auth; /* NULL: none */
    const char *status_path;
    const char *control_path; /* NULL: the default; "none" */
    const char *metrics;      /* ADDRESS:PORT; NULL: none */
    const char *console;    /* "stdio", "none" or a path */
    const char *dump_path;  /* replay: NULL: no dump */
    const char *gdb;        /* replay: where gdb may connect; NULL: nowhere */
    struct kept_log_options keep_log;
    char *keep_log_path;    /* owned; keep_log.directory points here */
    struct log_options log;
    bool verify;
    uint64_t ring_bytes;
    uint64_t join_timeout_ns;
    struct lockstep_options lockstep;
    bool cpus_given;        /* else the threads run where the scheduler likes */
    unsigned vcpu_cpu, io_cpu;
};

/*
 * Parses and checks the command line. 0: go on. Otherwise the process should end with the status in
 * *exit_status (0 after --help or --version, 2 after a wrong use, which has been said in words).
 */
int options_parse(struct options *options, int argc, char **argv, int *exit_status);
void options_free(struct options *options);

#endif
