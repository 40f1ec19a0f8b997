/*
 * The witness's network: listens, admits hosts, and gives each connection the one word that its generation has, for
 * compare-and-swap by the host's NIC and for nothing else.
 *
 * Each connection has a protection domain of its own, in which nothing is remotely reachable before the host has proven
 * to hold its VM's key; then it is 8 bytes. Bounded: 32 connections that have not proven themselves, for 3 s each, and
 * 16 a VM that have; the oldest of these gives way to a newcomer that has, since a host that died tells nobody.
 *
 * Threads: one.
 */
#ifndef FTVMM_WITNESS_SERVE_H
#define FTVMM_WITNESS_SERVE_H

struct witness_server;

struct witness_server_options {
    const char *listen; /* HOST:PORT, of an RDMA device */
    const char *keys;   /* directory: a file per VM, its name the VM's, as channel_secret_load takes it */
    const char *state;  /* directory of the state file */
    unsigned vms;
};

/* Listens. 0, or -errno, said in words. */
int witness_server_open(struct witness_server **out, const struct witness_server_options *options);
/* Serves until `stop_fd` becomes readable: 0; or the device is gone: -errno, said in words. */
int witness_server_run(struct witness_server *server, int stop_fd);
/* Accepts NULL. */
void witness_server_close(struct witness_server *server);

#endif
