/*
 * The checker of histories: on histories known to be good and to be bad, on long ones made from an order that exists, on
 * those with one outcome changed, and on thousands of short random ones against a checker that tries every order.
 */
#include <errno.h>

#include "base/clock.h"
#include "bench/linearizable.h"
#include "tests/unit/cmocka_prelude.h"

#define STATES 10000000u
#define READ   LINEARIZABLE_READ
#define WRITE  LINEARIZABLE_WRITE
#define ADD    LINEARIZABLE_INCREMENT
#define NEVER  LINEARIZABLE_PENDING

static unsigned seed;

static const struct known {
    const char *what;
    int linearizable;
    struct linearizable_operation operations[8]; /* until one with return 0 */
} known[] = {
    { "nothing but reads of the first value", 1, { { 0, READ, 0, 1, 2 }, { 1, READ, 0, 1, 2 } } },
    { "one after the other", 1, { { 0, WRITE, 5, 1, 2 }, { 1, READ, 5, 3, 4 }, { 0, ADD, 6, 5, 6 } } },
    { "a read beside a write sees either, and then the new one", 1,
      { { 0, WRITE, 5, 1, 9 }, { 1, READ, 0, 2, 3 }, { 1, READ, 5, 4, 5 }, { 2, READ, 5, 6, 7 } } },
    { "an increment without an answer that came to pass", 1, { { 0, ADD, 0, 1, NEVER }, { 1, ADD, 2, 3, 4 } } },
    { "an increment without an answer that did not", 1, { { 0, ADD, 0, 1, NEVER }, { 1, ADD, 1, 3, 4 } } },
    { "a write without an answer that is seen late", 1,
      { { 0, WRITE, 7, 1, NEVER }, { 1, READ, 0, 3, 4 }, { 1, READ, 7, 5, 6 } } },
    { "two writes beside each other, all agree", 1,
      { { 0, WRITE, 1, 1, 10 }, { 1, WRITE, 2, 1, 10 }, { 2, READ, 2, 11, 12 }, { 3, READ, 2, 11, 12 } } },
    { "the later write comes first in time's order only if they overlap", 1,
      { { 0, WRITE, 1, 1, 5 }, { 1, WRITE, 2, 4, 8 }, { 2, READ, 1, 9, 10 } } },
    { "an acknowledged write is lost", 0, { { 0, WRITE, 5, 1, 2 }, { 1, READ, 0, 3, 4 } } },
    { "an acknowledged increment is lost", 0, { { 0, ADD, 1, 1, 2 }, { 1, ADD, 1, 3, 4 } } },
    { "an increment happens twice", 0, { { 0, ADD, 1, 1, 2 }, { 1, ADD, 3, 3, 4 } } },
    { "the same value is given out twice, at once", 0, { { 0, ADD, 1, 1, 9 }, { 1, ADD, 1, 1, 9 } } },
    { "a new value is seen, then the old one again", 0,
      { { 0, WRITE, 5, 1, 20 }, { 1, READ, 5, 2, 3 }, { 2, READ, 0, 4, 5 } } },
    { "a write is seen before it was called", 0, { { 0, READ, 5, 1, 2 }, { 1, WRITE, 5, 3, 4 } } },
    { "two see two writes in different orders", 0,
      { { 0, WRITE, 1, 1, 30 }, { 1, WRITE, 2, 1, 30 }, { 2, READ, 1, 2, 3 }, { 2, READ, 2, 4, 5 },
        { 3, READ, 2, 2, 3 }, { 3, READ, 1, 4, 5 } } },
    { "the host that took over lost what the first had acknowledged", 0,
      { { 0, ADD, 1, 1, 2 }, { 1, ADD, 2, 2, 3 }, { 0, ADD, 3, 3, 4 }, { 1, ADD, 3, 5, 9 }, { 0, ADD, 4, 6, 9 } } },
    { "a write without an answer is seen, and gone again", 0,
      { { 0, WRITE, 7, 1, NEVER }, { 1, READ, 7, 3, 4 }, { 1, READ, 0, 5, 6 } } },
    { "two hosts serve: each client sees its own write only", 0,
      { { 0, WRITE, 1, 1, 2 }, { 1, WRITE, 2, 3, 4 }, { 0, READ, 1, 5, 6 }, { 1, READ, 2, 7, 8 } } },
};

static void known_histories_are_told_apart(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        size_t count = 0;

        while (count < 8 && known[i].operations[count].return_ns != 0)
            count++;
        if (linearizable_check(known[i].operations, count, 0, STATES, NULL) != known[i].linearizable)
            fail_msg("%s: judged wrongly", known[i].what);
    }
}

static void failure_names_what_fits_nowhere(void **state)
{
    const struct linearizable_operation history[] = {
        { 0, WRITE, 5, 1, 2 }, { 1, WRITE, 6, 3, 4 }, { 0, READ, 6, 5, 6 }, { 2, READ, 5, 7, 8 }, { 1, READ, 6, 9, 10 },
    };
    struct linearizable_failure failure;

    (void)state;
    assert_int_equal(linearizable_check(history, 5, 0, STATES, &failure), 0);
    assert_int_equal(failure.placed, 3);
    assert_int_equal(failure.value, 6);
    assert_int_equal(failure.operation.process, 2);
    assert_int_equal(failure.operation.value, 5);
}

