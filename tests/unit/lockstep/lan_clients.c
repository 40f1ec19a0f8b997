/* Clients, capture and verdict; see lan_clients.h. All but the waiting is done in the switch's thread. */
#include "tests/unit/lockstep/lan_clients.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define AGAIN_NS   (150 * NS_PER_MS) /* then the question is asked again */
#define STATES_MAX 20000000u
#define HEADER     14u

/* ---- asking ---- */

static bool grow(void **array, size_t *room, size_t used, size_t bytes)
{
    size_t more = *room == 0 ? 1024 : *room * 2;
    void *larger;

    if (used < *room)
        return true;
    larger = realloc(*array, more * bytes);
    if (larger == NULL)
        return false;
    *array = larger;
    *room = more;
    return true;
}

static void ask(struct lan_clients *all, unsigned number, uint64_t now_ns)
{
    uint8_t frame[HEADER + sizeof(struct answering_message)];
    const uint8_t mac[6] = { 0x02, 0, 0, 0, 0xC1, (uint8_t)number };

    memcpy(frame, all->guest_mac, 6);
    memcpy(frame + 6, mac, 6);
    frame[12] = ANSWERING_ETHER_TYPE >> 8;
    frame[13] = ANSWERING_ETHER_TYPE & 0xff;
    memcpy(frame + HEADER, &all->clients[number].asked, sizeof(struct answering_message));
    all->clients[number].sent_ns = now_ns;
    cables_send(all->cables, frame, sizeof(frame));
}

static void ask_next(struct lan_clients *all, unsigned number, uint64_t now_ns)
{
    struct lan_client *client = &all->clients[number];
    uint64_t sequence = client->asked.sequence + 1;

    client->asked = (struct answering_message){
        .magic = ANSWERING_MAGIC, .client = (uint16_t)number, .sequence = sequence,
        .kind = (uint16_t)(sequence == 1 ? ANSWERING_OPEN : 1 + rand_r(&all->seed) % 4),
        .value = (uint64_t)number << 32 | sequence, /* no two alike */
    };
    client->waits = true;
    client->called_ns = now_ns;
    ask(all, number, now_ns);
}

static void tick(void *ctx, uint64_t now_ns)
{
    struct lan_clients *all = ctx;

    for (unsigned i = 0; i < all->count; i++) {
        struct lan_client *client = &all->clients[i];

        if (client->waits && now_ns - client->sent_ns > AGAIN_NS)
            ask(all, i, now_ns);
        else if (!client->waits && !atomic_load(&all->stops) && now_ns >= client->free_ns)
            ask_next(all, i, now_ns);
    }
}

/* ---- answers ---- */

static void note(struct lan_clients *all, const struct answering_message *message, unsigned process, uint64_t call_ns,
                 uint64_t return_ns)
{
    bool reg = message->kind == ANSWERING_READ_REGISTER || message->kind == ANSWERING_WRITE_REGISTER;
    struct lan_history *history = reg ? &all->reg : &all->counter;

    if (message->kind == ANSWERING_OPEN)
        return;
    if (!grow((void **)&history->operations, &history->room, history->count, sizeof(*history->operations))) {
        all->no_memory = true;
        return;
    }
    history->operations[history->count++] = (struct linearizable_operation){
        .process = process, .value = (int64_t)message->value, .call_ns = call_ns, .return_ns = return_ns,
        .kind = message->kind == ANSWERING_WRITE_REGISTER ? LINEARIZABLE_WRITE
                : message->kind == ANSWERING_INCREMENT    ? LINEARIZABLE_INCREMENT
                                                          : LINEARIZABLE_READ,
    };
}

static void note_time(struct lan_clients *all, uint64_t now_ns)
{
    uint64_t mark_ns = atomic_load(&all->mark_ns), last_ns = atomic_load(&all->last_ns);
    uint64_t from_ns = last_ns > mark_ns ? last_ns : mark_ns;

    if (mark_ns != 0 && now_ns > from_ns && from_ns <= atomic_load(&all->mark_end_ns) && now_ns - from_ns > atomic_load(&all->silence_ns)) {
        atomic_store(&all->silence_ns, now_ns - from_ns);
        atomic_store(&all->silence_end_ns, now_ns);
    }
    atomic_store(&all->last_ns, now_ns);
}

