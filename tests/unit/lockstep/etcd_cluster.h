/* A real etcd cluster on loopback: its own data, its own ports, processes that end with the test. */
#ifndef FTVMM_TESTS_ETCD_CLUSTER_H
#define FTVMM_TESTS_ETCD_CLUSTER_H

#include <stdbool.h>
#include <sys/types.h>

enum { ETCD_MEMBERS_MAX = 3 };

struct etcd_cluster {
    unsigned members;
    const char *tls_dir; /* NULL: http; else it holds ca.pem, server.pem, server.key */
    const char *host;    /* where clients find it */
    char dir[64];
    pid_t pids[ETCD_MEMBERS_MAX];
    int client_ports[ETCD_MEMBERS_MAX], peer_ports[ETCD_MEMBERS_MAX];
};

bool etcd_is_installed(void);

/* Both fail the test if etcd does not come up in time. */
void etcd_cluster_start(struct etcd_cluster *cluster, unsigned members, const char *tls_dir);
/* One member at an address of this network namespace, without TLS. */
void etcd_cluster_start_at(struct etcd_cluster *cluster, const char *host);
void etcd_member_start(struct etcd_cluster *cluster, unsigned member); /* again, with the data it has */
void etcd_member_wait(struct etcd_cluster *cluster, unsigned member);  /* until it serves */
void etcd_member_kill(struct etcd_cluster *cluster, unsigned member);
void etcd_cluster_end(struct etcd_cluster *cluster); /* accepts one that never started */

/* "etcd:URL,URL,..." of all members; valid until the next call. */
const char *etcd_cluster_address(const struct etcd_cluster *cluster);

/* The member that leads; fails the test if there is none for long. `user`: NAME:PASSWORD. */
unsigned etcd_cluster_leader(const struct etcd_cluster *cluster, const char *user);

/* Runs a command line in sh, with etcdctl set up for member 0; fails the test if the command does. */
void etcd_control(const struct etcd_cluster *cluster, const char *command);

#endif
