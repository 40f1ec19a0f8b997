/* The verdict on what a LAN has seen (lan_clients_judge): what one guest may do at its worst passes, two guests do not. */
#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/lan_clients.h"

#define A CABLE_HOST_A
#define B CABLE_HOST_B

struct answer {
    enum cable_place from;
    uint64_t operation, value;
};

/* Clients whose LAN has seen these answers, and who keep the history of the counter that they tell. */
static bool judge(const struct answer *answers, size_t count, unsigned moves_max)
{
    static struct lan_answer seen[16];
    static struct linearizable_operation operations[16];
    struct lan_clients clients = { .answers = seen, .answers_count = count };
    char why[512] = "";
    bool good;

    for (size_t i = 0; i < count; i++) {
        bool again = false;

        seen[i] = (struct lan_answer){ .at_ns = i, .from = answers[i].from };
        seen[i].message = (struct answering_message){ .kind = ANSWERING_INCREMENT, .operation = answers[i].operation,
                                                      .value = answers[i].value };
        for (size_t j = 0; j < i; j++)
            again = again || answers[j].operation == answers[i].operation;
        if (!again)
            operations[clients.counter.count++] = (struct linearizable_operation){
                .kind = LINEARIZABLE_INCREMENT, .value = (int64_t)answers[i].value, .call_ns = 2 * i, .return_ns = 2 * i + 1 };
    }
    clients.counter.operations = operations;
    good = lan_clients_judge(&clients, moves_max, why, sizeof(why));
    print_message("%s\n", good ? "one guest" : why);
    return good;
}

static void one_guest_passes(void **state)
{
    const struct answer stays[] = { { A, 1, 1 }, { A, 2, 2 }, { A, 2, 2 }, { A, 3, 3 } };
    const struct answer moves[] = { { A, 1, 1 }, { A, 2, 2 }, { B, 2, 2 }, { B, 3, 3 }, { B, 4, 4 } };
    const struct answer held_sent_late[] = { { A, 1, 1 }, { B, 3, 2 }, { A, 2, 3 }, { B, 2, 3 } };

    (void)state;
    assert_true(judge(stays, 4, 0));
    assert_true(judge(moves, 5, 1));
    assert_true(judge(held_sent_late, 4, 1)); /* the live host sends it as well: it was acked before the fence */
}

static void two_guests_do_not(void **state)
{
    const struct answer forked[] = { { A, 1, 1 }, { B, 2, 2 }, { A, 2, 3 } };
    const struct answer goes_on[] = { { A, 1, 1 }, { B, 2, 2 }, { A, 3, 3 } };
    const struct answer at_the_wrong_host[] = { { A, 1, 1 }, { B, 2, 2 } };

    (void)state;
    assert_false(judge(forked, 3, 1));
    assert_false(judge(goes_on, 3, 1));
    assert_false(judge(at_the_wrong_host, 2, 0));
}

static void what_is_lost_is_seen(void **state)
{
    const struct answer lost[] = { { A, 1, 1 }, { A, 2, 2 }, { B, 3, 2 } };

    (void)state;
    assert_false(judge(lost, 3, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_guest_passes),
        cmocka_unit_test(two_guests_do_not),
        cmocka_unit_test(what_is_lost_is_seen),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
