/*
 * The fleet in an etcd cluster as it should be: three members, TLS, client certificates, a user with a password and no
 * more rights than documented. Members die, one, then two. argv[1]: ftagent.
 */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/fleet/agents.h"
#include "tests/unit/lockstep/etcd_cluster.h"

static const char *ftagent;
static struct etcd_cluster cluster;
static char tls[] = "/tmp/ftvmm-fleet-tls-XXXXXX", good[64], bad[64];

static void credentials_make(void)
{
    static const char script[] =
        "set -e; cd '%s'; exec 2>openssl.log; umask 077; echo subjectAltName=IP:127.0.0.1 >names\n"
        "new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'\n"
        "openssl req -x509 $new -days 2 -subj /CN=ca -keyout ca.key -out ca.pem\n"
        "for who in server client; do\n"
        "    openssl req $new -subj /O=$who -keyout $who.key -out $who.csr\n"
        "    openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out "
        "$who.pem\n"
        "done\n"
        "mkdir good bad; cp ca.pem good; cp client.pem good/cert.pem; cp client.key good/key.pem; cp good/* bad\n"
        "echo ftvmm:right >good/user; echo ftvmm:wrong >bad/user\n";
    char command[2048];

    assert_non_null(mkdtemp(tls));
    snprintf(command, sizeof(command), script, tls);
    assert_int_equal(system(command), 0);
    snprintf(good, sizeof(good), "%s/good", tls);
    snprintf(bad, sizeof(bad), "%s/bad", tls);
}

static void credentials_are_asked_for(void **state)
{
    char command[640], said[4096];
    FILE *pipe;

    (void)state;
    snprintf(command, sizeof(command), "%s status --fleet-auth %s --fleet %s 2>&1", ftagent, bad,
             etcd_cluster_address(&cluster) + strlen("etcd:"));
    pipe = popen(command, "r");
    assert_non_null(pipe);
    said[fread(said, 1, sizeof(said) - 1, pipe)] = '\0';
    assert_int_equal(WEXITSTATUS(pclose(pipe)), 1);
    assert_non_null(strstr(said, "authentication failed"));
}

static void members_die_and_come_back(void **state)
{
    struct agent agent = agent_named("beta");
    unsigned leader;
    pid_t pid;

    (void)state;
    agent_describe(&agent, "web", "shm:web", "");
    agent_describe(&agent, "db", "shm:db", "");
    agent_describe(&agent, "mail", "shm:mail", "");
    agent_start(&agent, "192", agents_sleeper);
    await_host("beta", true, 192);
    leader = etcd_cluster_leader(&cluster, "root:root");
    etcd_member_kill(&cluster, leader);
    found_is(find("web", "here"), "beta");
    pid = backup_await(&agent, "web");
    etcd_member_kill(&cluster, (leader + 1) % 3);
    assert_int_equal(find("db", "here"), -EHOSTUNREACH);
    clock_sleep_ns(6 * NS_PER_S); /* longer than the lease */
    assert_int_equal(backup_pid(&agent, "web"), pid);
    etcd_member_start(&cluster, leader);
    etcd_member_start(&cluster, (leader + 1) % 3);
    etcd_member_wait(&cluster, leader);
    etcd_member_wait(&cluster, (leader + 1) % 3);
    await_host("beta", true, 128); /* what was started is known as before; the search in vain has claimed nothing */
    found_is(find("db", "here"), "beta");
    assert_int_equal(backup_pid(&agent, "web"), pid);
    backup_kill(&agent, "web");
    backup_kill(&agent, "db");
    await_host("beta", true, 192);
    agent_kill(&agent, SIGTERM, 0);
    await_host("beta", false, -1);
}

static int set_up(void **state)
{
    (void)state;
    credentials_make();
    etcd_cluster_start(&cluster, 3, tls);
    etcd_control(&cluster,
                 "set -e; etcdctl user add root:root; etcdctl user add ftvmm:right; etcdctl role add ftvmm\n"
                 "etcdctl role grant-permission --prefix=true ftvmm readwrite ftvmm/\n"
                 "etcdctl user grant-role ftvmm ftvmm; etcdctl user grant-role root root; etcdctl auth enable");
    agents_open(ftagent, etcd_cluster_address(&cluster) + strlen("etcd:"), good);
    return 0;
}

static int tear_down(void **state)
{
    char command[64];

    (void)state;
    etcd_cluster_end(&cluster);
    agents_close();
    snprintf(command, sizeof(command), "rm -rf '%s'", tls);
    return system(command);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(credentials_are_asked_for),
        cmocka_unit_test(members_die_and_come_back),
    };

    if (argc != 2)
        return 1;
    ftagent = argv[1];
    if (!etcd_is_installed()) {
        fputs("etcd, etcdctl or openssl is not installed: apt-get install etcd-server etcd-client openssl\n", stderr);
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
