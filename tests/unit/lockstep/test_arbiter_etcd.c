/*
 * The arbiter in real etcd clusters: every arbiter's promises; members and majorities that die; answers that are lost,
 * late or nonsense; certificates and passwords that are wrong.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/arbiter_conformance.h"
#include "tests/unit/lockstep/etcd_cluster.h"
#include "tests/unit/ports.h"

#define PASSWORD "not-to-be-logged-3f9a"

static struct etcd_cluster single, three;
static char tls[] = "/tmp/ftvmm-etcd-tls-XXXXXX"; /* certificates, and directories for --arbiter-auth */

/* ---- help ---- */

/* For claims that are made once, on a machine that may be busy. */
#define PATIENT_NS (4 * NS_PER_S)

static struct arbiter *opened(const char *address, const char *auth_dir, const char *vm, uint64_t deadline_ns)
{
    struct arbiter_options options = { .address = address, .auth_dir = auth_dir, .vm = vm, .deadline_ns = deadline_ns };
    struct arbiter *arbiter;

    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    return arbiter;
}

/* Opening fails, in one sentence with all of these words, without the password, and in time. */
static void refused(const char *address, const char *auth_dir, int error, const char *word, const char *other_word)
{
    struct arbiter_options options = { .address = address, .auth_dir = auth_dir, .vm = "refused" };
    uint64_t began_ns = clock_now_ns();
    struct arbiter *arbiter;
    char said[4096] = "", path[96];
    int kept = dup(STDERR_FILENO), file, rc;
    ssize_t bytes;

    snprintf(path, sizeof(path), "%s/said", tls);
    file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(file >= 0 && kept >= 0 && dup2(file, STDERR_FILENO) >= 0);
    rc = arbiter_open(&arbiter, &options);
    dup2(kept, STDERR_FILENO);
    close(kept);
    bytes = pread(file, said, sizeof(said) - 1, 0);
    close(file);
    print_message("%s: %d, %.*s", address, rc, (int)(bytes > 0 ? bytes : 0), said);
    assert_int_equal(rc, error);
    assert_null(arbiter);
    assert_non_null(strstr(said, "error: "));
    assert_non_null(strstr(said, word));
    assert_non_null(strstr(said, other_word));
    assert_null(strstr(said, PASSWORD));
    assert_true(clock_now_ns() - began_ns < 15 * NS_PER_S);
}

static enum arbiter_verdict ask_until(struct arbiter *arbiter, uint64_t generation, enum arbiter_verdict wanted,
                                      uint64_t limit_ns)
{
    uint64_t until_ns = clock_now_ns() + limit_ns;
    enum arbiter_verdict verdict;

    while ((verdict = arbiter_ask(arbiter, generation)) != wanted && clock_now_ns() < until_ns)
        clock_sleep_ns(NS_PER_MS);
    return verdict;
}

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
    char command[2048];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    assert_int_equal(system(command), 0);
}

/* ---- a server between us and etcd, which may misbehave ---- */

enum manners {
    MANNERS_PASS,     /* hands on request and answer */
    MANNERS_SWALLOW,  /* hands on the request, and never the answer */
    MANNERS_HANG,     /* takes the connection and says nothing */
    MANNERS_GARBAGE,  /* says something else */
};

struct relay {
    _Atomic enum manners manners;
    _Atomic unsigned requests;
    pthread_mutex_t lock;
    char garbage[200000]; /* under the lock */
    int listener, port, upstream_port;
    atomic_bool end;
    pthread_t thread;
};

