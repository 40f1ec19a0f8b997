/* Starts and ends etcd servers for tests. */
#include "tests/unit/lockstep/etcd_cluster.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/ports.h"

#define START_NS (20 * NS_PER_S)

bool etcd_is_installed(void)
{
    return system("command -v etcd etcdctl openssl >/dev/null 2>&1") == 0;
}

static void member_exec(const struct etcd_cluster *cluster, unsigned member)
{
    const char *scheme = cluster->tls_dir != NULL ? "https" : "http";
    char name[16], data[96], log[96], client[64], peer[64], all[256] = "", cert[128], key[128], ca[128];
    const char *arguments[40];
    unsigned count = 0;
    int fd;

    for (unsigned i = 0; i < cluster->members; i++)
        snprintf(all + strlen(all), sizeof(all) - strlen(all), "%sm%u=http://127.0.0.1:%d", i > 0 ? "," : "", i,
                 cluster->peer_ports[i]);
    snprintf(name, sizeof(name), "m%u", member);
    snprintf(data, sizeof(data), "%s/%s", cluster->dir, name);
    snprintf(log, sizeof(log), "%s/%s.log", cluster->dir, name);
    snprintf(client, sizeof(client), "%s://%s:%d", scheme, cluster->host, cluster->client_ports[member]);
    snprintf(peer, sizeof(peer), "http://127.0.0.1:%d", cluster->peer_ports[member]);
    const char *const always[] = {
        "etcd", "--name", name, "--data-dir", data, "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", all,
        "--initial-cluster-state", "new", "--initial-cluster-token", cluster->dir, "--heartbeat-interval", "50",
        "--election-timeout", "500", "--bcrypt-cost", "4", "--log-outputs", "stderr",
    };
    for (count = 0; count < sizeof(always) / sizeof(always[0]); count++)
        arguments[count] = always[count];
    if (cluster->tls_dir != NULL) {
        snprintf(cert, sizeof(cert), "--cert-file=%s/server.pem", cluster->tls_dir);
        snprintf(key, sizeof(key), "--key-file=%s/server.key", cluster->tls_dir);
        snprintf(ca, sizeof(ca), "--trusted-ca-file=%s/ca.pem", cluster->tls_dir);
        arguments[count++] = cert;
        arguments[count++] = key;
        arguments[count++] = ca;
        arguments[count++] = "--client-cert-auth";
    }
    arguments[count] = NULL;
    fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
        _exit(126);
    execvp("etcd", (char *const *)arguments);
    _exit(127);
}

void etcd_member_start(struct etcd_cluster *cluster, unsigned member)
{
    pid_t parent = getpid(), pid;
    char log[96];

    snprintf(log, sizeof(log), "%s/m%u.log", cluster->dir, member);
    unlink(log);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion leaves it behind */
        if (getppid() != parent)
            _exit(125);
        member_exec(cluster, member);
    }
    cluster->pids[member] = pid;
}

void etcd_member_wait(struct etcd_cluster *cluster, unsigned member)
{
    uint64_t until_ns = clock_now_ns() + START_NS;
    char command[160];

    snprintf(command, sizeof(command), "grep -qs 'ready to serve client requests' '%s/m%u.log'", cluster->dir, member);
    while (system(command) != 0) {
        if (clock_now_ns() > until_ns || waitpid(cluster->pids[member], NULL, WNOHANG) != 0) {
            snprintf(command, sizeof(command), "tail -5 '%s/m%u.log' >&2", cluster->dir, member);
            if (system(command) != 0)
                print_message("etcd said nothing\n");
            fail_msg("etcd member %u does not come up", member);
        }
        clock_sleep_ns(50 * NS_PER_MS);
    }
}

void etcd_member_kill(struct etcd_cluster *cluster, unsigned member)
{
    if (cluster->pids[member] <= 0)
        return;
    kill(cluster->pids[member], SIGKILL);
    waitpid(cluster->pids[member], NULL, 0);
    cluster->pids[member] = 0;
}

static void start(struct etcd_cluster *cluster, unsigned members, const char *tls_dir, const char *host)
{
    *cluster = (struct etcd_cluster){ .members = members, .tls_dir = tls_dir, .host = host,
                                      .dir = "/tmp/ftvmm-etcd-XXXXXX" };
    assert_non_null(mkdtemp(cluster->dir));
    for (unsigned i = 0; i < members; i++) {
        cluster->client_ports[i] = (int)ports_free(1);
        cluster->peer_ports[i] = (int)ports_free(1);
    }
    for (unsigned i = 0; i < members; i++)
        etcd_member_start(cluster, i);
    for (unsigned i = 0; i < members; i++)
        etcd_member_wait(cluster, i);
}

void etcd_cluster_start(struct etcd_cluster *cluster, unsigned members, const char *tls_dir)
{
    start(cluster, members, tls_dir, "127.0.0.1");
}

void etcd_cluster_start_at(struct etcd_cluster *cluster, const char *host)
{
    start(cluster, 1, NULL, host);
}

void etcd_cluster_end(struct etcd_cluster *cluster)
{
    char command[96];

    for (unsigned i = 0; i < cluster->members; i++)
        etcd_member_kill(cluster, i);
    if (cluster->members == 0)
        return;
    snprintf(command, sizeof(command), "rm -rf '%s'", cluster->dir);
    cluster->members = 0;
    assert_int_equal(system(command), 0);
}

const char *etcd_cluster_address(const struct etcd_cluster *cluster)
{
    static char address[256];

    strcpy(address, "etcd:");
    for (unsigned i = 0; i < cluster->members; i++)
        snprintf(address + strlen(address), sizeof(address) - strlen(address), "%s%s://%s:%d", i > 0 ? "," : "",
                 cluster->tls_dir != NULL ? "https" : "http", cluster->host, cluster->client_ports[i]);
    return address;
}

/* `command` with etcdctl's environment for a member; -1 if it fails. */
static int control(const struct etcd_cluster *cluster, unsigned member, const char *command)
{
    char line[2048], tls[512] = "";

    if (cluster->tls_dir != NULL)
        snprintf(tls, sizeof(tls),
                 "ETCDCTL_CACERT='%s/ca.pem' ETCDCTL_CERT='%s/server.pem' ETCDCTL_KEY='%s/server.key'",
                 cluster->tls_dir, cluster->tls_dir, cluster->tls_dir);
    snprintf(line, sizeof(line), "export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=%s://127.0.0.1:%d %s; (%s) >/dev/null",
             cluster->tls_dir != NULL ? "https" : "http", cluster->client_ports[member], tls, command);
    return system(line);
}

void etcd_control(const struct etcd_cluster *cluster, const char *command)
{
    assert_int_equal(control(cluster, 0, command), 0);
}

unsigned etcd_cluster_leader(const struct etcd_cluster *cluster, const char *user)
{
    char command[256];

    /* endpoint, ID, version, size, "true" for the leader, ... */
    snprintf(command, sizeof(command), "etcdctl --user %s endpoint status | cut -d, -f5 | grep -q true", user);
    for (uint64_t until_ns = clock_now_ns() + START_NS; clock_now_ns() < until_ns; clock_sleep_ns(50 * NS_PER_MS))
        for (unsigned member = 0; member < cluster->members; member++)
            if (control(cluster, member, command) == 0)
                return member;
    fail_msg("etcd has no leader");
    return 0;
}