static void seen(void *ctx, enum cable_place place, const uint8_t *frame, size_t bytes, uint64_t now_ns)
{
    struct lan_clients *all = ctx;
    struct answering_message message;
    struct lan_client *client;

    if (bytes < HEADER + sizeof(message) || frame[12] != ANSWERING_ETHER_TYPE >> 8 ||
        frame[13] != (ANSWERING_ETHER_TYPE & 0xff))
        return;
    memcpy(&message, frame + HEADER, sizeof(message));
    if (message.magic != ANSWERING_MAGIC || message.client >= all->count)
        return;
    client = &all->clients[message.client];
    if (message.kind == ANSWERING_REFUSED) {
        if (client->waits && message.sequence == client->asked.sequence)
            atomic_fetch_add(&all->refused, 1); /* not an answer to what was asked before, and came twice */
        return;
    }
    if (!grow((void **)&all->answers, &all->answers_room, all->answers_count, sizeof(*all->answers))) {
        all->no_memory = true;
        return;
    }
    all->answers[all->answers_count++] = (struct lan_answer){ .at_ns = now_ns, .from = place, .message = message };
    if (!client->waits || message.sequence != client->asked.sequence)
        return;
    client->waits = false;
    client->free_ns = now_ns + atomic_load(&all->pause_ns);
    note(all, &message, message.client, client->called_ns, now_ns);
    note_time(all, now_ns);
    atomic_fetch_add(&client->answered, 1);
}

/* ---- from outside ---- */

int lan_clients_start(struct lan_clients *clients, struct cables *cables, const uint8_t guest_mac[6], unsigned count,
                      uint64_t pause_ns, unsigned seed)
{
    const struct cable_hooks hooks = { .ctx = clients, .seen = seen, .tick = tick };

    memset(clients, 0, sizeof(*clients));
    clients->cables = cables;
    memcpy(clients->guest_mac, guest_mac, 6);
    clients->count = count;
    clients->seed = seed;
    atomic_store(&clients->pause_ns, pause_ns);
    return cables_run(cables, &hooks);
}

void lan_clients_mark(struct lan_clients *clients)
{
    atomic_store(&clients->silence_ns, 0);
    atomic_store(&clients->silence_end_ns, 0);
    atomic_store(&clients->mark_end_ns, UINT64_MAX);
    atomic_store(&clients->mark_ns, clock_now_ns());
}

void lan_clients_mark_end(struct lan_clients *clients)
{
    atomic_store(&clients->mark_end_ns, clock_now_ns());
}

bool lan_clients_await(struct lan_clients *clients, uint64_t more, uint64_t limit_ns)
{
    uint64_t before[ANSWERING_CLIENTS], until_ns = clock_now_ns() + limit_ns;

    for (unsigned i = 0; i < clients->count; i++)
        before[i] = atomic_load(&clients->clients[i].answered);
    for (unsigned i = 0; i < clients->count; i++)
        while (atomic_load(&clients->clients[i].answered) < before[i] + more) {
            if (clock_now_ns() > until_ns)
                return false;
            clock_sleep_ns(2 * NS_PER_MS);
        }
    return true;
}

void lan_clients_quiet(struct lan_clients *clients, uint64_t limit_ns)
{
    uint64_t until_ns = clock_now_ns() + limit_ns;
    bool waits = true;

    atomic_store(&clients->stops, true);
    while (waits && clock_now_ns() < until_ns) {
        waits = false;
        for (unsigned i = 0; i < clients->count; i++)
            waits = waits || atomic_load(&clients->clients[i].waits);
        clock_sleep_ns(2 * NS_PER_MS);
    }
}

void lan_clients_stop(struct lan_clients *clients)
{
    atomic_store(&clients->stops, true);
    cables_stop(clients->cables);
    for (unsigned i = 0; i < clients->count; i++)
        if (atomic_load(&clients->clients[i].waits))
            note(clients, &clients->clients[i].asked, i, clients->clients[i].called_ns, LINEARIZABLE_PENDING);
}

void lan_clients_close(struct lan_clients *clients)
{
    free(clients->reg.operations);
    free(clients->counter.operations);
    free(clients->answers);
}

/* ---- the verdict ---- */

static const char *host_of(enum cable_place place)
{
    return place == CABLE_HOST_A ? "a" : "b";
}

