/* The search for an order; see linearizable.h. */
#include "bench/linearizable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * A process does one operation after the other, so how many of each process's are placed says which ones are: that, with
 * the object's value, is all there is to a state of the search.
 */
struct search {
    struct linearizable_operation *operations; /* by process, then by call */
    size_t *first;                             /* of each process; one more at the end */
    uint32_t *placed;                          /* of each process */
    size_t processes;
    size_t answered; /* operations that must be placed yet */
    int64_t value;
    struct step {
        size_t process;
        size_t next; /* candidate to try when this one was wrong */
        int64_t value_before;
        bool forced; /* nothing else need be tried in its place */
    } *steps;
    size_t depth;
    /* States that have been looked at: an open hash table of keys, placed[] and value each. */
    uint64_t *keys, *key; /* and one being looked for */
    size_t key_words, slots, used, states_max;
};

static int by_process_and_call(const void *left, const void *right)
{
    const struct linearizable_operation *a = left, *b = right;

    if (a->process != b->process)
        return a->process < b->process ? -1 : 1;
    if (a->call_ns != b->call_ns)
        return a->call_ns < b->call_ns ? -1 : 1;
    return a->return_ns < b->return_ns ? -1 : a->return_ns > b->return_ns;
}

/* ---- states seen ---- */

static uint64_t hash(const uint64_t *key, size_t words)
{
    uint64_t digest = 1;

    for (size_t i = 0; i < words; i++) {
        digest = (digest ^ key[i]) * UINT64_C(0x9E3779B97F4A7C15);
        digest ^= digest >> 29;
    }
    return digest;
}

/* A slot's first word is 0 while it is empty, 1 when it has a key behind it. */
static uint64_t *slot_of(const struct search *search, const uint64_t *key)
{
    size_t at = hash(key, search->key_words) & (search->slots - 1);

    for (;;) {
        uint64_t *slot = search->keys + at * (search->key_words + 1);

        if (slot[0] == 0 || memcmp(slot + 1, key, search->key_words * sizeof(*key)) == 0)
            return slot;
        at = (at + 1) & (search->slots - 1);
    }
}

static int grow(struct search *search)
{
    struct search larger = *search;

    larger.slots = search->slots == 0 ? 1024 : search->slots * 2;
    larger.keys = calloc(larger.slots, (search->key_words + 1) * sizeof(*larger.keys));
    if (larger.keys == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < search->slots; i++) {
        const uint64_t *slot = search->keys + i * (search->key_words + 1);

        if (slot[0] != 0)
            memcpy(slot_of(&larger, slot + 1), slot, (search->key_words + 1) * sizeof(*slot));
    }
    free(search->keys);
    search->keys = larger.keys;
    search->slots = larger.slots;
    return 0;
}

/* 1: this state is new; 0: it was seen; or an error. */
static int remember(struct search *search)
{
    uint64_t *key = search->key, *slot;
    int rc;

    if (search->used * 2 >= search->slots && (rc = grow(search)) < 0)
        return rc;
    memset(key, 0, search->key_words * sizeof(*key));
    memcpy(key, search->placed, search->processes * sizeof(*search->placed));
    key[search->key_words - 1] = (uint64_t)search->value;
    slot = slot_of(search, key);
    if (slot[0] != 0)
        return 0;
    if (search->used == search->states_max)
        return -E2BIG;
    slot[0] = 1;
    memcpy(slot + 1, key, search->key_words * sizeof(*key));
    search->used++;
    return 1;
}

/* ---- the search ---- */

static const struct linearizable_operation *next_of(const struct search *search, size_t process)
{
    size_t at = search->first[process] + search->placed[process];

    return at < search->first[process + 1] ? &search->operations[at] : NULL;
}

/* Whoever is called later than another has returned comes later: this is the first return of what is not placed. */
static uint64_t first_return_ns(const struct search *search)
{
    uint64_t first_ns = LINEARIZABLE_PENDING;

    for (size_t process = 0; process < search->processes; process++) {
        const struct linearizable_operation *next = next_of(search, process);

        if (next != NULL && next->return_ns < first_ns)
            first_ns = next->return_ns;
    }
    return first_ns;
}

/* Could it come next, with the outcome that it had? */
static bool fits(const struct search *search, const struct linearizable_operation *operation, uint64_t first_ns)
{
    bool pending = operation->return_ns == LINEARIZABLE_PENDING;

    if (operation->call_ns > first_ns)
        return false;
    switch (operation->kind) {
    case LINEARIZABLE_READ:
        return !pending && operation->value == search->value; /* one without an answer need not be placed */
    case LINEARIZABLE_WRITE:
        return true;
    case LINEARIZABLE_INCREMENT:
        return pending || operation->value == search->value + 1;
    }
    return false;
}

