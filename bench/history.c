/*
 * ftbench history: several clients write, read and count in a redis server, across failures of its host, and keep what they
 * called and what came back. At the end it is looked for an order of all of it that one server could have had.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include <hiredis/hiredis.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/linearizable.h"
#include "bench/stop.h"
#include "bench/workloads.h"

#define CLIENTS_MAX 64u
#define STATES_MAX  20000000u
#define RETRY_NS    (100 * NS_PER_MS)

#define EXIT_CONTRADICTION 1
#define EXIT_USAGE         2
#define EXIT_UNDECIDED     3

enum object { REGISTER, COUNTER, OBJECTS };
static const char *const object_names[] = { "register", "counter" };

struct options {
    const char *host, *key, *json_path;
    FILE *json;
    unsigned port, clients;
    uint64_t run_ns, patience_ns, pause_ns, seed;
};

struct client {
    const struct options *options;
    pthread_t thread;
    unsigned number, seed;
    redisContext *connection;
    uint32_t process; /* a new one after an operation without an answer: that one may happen at any time */
    uint64_t next_value;
    struct {
        struct linearizable_operation *operations;
        size_t count, room;
    } history[OBJECTS];
    uint64_t unanswered, reconnects, longest_ns;
    bool no_memory;
};

static _Atomic uint32_t processes;

/* ---- one client ---- */

static struct timeval time_of(uint64_t ns)
{
    return (struct timeval){ .tv_sec = (time_t)(ns / NS_PER_S), .tv_usec = (suseconds_t)(ns % NS_PER_S / 1000) };
}

static redisContext *open_connection(const struct options *options)
{
    redisContext *connection = redisConnectWithTimeout(options->host, (int)options->port, time_of(3 * NS_PER_S));

    if (connection != NULL && connection->err == 0 &&
        redisSetTimeout(connection, time_of(options->patience_ns)) == REDIS_OK)
        return connection;
    if (connection != NULL)
        redisFree(connection);
    return NULL;
}

/* The outcome of one request; false: nobody knows whether it was carried out. */
static bool request(struct client *client, enum object object, enum linearizable_kind kind, int64_t *value)
{
    const char *key = client->options->key;
    redisReply *reply = NULL;
    bool answered = false;

    switch (kind) {
    case LINEARIZABLE_READ: reply = redisCommand(client->connection, "GET %s:%s", key, object_names[object]); break;
    case LINEARIZABLE_WRITE:
        reply = redisCommand(client->connection, "SET %s:%s %lld", key, object_names[object], (long long)*value);
        break;
    case LINEARIZABLE_INCREMENT: reply = redisCommand(client->connection, "INCR %s:%s", key, object_names[object]); break;
    }
    if (reply != NULL && kind == LINEARIZABLE_WRITE) {
        answered = reply->type == REDIS_REPLY_STATUS;
    } else if (reply != NULL && reply->type == REDIS_REPLY_INTEGER) {
        *value = reply->integer;
        answered = true;
    } else if (reply != NULL && reply->type == REDIS_REPLY_STRING) {
        *value = strtoll(reply->str, NULL, 10);
        answered = true;
    } else if (reply != NULL && reply->type == REDIS_REPLY_NIL) {
        *value = -1; /* the key is gone: no order explains that */
        answered = true;
    }
    if (reply != NULL)
        freeReplyObject(reply);
    return answered;
}

static void note(struct client *client, enum object object, const struct linearizable_operation *operation)
{
    size_t room = client->history[object].room;

    if (client->history[object].count == room) {
        struct linearizable_operation *more;

        room = room == 0 ? 1024 : 2 * room;
        more = realloc(client->history[object].operations, room * sizeof(*more));
        if (more == NULL) {
            client->no_memory = true;
            return;
        }
        client->history[object].operations = more;
        client->history[object].room = room;
    }
    client->history[object].operations[client->history[object].count++] = *operation;
}