static bool sends(const struct lan_clients *clients, enum cable_place place, const struct answering_message *message)
{
    for (size_t i = 0; i < clients->answers_count; i++)
        if (clients->answers[i].from == place &&
            memcmp(&clients->answers[i].message, message, sizeof(*message)) == 0)
            return true;
    return false;
}

/* Each of the guest's operations has one answer. `first` gets where each was first seen. */
static bool one_answer_each(const struct lan_clients *clients, size_t *first, size_t operations, char *why, size_t bytes)
{
    for (size_t i = 0; i < clients->answers_count; i++) {
        const struct lan_answer *answer = &clients->answers[i];
        size_t *at = &first[answer->message.operation];

        if (answer->message.operation == 0 || answer->message.operation >= operations) {
            snprintf(why, bytes, "an answer numbers no operation of the guest");
            return false;
        }
        if (*at == 0) {
            *at = i + 1;
        } else if (memcmp(&clients->answers[*at - 1].message, &answer->message, sizeof(answer->message)) != 0) {
            snprintf(why, bytes, "two guests: operation %llu was answered by host %s to client %u with %llu, and by host %s "
                     "to client %u with %llu",
                     (unsigned long long)answer->message.operation, host_of(clients->answers[*at - 1].from),
                     clients->answers[*at - 1].message.client,
                     (unsigned long long)clients->answers[*at - 1].message.value, host_of(answer->from),
                     answer->message.client, (unsigned long long)answer->message.value);
            return false;
        }
    }
    return true;
}

static bool one_host_at_a_time(const struct lan_clients *clients, const size_t *first, unsigned moves_max, char *why,
                               size_t bytes)
{
    enum cable_place live = CABLE_TEST;
    unsigned moves = 0;

    for (size_t i = 0; i < clients->answers_count; i++) {
        const struct lan_answer *answer = &clients->answers[i];

        if (first[answer->message.operation] != i + 1 || answer->from == live)
            continue; /* seen before, or from where it is expected */
        if (live != CABLE_TEST) {
            if (sends(clients, live, &answer->message))
                continue; /* held there when the other one took over; the live one sends it as well */
            if (++moves > moves_max) {
                snprintf(why, bytes, "host %s answers something new (operation %llu, client %u) after host %s has, and should "
                         "not have the guest", host_of(answer->from), (unsigned long long)answer->message.operation,
                         answer->message.client, host_of(live));
                return false;
            }
        }
        live = answer->from;
    }
    return true;
}

static bool is_linearizable(const struct lan_history *history, const char *what, char *why, size_t bytes)
{
    struct linearizable_failure failure;
    int rc = linearizable_check(history->operations, history->count, 0, STATES_MAX, &failure);

    if (rc == 1)
        return true;
    if (rc < 0)
        snprintf(why, bytes, "the history of the %s cannot be judged: %s", what, strerror(-rc));
    else
        snprintf(why, bytes, "the history of the %s is not linearizable: after %zu of %zu operations it has %lld, and client "
                 "%u's %s of %lld fits nowhere", what, failure.placed, history->count, (long long)failure.value,
                 failure.operation.process,
                 failure.operation.kind == LINEARIZABLE_READ    ? "reading"
                 : failure.operation.kind == LINEARIZABLE_WRITE ? "writing"
                                                                : "increment",
                 (long long)failure.operation.value);
    return false;
}

bool lan_clients_judge(const struct lan_clients *clients, unsigned moves_max, char *why, size_t why_bytes)
{
    size_t operations = 1, *first;
    bool good;

    if (clients->no_memory || atomic_load(&clients->refused) != 0) {
        snprintf(why, why_bytes, clients->no_memory ? "no memory for the history"
                                                    : "the guest has forgotten its clients: it is not the same one");
        return false;
    }
    for (size_t i = 0; i < clients->answers_count; i++)
        if (clients->answers[i].message.operation >= operations && clients->answers[i].message.operation < 1u << 24)
            operations = clients->answers[i].message.operation + 1;
    first = calloc(operations, sizeof(*first));
    if (first == NULL) {
        snprintf(why, why_bytes, "no memory to judge");
        return false;
    }
    good = one_answer_each(clients, first, operations, why, why_bytes) &&
           one_host_at_a_time(clients, first, moves_max, why, why_bytes) &&
           is_linearizable(&clients->reg, "register", why, why_bytes) &&
           is_linearizable(&clients->counter, "counter", why, why_bytes);
    free(first);
    return good;
}