static void place(struct search *search, size_t process, size_t next, bool forced)
{
    const struct linearizable_operation *operation = next_of(search, process);

    search->steps[search->depth++] = (struct step){ process, next, search->value, forced };
    search->placed[process]++;
    search->answered -= operation->return_ns != LINEARIZABLE_PENDING;
    if (operation->kind == LINEARIZABLE_WRITE)
        search->value = operation->value;
    else if (operation->kind == LINEARIZABLE_INCREMENT)
        search->value++;
}

static struct step take_back(struct search *search)
{
    struct step step = search->steps[--search->depth];

    search->placed[step.process]--;
    search->value = step.value_before;
    search->answered += next_of(search, step.process)->return_ns != LINEARIZABLE_PENDING;
    return step;
}

/* A read that fits changes nothing, so placing it at once is never wrong. */
static bool place_reads(struct search *search)
{
    uint64_t first_ns = first_return_ns(search);

    for (size_t process = 0; process < search->processes; process++) {
        const struct linearizable_operation *next = next_of(search, process);

        if (next != NULL && next->kind == LINEARIZABLE_READ && fits(search, next, first_ns)) {
            place(search, process, 0, true);
            return true;
        }
    }
    return false;
}

/* Candidates are the processes, twice: those with an answer come first. */
static int place_change(struct search *search, size_t candidate)
{
    uint64_t first_ns = first_return_ns(search);

    for (; candidate < 2 * search->processes; candidate++) {
        size_t process = candidate % search->processes;
        const struct linearizable_operation *next = next_of(search, process);
        bool pending = candidate >= search->processes;
        int is_new;

        if (next == NULL || next->kind == LINEARIZABLE_READ ||
            (next->return_ns == LINEARIZABLE_PENDING) != pending || !fits(search, next, first_ns))
            continue;
        place(search, process, candidate + 1, false);
        is_new = remember(search);
        if (is_new != 0)
            return is_new;
        (void)take_back(search);
    }
    return 0;
}

static void note_failure(const struct search *search, struct linearizable_failure *failure)
{
    uint64_t first_ns = LINEARIZABLE_PENDING;

    if (failure == NULL || search->depth < failure->placed || (search->depth == failure->placed && search->depth > 0))
        return;
    failure->placed = search->depth;
    failure->value = search->value;
    for (size_t process = 0; process < search->processes; process++) {
        const struct linearizable_operation *next = next_of(search, process);

        if (next != NULL && next->return_ns < first_ns) {
            first_ns = next->return_ns;
            failure->operation = *next;
        }
    }
}

static int search_order(struct search *search, struct linearizable_failure *failure)
{
    while (search->answered > 0) {
        size_t candidate = 0;
        int rc;

        if (place_reads(search))
            continue;
        while ((rc = place_change(search, candidate)) == 0) {
            struct step step;

            note_failure(search, failure);
            do {
                if (search->depth == 0)
                    return 0;
                step = take_back(search);
            } while (step.forced);
            candidate = step.next;
        }
        if (rc < 0)
            return rc;
    }
    return 1;
}

/* Sorts the operations by process; -EINVAL: they cannot be a process's. */
static int divide(struct search *search, size_t count)
{
    struct linearizable_operation *at = search->operations;

    qsort(at, count, sizeof(*at), by_process_and_call);
    for (size_t i = 0; i < count; i++) {
        if (at[i].return_ns < at[i].call_ns)
            return -EINVAL;
        if (i == 0 || at[i].process != at[i - 1].process)
            search->first[search->processes++] = i;
        else if (at[i].call_ns < at[i - 1].return_ns)
            return -EINVAL;
        search->answered += at[i].return_ns != LINEARIZABLE_PENDING;
    }
    search->first[search->processes] = count;
    return 0;
}

int linearizable_check(const struct linearizable_operation *operations, size_t count, int64_t initial, size_t states_max,
                       struct linearizable_failure *failure)
{
    struct search search = { .value = initial, .states_max = states_max };
    int rc = -ENOMEM;

    if (failure != NULL)
        memset(failure, 0, sizeof(*failure));
    if (count == 0)
        return 1;
    search.operations = malloc(count * sizeof(*operations));
    search.first = calloc(count + 1, sizeof(*search.first));
    search.placed = calloc(count, sizeof(*search.placed));
    search.steps = calloc(count, sizeof(*search.steps));
    if (search.operations == NULL || search.first == NULL || search.placed == NULL || search.steps == NULL)
        goto done;
    memcpy(search.operations, operations, count * sizeof(*operations));
    rc = divide(&search, count);
    if (rc < 0)
        goto done;
    search.key_words = (search.processes + 1) / 2 + 1;
    search.key = calloc(search.key_words, sizeof(*search.key));
    if (search.key == NULL) {
        rc = -ENOMEM;
        goto done;
    }
    rc = search_order(&search, failure);
done:
    free(search.key);
    free(search.keys);
    free(search.steps);
    free(search.placed);
    free(search.first);
    free(search.operations);
    return rc;
}