static void what_is_no_history_is_refused(void **state)
{
    const struct linearizable_operation overlap[] = { { 0, WRITE, 1, 1, 5 }, { 0, READ, 1, 4, 6 } };
    const struct linearizable_operation backwards[] = { { 0, WRITE, 1, 5, 4 } };
    const struct linearizable_operation after_pending[] = { { 0, WRITE, 1, 1, NEVER }, { 0, READ, 1, 4, 6 } };

    (void)state;
    assert_int_equal(linearizable_check(overlap, 2, 0, STATES, NULL), -EINVAL);
    assert_int_equal(linearizable_check(backwards, 1, 0, STATES, NULL), -EINVAL);
    assert_int_equal(linearizable_check(after_pending, 2, 0, STATES, NULL), -EINVAL);
    assert_int_equal(linearizable_check(NULL, 0, 0, STATES, NULL), 1);
}

static unsigned below(unsigned limit)
{
    return (unsigned)rand_r(&seed) % limit;
}

/* ---- against a checker that tries every order ---- */

static bool any_order(const struct linearizable_operation *operations, size_t count, unsigned placed, int64_t value)
{
    uint64_t first_ns = NEVER;
    bool done = true;

    for (size_t i = 0; i < count; i++)
        if (!(placed >> i & 1)) {
            done = done && operations[i].return_ns == NEVER;
            first_ns = operations[i].return_ns < first_ns ? operations[i].return_ns : first_ns;
        }
    if (done)
        return true;
    for (size_t i = 0; i < count; i++) {
        const struct linearizable_operation *operation = &operations[i];
        bool pending = operation->return_ns == NEVER;
        int64_t after = operation->kind == READ ? value : operation->kind == WRITE ? operation->value : value + 1;

        if (!(placed >> i & 1) && operation->call_ns <= first_ns && (pending || after == operation->value) &&
            any_order(operations, count, placed | 1u << i, after))
            return true;
    }
    return false;
}

static void short_histories_are_judged_as_by_trying_every_order(void **state)
{
    unsigned judged[2] = { 0, 0 };

    (void)state;
    for (unsigned round = 0; round < 20000; round++) {
        struct linearizable_operation history[7];
        unsigned count = 2 + below(6), processes = 1 + below(3);
        uint64_t now[3] = { 0, 0, 0 };
        bool over[3] = { false, false, false };
        size_t used = 0;
        bool expected;

        for (unsigned i = 0; i < count; i++) {
            unsigned process = below(processes);

            if (over[process])
                continue;
            now[process] += 1 + below(4);
            history[used] = (struct linearizable_operation){ .process = process, .kind = (enum linearizable_kind)below(3),
                                                             .value = below(3), .call_ns = now[process] };
            now[process] += below(6);
            over[process] = below(8) == 0;
            history[used++].return_ns = over[process] ? NEVER : now[process];
        }
        expected = any_order(history, used, 0, 0);
        judged[expected]++;
        assert_int_equal(linearizable_check(history, used, 0, STATES, NULL), expected);
    }
    print_message("%u linearizable, %u not\n", judged[1], judged[0]);
    assert_true(judged[0] > 1000 && judged[1] > 1000);
}

/* ---- long ones ---- */

#define LONG    20000u
#define CLIENTS 6u

/* Clients as they are: a request takes effect at a moment of its own between call and return. */
static size_t long_history(struct linearizable_operation *history)
{
    struct {
        uint64_t effect_ns, free_ns;
        size_t operation;
        bool waits;
    } clients[CLIENTS] = { 0 };
    int64_t value = 0;
    size_t count = 0;
    uint64_t now_ns = 1;

    for (; count < LONG; now_ns++) {
        for (unsigned client = 0; client < CLIENTS; client++) {
            struct linearizable_operation *operation = &history[clients[client].operation];

            if (clients[client].waits && clients[client].effect_ns == now_ns) {
                clients[client].waits = false;
                if (operation->kind == WRITE)
                    value = operation->value;
                else
                    operation->value = operation->kind == READ ? value : ++value;
            } else if (!clients[client].waits && clients[client].free_ns < now_ns && count < LONG) {
                clients[client].operation = count;
                clients[client].waits = true;
                clients[client].effect_ns = now_ns + 1 + below(5);
                clients[client].free_ns = clients[client].effect_ns + below(5);
                history[count] = (struct linearizable_operation){ .process = client, .kind = (enum linearizable_kind)below(3),
                                                                  .value = (int64_t)(1000000 * count), .call_ns = now_ns,
                                                                  .return_ns = clients[client].free_ns };
                count++;
            }
        }
    }
    for (unsigned client = 0; client < CLIENTS; client++) /* these never hear */
        if (clients[client].waits)
            history[clients[client].operation].return_ns = NEVER;
    return count;
}

static void long_histories_are_judged(void **state)
{
    static struct linearizable_operation history[LONG];
    struct linearizable_failure failure;
    size_t count = long_history(history), at;
    uint64_t began_ns = clock_now_ns();

    (void)state;
    assert_int_equal(linearizable_check(history, count, 0, STATES, &failure), 1);
    print_message("%zu operations in %.0f ms\n", count, (double)(clock_now_ns() - began_ns) / (double)NS_PER_MS);
    do
        at = LONG / 2 + below(LONG / 4);
    while (history[at].kind != ADD || history[at].return_ns == NEVER);
    history[at].value--; /* once, one increment is lost */
    began_ns = clock_now_ns();
    assert_int_equal(linearizable_check(history, count, 0, STATES, &failure), 0);
    print_message("the one changed outcome found in %.0f ms\n", (double)(clock_now_ns() - began_ns) / (double)NS_PER_MS);
    assert_int_equal(linearizable_check(history, count, 0, 50, &failure), -E2BIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_histories_are_told_apart),
        cmocka_unit_test(failure_names_what_fits_nowhere),
        cmocka_unit_test(what_is_no_history_is_refused),
        cmocka_unit_test(short_histories_are_judged_as_by_trying_every_order),
        cmocka_unit_test(long_histories_are_judged),
    };

    seed = (unsigned)test_seed("linearizable");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