static void one_request(struct client *client)
{
    enum object object = rand_r(&client->seed) & 1 ? COUNTER : REGISTER;
    bool reads = rand_r(&client->seed) & 1;
    struct linearizable_operation operation = {
        .process = client->process, .call_ns = clock_now_ns(),
        .kind = reads ? LINEARIZABLE_READ : object == REGISTER ? LINEARIZABLE_WRITE : LINEARIZABLE_INCREMENT,
        .value = (int64_t)((uint64_t)client->number << 40 | ++client->next_value), /* no two alike */
    };

    if (request(client, object, operation.kind, &operation.value)) {
        operation.return_ns = clock_now_ns();
        if (operation.return_ns - operation.call_ns > client->longest_ns)
            client->longest_ns = operation.return_ns - operation.call_ns;
    } else {
        operation.return_ns = LINEARIZABLE_PENDING;
        client->unanswered++;
        client->process = atomic_fetch_add(&processes, 1);
        redisFree(client->connection);
        client->connection = NULL;
    }
    note(client, object, &operation);
}

static void *client_main(void *arg)
{
    struct client *client = arg;
    uint64_t until_ns = clock_now_ns() + client->options->run_ns;

    while (!stop_wanted && clock_now_ns() < until_ns && !client->no_memory) {
        if (client->connection == NULL) {
            client->connection = open_connection(client->options);
            client->reconnects += client->connection != NULL;
        }
        if (client->connection == NULL) {
            clock_sleep_ns(RETRY_NS);
            continue;
        }
        one_request(client);
        clock_sleep_ns(client->options->pause_ns);
    }
    return NULL;
}

/* ---- the verdict ---- */

/* As linearizable_check; says what is wrong. */
static int judge(const struct client *clients, unsigned count, enum object object, size_t *operations)
{
    struct linearizable_operation *all;
    struct linearizable_failure failure;
    int rc = -ENOMEM;

    *operations = 0;
    for (unsigned i = 0; i < count; i++)
        *operations += clients[i].history[object].count;
    all = malloc((*operations + 1) * sizeof(*all));
    if (all != NULL) {
        size_t used = 0;

        for (unsigned i = 0; i < count; i++) {
            if (clients[i].history[object].count > 0)
                memcpy(all + used, clients[i].history[object].operations,
                       clients[i].history[object].count * sizeof(*all));
            used += clients[i].history[object].count;
        }
        rc = linearizable_check(all, used, 0, STATES_MAX, &failure);
    }
    free(all);
    if (rc == 0)
        report_error("the %s's history is not linearizable: after %zu of %zu operations it has %lld, and %s %lld fits nowhere",
                     object_names[object], failure.placed, *operations, (long long)failure.value,
                     failure.operation.kind == LINEARIZABLE_READ    ? "a read of"
                     : failure.operation.kind == LINEARIZABLE_WRITE ? "a write of"
                                                                    : "an increment to",
                     (long long)failure.operation.value);
    else if (rc < 0)
        report_error("the %s's history cannot be judged: %s", object_names[object], strerror(-rc));
    return rc;
}

static int conclude(const struct options *options, const struct client *clients)
{
    uint64_t unanswered = 0, reconnects = 0, longest_ns = 0;
    int status = 0, verdicts[OBJECTS];
    size_t operations[OBJECTS];

    for (unsigned i = 0; i < options->clients; i++) {
        unanswered += clients[i].unanswered;
        reconnects += clients[i].reconnects;
        longest_ns = clients[i].longest_ns > longest_ns ? clients[i].longest_ns : longest_ns;
        if (clients[i].no_memory) {
            report_error("no memory for the history; give fewer --seconds or a longer --pause");
            status = EXIT_UNDECIDED;
        }
    }
    for (enum object object = REGISTER; object < OBJECTS; object++) {
        verdicts[object] = judge(clients, options->clients, object, &operations[object]);
        if (verdicts[object] == 0)
            status = EXIT_CONTRADICTION;
        else if ((verdicts[object] < 0 || operations[object] == 0) && status == 0)
            status = EXIT_UNDECIDED;
        printf("%-8s %8zu operations: %s\n", object_names[object], operations[object],
               verdicts[object] == 1 ? "linearizable" : verdicts[object] == 0 ? "NOT LINEARIZABLE" : "not judged");
    }
    printf("clients  %u, new connections %llu, requests of unknown fate %llu, longest request %.1f ms\n", options->clients,
           (unsigned long long)reconnects, (unsigned long long)unanswered, (double)longest_ns / (double)NS_PER_MS);
    if (options->json != NULL)
        fprintf(options->json, "{\"register_operations\": %zu, \"counter_operations\": %zu, \"linearizable\": %s, "
                "\"reconnects\": %llu, \"unknown\": %llu, \"longest_ms\": %.1f}\n", operations[REGISTER], operations[COUNTER],
                status == 0 ? "true" : status == EXIT_CONTRADICTION ? "false" : "null", (unsigned long long)reconnects,
                (unsigned long long)unanswered, (double)longest_ns / (double)NS_PER_MS);
    return status;
}

