/* What a machine that takes another's place counts, and what is kept to tell where two machines parted. The whole of it:
 * test_protect.c and test_faults.c. */
#include <stdlib.h>
#include <string.h>

#include "tests/unit/cmocka_prelude.h"
#include "vmm/lockstep.h"

/* What the primary has sent is told in all frames of the guest; the hold queue counts those that were put into it. */
static void frames_are_counted_from_where_the_machine_was_taken_over(void **state)
{
    static const struct {
        uint64_t built, held; /* by the guest, and here before, when the machine came */
        uint64_t sent, ours;  /* told by the primary, and what that is in the hold queue's numbers */
    } cases[] = {
        { 0, 0, 0, 0 },       { 0, 0, 3, 3 },          /* from the guest's start */
        { 100, 0, 90, 0 },    { 100, 0, 103, 3 },      /* a new backup */
        { 100, 60, 100, 60 }, { 100, 60, 101, 61 },    /* one that was healed */
        { 5, 7, 5, 7 },       { 5, 7, 6, 8 },          /* and had built frames that the guest never did */
    };
    struct lockstep *ls = calloc(1, sizeof(*ls));

    (void)state;
    assert_non_null(ls);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ls->frames_before = cases[i].built - cases[i].held; /* as in transfer.c */
        backup_note_sent(ls, cases[i].sent);
        assert_int_equal(COUNT_GET(ls->peer_sent_count), cases[i].ours);
    }
    free(ls);
}

static void the_last_positions_registers_are_kept_and_no_others(void **state)
{
    struct register_ring *ring = calloc(1, sizeof(*ring));
    const uint64_t last = 3 * REGISTER_RING_POSITIONS + 17;

    (void)state;
    assert_non_null(ring);
    assert_null(register_ring_at(ring, 0));
    assert_null(register_ring_at(ring, 1));
    for (uint64_t position = 1; position <= last; position++) {
        const struct kvm_regs regs = { .rip = position * 3 };

        register_ring_put(ring, position, &regs);
    }
    assert_null(register_ring_at(ring, last - REGISTER_RING_POSITIONS));
    assert_null(register_ring_at(ring, last + 1));
    for (uint64_t position = last - REGISTER_RING_POSITIONS + 1; position <= last; position++)
        assert_int_equal(register_ring_at(ring, position)->rip, position * 3);
    assert_null(register_ring_at(NULL, last));
    free(ring);
}

/* A primary that has been told is due until the machine is in the log, and is protected again when that was consumed. */
static void a_backup_that_differs_is_no_protection(void **state)
{
    struct lockstep *ls = calloc(1, sizeof(*ls));

    (void)state;
    assert_non_null(ls);
    COUNT_SET(ls->role, ROLE_PRIMARY);
    ls->arbiter = (struct arbiter *)ls; /* only whether there is one counts */
    COUNT_SET(ls->followed, true);
    assert_true(lockstep_is_protected(ls) && !heal_is_due(ls));
    COUNT_SET(ls->protected_lsn, UINT64_MAX); /* as heal_listen does */
    COUNT_SET(ls->followed, false);
    COUNT_SET(ls->heal.asked, UINT64_C(1) << 48 | 77);
    assert_true(!lockstep_is_protected(ls) && heal_is_due(ls));
    COUNT_SET(ls->protected_lsn, 1000); /* MACHINE is in the log, and not consumed yet */
    assert_true(!lockstep_is_protected(ls) && !heal_is_due(ls));
    free(ls);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_are_counted_from_where_the_machine_was_taken_over),
        cmocka_unit_test(the_last_positions_registers_are_kept_and_no_others),
        cmocka_unit_test(a_backup_that_differs_is_no_protection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