static int connect_to(int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* One HTTP message with its body. */
static ssize_t message_read(int fd, char *bytes, size_t room)
{
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    size_t count = 0, whole = SIZE_MAX;

    while (count < whole && count < room - 1 && poll(&ready, 1, 3000) > 0) {
        ssize_t got = read(fd, bytes + count, room - 1 - count);
        const char *body, *length;

        if (got <= 0)
            break;
        count += (size_t)got;
        bytes[count] = '\0';
        body = strstr(bytes, "\r\n\r\n");
        length = strcasestr(bytes, "content-length:");
        if (body != NULL && length != NULL && length < body)
            whole = (size_t)(body + 4 - bytes) + strtoul(length + 15, NULL, 10);
    }
    return count > 0 ? (ssize_t)count : -1;
}

static void relay_one(struct relay *relay, int client)
{
    static char bytes[65536];
    struct pollfd gone = { .fd = client };
    ssize_t count = message_read(client, bytes, sizeof(bytes));
    int upstream;

    if (count < 0)
        return;
    atomic_fetch_add(&relay->requests, 1);
    switch (atomic_load(&relay->manners)) {
    case MANNERS_HANG:
        while (!atomic_load(&relay->end) && atomic_load(&relay->manners) == MANNERS_HANG && poll(&gone, 1, 10) == 0)
            ;
        return;
    case MANNERS_GARBAGE:
        pthread_mutex_lock(&relay->lock);
        (void)!write(client, relay->garbage, strlen(relay->garbage)); /* who has heard enough hangs up */
        pthread_mutex_unlock(&relay->lock);
        return;
    case MANNERS_PASS:
    case MANNERS_SWALLOW:
        upstream = connect_to(relay->upstream_port);
        if (upstream < 0)
            return;
        if (write(upstream, bytes, (size_t)count) == count)
            count = message_read(upstream, bytes, sizeof(bytes));
        close(upstream);
        if (count > 0 && atomic_load(&relay->manners) == MANNERS_PASS && write(client, bytes, (size_t)count) < 0)
            return;
    }
}

static void *relay_run(void *arg)
{
    struct relay *relay = arg;

    while (!atomic_load(&relay->end)) {
        struct pollfd ready = { .fd = relay->listener, .events = POLLIN };
        int client;

        if (poll(&ready, 1, 20) <= 0)
            continue;
        client = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        relay_one(relay, client); /* then closed: each request has a connection of its own */
        close(client);
    }
    return NULL;
}

static void relay_start(struct relay *relay, int upstream_port, enum manners manners)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof(address);

    memset(relay, 0, sizeof(*relay));
    relay->upstream_port = upstream_port;
    relay->manners = manners;
    pthread_mutex_init(&relay->lock, NULL);
    relay->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(relay->listener >= 0);
    assert_int_equal(bind(relay->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(relay->listener, 16), 0);
    assert_int_equal(getsockname(relay->listener, (struct sockaddr *)&address, &length), 0);
    relay->port = ntohs(address.sin_port);
    assert_int_equal(pthread_create(&relay->thread, NULL, relay_run, relay), 0);
}

/* From now on it says this, and it alone; `padding` more bytes follow. */
__attribute__((format(printf, 3, 4))) static void relay_say(struct relay *relay, size_t padding,
                                                            const char *format, ...)
{
    va_list args;
    int length;

    pthread_mutex_lock(&relay->lock);
    va_start(args, format);
    length = vsnprintf(relay->garbage, sizeof(relay->garbage) - padding - 1, format, args);
    va_end(args);
    memset(relay->garbage + length, 'x', padding);
    relay->garbage[(size_t)length + padding] = '\0';
    pthread_mutex_unlock(&relay->lock);
    atomic_store(&relay->manners, MANNERS_GARBAGE);
}

static void relay_end(struct relay *relay)
{
    atomic_store(&relay->end, true);
    pthread_join(relay->thread, NULL);
    close(relay->listener);
    pthread_mutex_destroy(&relay->lock);
}

/* ---- one member ---- */

static void arbiter_claim_whose_answer_was_lost_is_recognised(void **state)
{
    struct arbiter *primary, *backup;
    static struct relay relay;
    char address[128];
    uint64_t generation;

    (void)state;
    relay_start(&relay, single.client_ports[0], MANNERS_PASS);
    snprintf(address, sizeof(address), "etcd:http://127.0.0.1:%d", relay.port);
    primary = opened(address, NULL, "lost-answer", PATIENT_NS);
    assert_int_equal(arbiter_begin(primary, &generation), 0);
    backup = opened(etcd_cluster_address(&single), NULL, "lost-answer", PATIENT_NS);
    assert_int_equal(arbiter_check(backup, generation), 0);
    atomic_store(&relay.manners, MANNERS_SWALLOW);
    assert_int_equal(arbiter_claim(primary, generation), ARBITER_UNREACHABLE); /* it does not know, but has won */
    assert_int_equal(arbiter_claim(backup, generation), ARBITER_LOST);
    atomic_store(&relay.manners, MANNERS_PASS);
    assert_int_equal(ask_until(primary, generation, ARBITER_WON, 10 * NS_PER_S), ARBITER_WON);
    assert_int_equal(arbiter_claim(backup, generation), ARBITER_LOST);
    relay_end(&relay);
    arbiter_close(primary);
    arbiter_close(backup);
}

static void arbiter_asked_of_a_server_that_hangs_does_not_wait(void **state)
{
    uint64_t generation, until_ns, longest_ns = 0, asks = 0;
    struct arbiter_status status;
    struct arbiter *arbiter;
    static struct relay relay;
    char address[128];

    (void)state;
    relay_start(&relay, single.client_ports[0], MANNERS_PASS);
    snprintf(address, sizeof(address), "etcd:http://127.0.0.1:%d", relay.port);
    arbiter = opened(address, NULL, "hang", 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    atomic_store(&relay.manners, MANNERS_HANG);
    for (until_ns = clock_now_ns() + 3 * NS_PER_S; clock_now_ns() < until_ns;) {
        uint64_t asked_ns = clock_now_ns(), took_ns;
        enum arbiter_verdict verdict = arbiter_ask(arbiter, generation);

        took_ns = clock_now_ns() - asked_ns;
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
        assert_true(verdict == ARBITER_ASKING || verdict == ARBITER_UNREACHABLE);
        asks++;
        clock_sleep_ns(NS_PER_MS);
    }
    arbiter_get_status(arbiter, &status);
    print_message("asked %llu times while etcd hung: %llu us at most; %llu claims; %s\n", (unsigned long long)asks,
                  (unsigned long long)(longest_ns / NS_PER_US), (unsigned long long)status.asks, status.why);
    assert_true(longest_ns < 300 * NS_PER_MS); /* the machine may be busy */
    assert_true(status.asks >= 2 && status.asks <= 8); /* deadlines grow, and claims are repeated */
    assert_int_equal(status.verdict, ARBITER_UNREACHABLE);
    assert_true(status.why[0] != '\0');
    atomic_store(&relay.manners, MANNERS_PASS);
    assert_int_equal(ask_until(arbiter, generation, ARBITER_WON, 10 * NS_PER_S), ARBITER_WON);
    relay_end(&relay);
    arbiter_close(arbiter);
}

static void arbiter_closed_while_a_server_hangs_is_soon_done(void **state)
{
    struct arbiter_options options = { .vm = "hang-close", .deadline_ns = 4 * NS_PER_S };
    uint64_t generation, began_ns;
    struct arbiter *arbiter;
    static struct relay relay;
    char address[128];

    (void)state;
    relay_start(&relay, single.client_ports[0], MANNERS_PASS);
    snprintf(address, sizeof(address), "etcd:http://127.0.0.1:%d", relay.port);
    options.address = address;
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    atomic_store(&relay.manners, MANNERS_HANG);
    assert_int_equal(arbiter_ask(arbiter, generation), ARBITER_ASKING);
    clock_sleep_ns(200 * NS_PER_MS);
    began_ns = clock_now_ns();
    arbiter_close(arbiter);
    assert_true(clock_now_ns() - began_ns < 2500 * NS_PER_MS);
    relay_end(&relay);
}

/* The next endpoint decides while the first hangs, within few deadlines. */
static void arbiter_goes_on_to_the_next_member_when_one_hangs(void **state)
{
    struct arbiter *arbiter;
    static struct relay relay;
    char address[128];
    uint64_t generation, began_ns;

    (void)state;
    relay_start(&relay, single.client_ports[0], MANNERS_PASS);
    snprintf(address, sizeof(address), "etcd:http://127.0.0.1:%d,http://127.0.0.1:%d", relay.port,
             single.client_ports[0]);
    arbiter = opened(address, NULL, "next", 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    atomic_store(&relay.manners, MANNERS_HANG);
    began_ns = clock_now_ns();
    assert_int_equal(ask_until(arbiter, generation, ARBITER_WON, 10 * NS_PER_S), ARBITER_WON);
    print_message("won at the second member after %llu ms\n",
                  (unsigned long long)((clock_now_ns() - began_ns) / NS_PER_MS));
    assert_true(atomic_load(&relay.requests) > 0);
    relay_end(&relay);
    arbiter_close(arbiter);
}

static void arbiter_nonsense_decides_nothing(void **state)
{
    static const char header[] = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    static const char *const nonsense[] = {
        "", "{}", "[]", "null", "{\"succeeded\":true}", "{\"header\":{},\"succeeded\":true}",
        "{\"header\":{},\"succeeded\":true,\"responses\":[]}",
        "{\"header\":{},\"succeeded\":\"true\",\"responses\":[{\"response_put\":{}}]}",
        "{\"header\":{},\"responses\":[{\"response_range\":{\"kvs\":[{\"key\":\"eA==\",\"value\":\"eA==\"}]}},"
        "{\"response_range\":{\"kvs\":[{\"key\":\"eA==\",\"value\":\"eA==\"}]}}]}",
        "{\"header\":{},\"responses\":[1,2]}", "{\"header\":{},\"responses\":{\"response_range\":7}}", "<html>",
    };
    struct arbiter *arbiter;
    static struct relay relay;
    char address[128];
    uint64_t generation;

    (void)state;
    relay_start(&relay, single.client_ports[0], MANNERS_PASS);
    snprintf(address, sizeof(address), "etcd:http://127.0.0.1:%d", relay.port);
    arbiter = opened(address, NULL, "nonsense", PATIENT_NS);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    for (size_t i = 0; i < sizeof(nonsense) / sizeof(nonsense[0]); i++) {
        relay_say(&relay, 0, "%s%s", header, nonsense[i]);
        assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    }
    relay_say(&relay, 150000, "%s{\"header\":{},\"succeeded\":true,\"responses\":[{\"response_put\":{}}],\"x\":\"",
              header); /* too long, whatever it says */
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    relay_say(&relay, 0,
              "HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:%d/v3/kv/txn\r\nContent-Length: 0\r\n\r\n",
              single.client_ports[0]);
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE); /* not followed: it would win there */
    relay_say(&relay, 0, "SSH-2.0-OpenSSH_9.2\r\n");
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    refused(address, NULL, -EPROTO, address + 5, "no etcd");
    relay_say(&relay, 0, "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n");
    refused(address, NULL, -EPROTO, address + 5, "404");
    atomic_store(&relay.manners, MANNERS_PASS);
    assert_int_equal(ask_until(arbiter, generation, ARBITER_WON, 10 * NS_PER_S), ARBITER_WON);
    relay_end(&relay);
    arbiter_close(arbiter);
}

static void arbiter_emptied_or_other_cluster_decides_nothing(void **state)
{
    struct etcd_cluster other;
    struct arbiter *primary, *backup, *stranger;
    struct arbiter_status status;
    char address[512];
    uint64_t generation, again;

    (void)state;
    etcd_cluster_start(&other, 1, NULL);
    /* The same number in both clusters, for different pairs. */
    primary = opened(etcd_cluster_address(&single), NULL, "mixed", PATIENT_NS);
    assert_int_equal(arbiter_begin(primary, &generation), 0);
    stranger = opened(etcd_cluster_address(&other), NULL, "mixed", PATIENT_NS);
    assert_int_equal(arbiter_begin(stranger, &again), 0);
    assert_int_equal(generation, again);
    snprintf(address, sizeof(address), "%s,http://127.0.0.1:%d", etcd_cluster_address(&single), other.client_ports[0]);
    backup = opened(address, NULL, "mixed", PATIENT_NS);
    assert_int_equal(arbiter_check(backup, generation), -ESTALE);
    assert_int_equal(arbiter_claim(backup, generation), ARBITER_UNREACHABLE);
    assert_int_equal(arbiter_begin(backup, &again), -ENOENT); /* the other never heard of that one */
    arbiter_close(backup);
    arbiter_close(stranger);
    etcd_cluster_end(&other);

    etcd_control(&single, "etcdctl del --prefix ftvmm/mixed/");
    assert_int_equal(arbiter_claim(primary, generation), ARBITER_UNREACHABLE);
    assert_int_equal(ask_until(primary, generation, ARBITER_UNREACHABLE, 10 * NS_PER_S), ARBITER_UNREACHABLE);
    arbiter_get_status(primary, &status);
    assert_non_null(strstr(status.why, "no longer knows this pair"));
    etcd_control(&single, "etcdctl put ftvmm/mixed/zebra 1");
    assert_int_equal(arbiter_begin(primary, &generation), -EBADMSG);
    arbiter_close(primary);
}

static void arbiter_refuses_addresses_with_a_sentence(void **state)
{
    char address[128];

    (void)state;
    refused("etcd:localhost", NULL, -EINVAL, "localhost", "https://");
    refused("etcd:ftp://127.0.0.1:2379", NULL, -EINVAL, "ftp://", "https://");
    refused("etcd:https://10.0.0.1", NULL, -EINVAL, "port", "2379");
    refused("etcd:https://10.0.0.1:2379/v3", NULL, -EINVAL, "follow the port", "10.0.0.1");
    refused("etcd:https://10.0.0.1:2379?x=y", NULL, -EINVAL, "follow the port", "10.0.0.1");
    refused("etcd:https://me:" PASSWORD "@10.0.0.1:2379", NULL, -EINVAL, "command line", "--arbiter-auth");
    refused("etcd:https://10.0.0.1:2379,", NULL, -EINVAL, "last comma", "https://");
    refused("etcd:,https://10.0.0.1:2379", NULL, -EINVAL, "URL", "https://");
    refused("etcd:https://10.0.0.1:2379,https://10.0.0.1:2379", NULL, -EINVAL, "twice", "10.0.0.1");
    refused("etcd:https://10.0.0.1:2379,http://10.0.0.2:2379", NULL, -EINVAL, "do not mix", "10.0.0.2");
    refused("etcd:http://a:1,http://b:1,http://c:1,http://d:1,http://e:1,http://f:1,http://g:1,http://h:1,http://i:1",
            NULL, -EINVAL, "more than 8", "endpoint");
    snprintf(address, sizeof(address), "etcd:http://127.0.0.1:%u", ports_free(1));
    refused(address, NULL, -EHOSTUNREACH, address + 5, "connect");
    refused(etcd_cluster_address(&single), tls, -EINVAL, "--arbiter-auth", "https://");
    snprintf(address, sizeof(address), "etcd:https://127.0.0.1:%d", single.client_ports[0]);
    refused(address, NULL, -EACCES, "TLS", "http://");
}

/* ---- three members, TLS, a password ---- */

static const char *auth(const char *name)
{
    static char path[96];

    snprintf(path, sizeof(path), "%s/%s", tls, name);
    return path;
}

static void credentials_make(void)
{
    static const char script[] =
        "set -e; cd '%s'; exec 2>openssl.log\n"
        "authority() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=$1"
        " -keyout $1.key -out $1.pem; }\n"
        "certificate() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /$3=$1"
        " -keyout $1.key -out $1.csr; openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 2"
        " -extfile names -out $1.pem; }\n"
        "umask 077; echo subjectAltName=IP:127.0.0.1 >names\n"
        "authority ca; authority other; certificate server ca O; certificate client ca O\n"
        "certificate named ca CN; certificate stranger other O\n"
        "for d in good wrong-ca no-cert wrong-cert wrong-password reader no-user open-key open-user writable-ca"
        " bad-user half common-name open-dir; do\n"
        "    mkdir $d; cp ca.pem $d/ca.pem; cp client.pem $d/cert.pem; cp client.key $d/key.pem\n"
        "    echo 'ftvmm:" PASSWORD "' >$d/user\n"
        "done\n"
        "cp other.pem wrong-ca/ca.pem; rm no-cert/*.pem; cp ca.pem no-cert/\n"
        "cp named.pem common-name/cert.pem; cp named.key common-name/key.pem\n"
        "cp stranger.pem wrong-cert/cert.pem; cp stranger.key wrong-cert/key.pem\n"
        "echo 'ftvmm:" PASSWORD "x' >wrong-password/user; echo 'reader:" PASSWORD "' >reader/user; rm no-user/user\n"
        "chmod 644 open-key/key.pem; chmod 640 open-user/user; chmod 666 writable-ca/ca.pem\n"
        "echo " PASSWORD " >bad-user/user; rm half/key.pem; mkdir empty; chmod 777 open-dir\n";

    assert_non_null(mkdtemp(tls));
    shell(script, tls);
}

static void authentication_enable(void)
{
    etcd_control(&three,
                 "set -e; etcdctl user add root:root; etcdctl user add 'ftvmm:" PASSWORD "'\n"
                 "etcdctl user add 'reader:" PASSWORD "'; etcdctl role add ftvmm; etcdctl role add reader\n"
                 "etcdctl role grant-permission --prefix=true ftvmm readwrite ftvmm/\n"
                 "etcdctl role grant-permission --prefix=true reader read ftvmm/\n"
                 "etcdctl user grant-role ftvmm ftvmm; etcdctl user grant-role reader reader\n"
                 "etcdctl user grant-role root root; etcdctl auth enable");
}

static void arbiter_refuses_credentials_with_a_sentence(void **state)
{
    const char *address = etcd_cluster_address(&three);
    char plain[64];

    (void)state;
    refused(address, auth("wrong-ca"), -EACCES, "certificate", "ca.pem");
    refused(address, NULL, -EACCES, "certificate", "ca.pem"); /* the system's authorities do not know it */
    refused(address, auth("wrong-password"), -EACCES, "password", "authentication failed");
    refused(address, auth("no-user"), -EACCES, "user", "--arbiter-auth");
    refused(address, auth("reader"), -EACCES, "permission denied", "ftvmm/");
    refused(address, auth("open-key"), -EACCES, "key.pem", "chmod 600");
    refused(address, auth("open-user"), -EACCES, "user", "chmod 600");
    refused(address, auth("writable-ca"), -EACCES, "ca.pem", "chmod 644");
    refused(address, auth("open-dir"), -EACCES, "open-dir", "chmod 755");
    refused(address, auth("bad-user"), -EINVAL, "user", "NAME:PASSWORD");
    refused(address, auth("half"), -EINVAL, "cert.pem", "without key.pem");
    refused(address, auth("empty"), -EINVAL, "has none of", "ca.pem");
    refused(address, auth("nowhere"), -ENOENT, "nowhere", "no directory");
    refused(address, auth("names"), -ENOTDIR, "names", "no directory");
    snprintf(plain, sizeof(plain), "etcd:http://127.0.0.1:%d", three.client_ports[0]);
    refused(plain, NULL, -EHOSTUNREACH, plain + 5, "is it an https:// endpoint?");
}

static void arbiter_refuses_without_the_right_client_certificate(void **state)
{
    const char *address = etcd_cluster_address(&three);

    (void)state;
    refused(address, auth("no-cert"), -EHOSTUNREACH, "certificate", "https://127.0.0.1");
    refused(address, auth("common-name"), -EACCES, "no CN", "cert.pem"); /* etcd's own rule */
    refused(address, auth("wrong-cert"), -EHOSTUNREACH, "certificate", "https://127.0.0.1");
}

static void arbiter_decides_when_the_leader_dies(void **state)
{
    struct arbiter *primary, *backup;
    unsigned leader;
    uint64_t generation, began_ns;

    (void)state;
    primary = opened(etcd_cluster_address(&three), auth("good"), "member", 0);
    backup = opened(etcd_cluster_address(&three), auth("good"), "member", 0);
    assert_int_equal(arbiter_begin(primary, &generation), 0);
    assert_int_equal(arbiter_check(backup, generation), 0);
    leader = etcd_cluster_leader(&three, "root:root");
    etcd_member_kill(&three, leader);
    began_ns = clock_now_ns();
    assert_int_equal(ask_until(primary, generation, ARBITER_WON, 15 * NS_PER_S), ARBITER_WON);
    print_message("won after %llu ms, the leader of three dead\n",
                  (unsigned long long)((clock_now_ns() - began_ns) / NS_PER_MS));
    assert_int_equal(ask_until(backup, generation, ARBITER_LOST, 15 * NS_PER_S), ARBITER_LOST);
    arbiter_close(backup);
    backup = opened(etcd_cluster_address(&three), auth("good"), "member", 0); /* joins all the same */
    assert_int_equal(arbiter_check(backup, generation), 0);
    assert_int_equal(ask_until(backup, generation, ARBITER_LOST, 15 * NS_PER_S), ARBITER_LOST);
    etcd_member_start(&three, leader);
    etcd_member_wait(&three, leader);
    arbiter_close(primary);
    arbiter_close(backup);
}

static void arbiter_without_a_majority_decides_nothing_until_it_is_back(void **state)
{
    struct arbiter *primary, *backup;
    struct arbiter_status status;
    uint64_t generation, until_ns, began_ns;
    enum arbiter_verdict one = ARBITER_ASKING, other = ARBITER_ASKING;

    (void)state;
    primary = opened(etcd_cluster_address(&three), auth("good"), "majority", 0);
    backup = opened(etcd_cluster_address(&three), auth("good"), "majority", 0);
    assert_int_equal(arbiter_begin(primary, &generation), 0);
    assert_int_equal(arbiter_check(backup, generation), 0);
    etcd_member_kill(&three, 0);
    etcd_member_kill(&three, 1);
    for (until_ns = clock_now_ns() + 3 * NS_PER_S; clock_now_ns() < until_ns; clock_sleep_ns(NS_PER_MS)) {
        one = arbiter_ask(primary, generation);
        other = arbiter_ask(backup, generation);
        assert_true(one == ARBITER_ASKING || one == ARBITER_UNREACHABLE);
        assert_true(other == ARBITER_ASKING || other == ARBITER_UNREACHABLE);
    }
    assert_int_equal(one, ARBITER_UNREACHABLE);
    arbiter_get_status(primary, &status);
    print_message("no majority: %llu claims, %s\n", (unsigned long long)status.asks, status.why);
    assert_true(status.asks > 1 && status.why[0] != '\0');
    etcd_member_start(&three, 0);
    etcd_member_start(&three, 1);
    began_ns = clock_now_ns();
    for (until_ns = began_ns + 20 * NS_PER_S; clock_now_ns() < until_ns; clock_sleep_ns(NS_PER_MS)) {
        one = arbiter_ask(primary, generation);
        other = arbiter_ask(backup, generation);
        if ((one == ARBITER_WON || one == ARBITER_LOST) && (other == ARBITER_WON || other == ARBITER_LOST))
            break;
    }
    print_message("decided %llu ms after the majority was started again\n",
                  (unsigned long long)((clock_now_ns() - began_ns) / NS_PER_MS));
    assert_true((one == ARBITER_WON && other == ARBITER_LOST) || (one == ARBITER_LOST && other == ARBITER_WON));
    etcd_member_wait(&three, 0);
    etcd_member_wait(&three, 1);
    arbiter_close(primary);
    arbiter_close(backup);
}

/* Tokens live in the members' memory: a restart of all forgets them. */
static void arbiter_logs_in_again_when_its_token_is_forgotten(void **state)
{
    struct arbiter *arbiter;
    uint64_t generation, asked_ns;

    (void)state;
    arbiter = opened(etcd_cluster_address(&three), auth("good"), "token", 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    for (unsigned i = 0; i < three.members; i++)
        etcd_member_kill(&three, i);
    for (unsigned i = 0; i < three.members; i++)
        etcd_member_start(&three, i);
    for (unsigned i = 0; i < three.members; i++)
        etcd_member_wait(&three, i);
    asked_ns = clock_now_ns();
    assert_int_equal(ask_until(arbiter, generation, ARBITER_WON, 15 * NS_PER_S), ARBITER_WON);
    print_message("won after %llu ms, new connection and new token included\n",
                  (unsigned long long)((clock_now_ns() - asked_ns) / NS_PER_MS));
    arbiter_close(arbiter);
}

static int three_start(void **state)
{
    (void)state;
    etcd_cluster_start(&three, 3, tls);
    authentication_enable();
    return 0;
}

int main(void)
{
    const struct CMUnitTest one[] = {
        cmocka_unit_test(arbiter_claim_whose_answer_was_lost_is_recognised),
        cmocka_unit_test(arbiter_asked_of_a_server_that_hangs_does_not_wait),
        cmocka_unit_test(arbiter_closed_while_a_server_hangs_is_soon_done),
        cmocka_unit_test(arbiter_goes_on_to_the_next_member_when_one_hangs),
        cmocka_unit_test(arbiter_nonsense_decides_nothing),
        cmocka_unit_test(arbiter_emptied_or_other_cluster_decides_nothing),
        cmocka_unit_test(arbiter_refuses_addresses_with_a_sentence),
    };
    const struct CMUnitTest many[] = {
        cmocka_unit_test(arbiter_refuses_credentials_with_a_sentence),
        cmocka_unit_test(arbiter_refuses_without_the_right_client_certificate),
        cmocka_unit_test(arbiter_decides_when_the_leader_dies),
        cmocka_unit_test(arbiter_without_a_majority_decides_nothing_until_it_is_back),
        cmocka_unit_test(arbiter_logs_in_again_when_its_token_is_forgotten),
    };
    struct arbiter_options options = { 0 };
    char address[256];
    int failed;

    if (!etcd_is_installed()) {
        puts("not run: etcd, etcdctl or openssl is missing; scripts/setup --packages");
        return TEST_SKIP;
    }
    signal(SIGPIPE, SIG_IGN);
    credentials_make();
    etcd_cluster_start(&single, 1, NULL);
    snprintf(address, sizeof(address), "%s", etcd_cluster_address(&single));
    options.address = address;
    options.deadline_ns = PATIENT_NS;
    failed = arbiter_conformance_run(&options);
    failed += cmocka_run_group_tests(one, NULL, NULL);
    etcd_cluster_end(&single);
    failed += cmocka_run_group_tests(many, three_start, NULL);
    etcd_cluster_end(&three);
    shell("rm -rf '%s'", tls);
    return failed;
}