/* ---- the run ---- */

static const struct argument arguments[] = {
    ARGUMENT_SERVER(struct options),
    { "clients", "N", "default 4, at most 64", ARGUMENT_UNSIGNED(struct options, clients, 1, CLIENTS_MAX) },
    { "pause", "MS", "of a client between two requests; default 5",
      ARGUMENT_TIME(struct options, pause_ns, 0, 60000, NS_PER_MS) },
    { "key", "NAME", "default history; the keys NAME:register and NAME:counter are set to 0, and nobody\n"
      "else may change them meanwhile", ARGUMENT_TEXT(struct options, key) },
    { "seed", "N", "of what the clients ask; default: the time, printed",
      ARGUMENT_NUMBER(struct options, seed, 0, UINT64_MAX) },
    { 0 },
};

static const struct command_line command_line = {
    .workload = "history",
    .usage = "usage: ftbench history --host ADDRESS [OPTION...]\n\n"
             "Several clients write, read and count in a redis server; are their histories linearizable?\n\n",
    .arguments = arguments,
    .exit_status = "0 linearizable, 1 not, 2 usage, 3 service unreachable or history not judged",
};

/* As arguments_read. */
static int parse_options(struct options *options, int argc, char **argv)
{
    int result;

    *options = (struct options){ .key = "history", .port = 6379, .clients = 4, .run_ns = 30 * NS_PER_S,
                                 .patience_ns = 60 * NS_PER_S, .pause_ns = 5 * NS_PER_MS, .seed = clock_now_ns() };
    result = arguments_read(&command_line, argc, argv, options);
    return result == 0 && !argument_server(options->host, options->json_path, &options->json) ? -EINVAL : result;
}

/* Both objects are 0 before the first call. */
static bool begin(const struct options *options)
{
    struct client client = { .options = options, .connection = open_connection(options) };
    int64_t zero[OBJECTS] = { 0 };
    bool good = client.connection != NULL && request(&client, REGISTER, LINEARIZABLE_WRITE, &zero[REGISTER]) &&
                request(&client, COUNTER, LINEARIZABLE_WRITE, &zero[COUNTER]);

    if (!good)
        report_error("the redis server at %s:%u does not take a value", options->host, options->port);
    if (client.connection != NULL)
        redisFree(client.connection);
    return good;
}

static int record(const struct options *options)
{
    struct client *clients = calloc(options->clients, sizeof(*clients));
    unsigned started = 0;
    int status = EXIT_UNDECIDED;

    if (clients == NULL) {
        report_error("no memory for %u clients", options->clients);
        return EXIT_UNDECIDED;
    }
    for (; started < options->clients; started++) {
        struct client *client = &clients[started];

        *client = (struct client){ .options = options, .number = started, .seed = (unsigned)(options->seed + started),
                                   .process = atomic_fetch_add(&processes, 1), .connection = open_connection(options) };
        if (pthread_create(&client->thread, NULL, client_main, client) != 0) {
            report_error("no thread for a client");
            stop_wanted = 1;
            break;
        }
    }
    for (unsigned i = 0; i < started; i++)
        pthread_join(clients[i].thread, NULL);
    if (started == options->clients)
        status = conclude(options, clients);
    for (unsigned i = 0; i < options->clients; i++) {
        if (clients[i].connection != NULL)
            redisFree(clients[i].connection);
        for (enum object object = REGISTER; object < OBJECTS; object++)
            free(clients[i].history[object].operations);
    }
    free(clients);
    return status;
}

int history_main(int argc, char **argv)
{
    struct options options;
    int parsed = parse_options(&options, argc, argv), status = EXIT_UNDECIDED;

    if (parsed != 0)
        return parsed > 0 ? 0 : EXIT_USAGE;
    stop_on_signals(SA_RESTART);
    signal(SIGPIPE, SIG_IGN);
    printf("seed %llu\n", (unsigned long long)options.seed);
    if (begin(&options))
        status = record(&options);
    if (options.json != NULL)
        fclose(options.json);
    return status;
}
