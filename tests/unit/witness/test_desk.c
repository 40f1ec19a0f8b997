/* What a witness keeps and answers: generations are never given twice, a restart decides nothing by itself, and who does
 * not hold the key learns and changes nothing. No network. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"
#include "witness/peer.h"

#define VM "web"

static char directory[64], keys[96], state[96];
static struct witness_table *table;
static const uint64_t *revoked;
static const uint8_t alpha[WITNESS_MEMBER_BYTES] = "alpha", beta[WITNESS_MEMBER_BYTES] = "beta";

static void word_revoke(void *context, const uint64_t *word)
{
    (void)context;
    revoked = word;
}

static void table_start(unsigned vms)
{
    assert_int_equal(witness_table_open(&table, state, vms, word_revoke, NULL), 0);
}

static void table_restart(void)
{
    witness_table_close(table);
    table_start(4);
}

static void file_write(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
    assert_int_equal(chmod(path, 0600), 0);
}

static int set_up(void **test)
{
    char path[128];

    (void)test;
    strcpy(directory, "/tmp/ftvmm-witness-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(keys, sizeof(keys), "%s/keys", directory);
    snprintf(state, sizeof(state), "%s/state", directory);
    mkdir(keys, 0700);
    mkdir(state, 0700);
    snprintf(path, sizeof(path), "%s/%s", keys, VM);
    file_write(path, "0123456789abcdef0123456789abcdef", 32);
    table_start(4);
    return 0;
}

static int tear_down(void **test)
{
    char command[128];

    (void)test;
    witness_table_close(table);
    table = NULL;
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command);
}

static struct witness_place begun(const char *vm, const uint8_t *member)
{
    struct witness_place place = { 0 };

    assert_int_equal(witness_table_begin(table, vm, member, &place), WITNESS_OK);
    assert_int_equal(*place.word, place.free);
    assert_int_equal(place.free & WITNESS_WORD_MEMBER, 0);
    return place;
}

static enum witness_status find(uint64_t generation, uint64_t pair, const uint8_t *member, struct witness_place *place)
{
    return witness_table_find(table, VM, generation, pair, member, place);
}

static void table_members_share_a_word_and_differ_in_their_claim(void **test)
{
    struct witness_place one = begun(VM, alpha), other = { 0 }, again = { 0 };

    (void)test;
    assert_int_equal(one.generation, 1);
    assert_int_equal(find(1, 0, beta, &other), WITNESS_OK);
    assert_ptr_equal(one.word, other.word);
    assert_int_equal(one.free, other.free);
    assert_int_equal(one.pair, other.pair);
    assert_true(one.claim != other.claim && one.claim != one.free && other.claim != one.free);
    assert_int_equal(find(1, one.pair, beta, &again), WITNESS_OK);
    assert_int_equal(again.claim, other.claim);
    assert_int_equal(find(1, one.pair + 1, beta, &again), WITNESS_OTHER_PAIR);
    assert_int_equal(find(2, 0, beta, &again), WITNESS_UNKNOWN_GENERATION);
    assert_int_equal(find(0, 0, beta, &again), WITNESS_UNKNOWN_GENERATION);
    assert_int_equal(witness_table_find(table, "other", 1, 0, beta, &again), WITNESS_UNKNOWN_GENERATION);
    again = begun(VM, alpha);
    assert_int_equal(again.generation, 2);
    assert_true(again.word != one.word && again.free != one.free && again.pair != one.pair);
}

static void table_generations_are_never_given_twice(void **test)
{
    (void)test;
    for (uint64_t generation = 1; generation <= 20; generation++) {
        assert_int_equal(begun(VM, alpha).generation, generation);
        assert_int_equal(begun("other", alpha).generation, generation);
        if (generation % 3 == 0)
            table_restart();
    }
}

static void table_forgets_old_generations_and_withdraws_their_word_first(void **test)
{
    struct witness_place first = begun(VM, alpha), place = { 0 };

    (void)test;
    *first.word = first.claim;
    for (unsigned i = 1; i < WITNESS_GENERATIONS; i++) {
        revoked = NULL;
        place = begun(VM, alpha);
        assert_ptr_equal(revoked, place.word);
        assert_true(place.word != first.word);
    }
    assert_int_equal(find(1, 0, alpha, &place), WITNESS_OK);
    assert_int_equal(place.claim, first.claim);
    place = begun(VM, beta);
    assert_ptr_equal(place.word, first.word);
    assert_ptr_equal(revoked, first.word);
    assert_int_equal(find(1, 0, alpha, &place), WITNESS_UNKNOWN_GENERATION);
}

static void table_restarted_waits_for_every_member(void **test)
{
    struct witness_place old = begun(VM, alpha), one = { 0 }, other = { 0 };
    const uint8_t stranger[WITNESS_MEMBER_BYTES] = "stranger";

    (void)test;
    assert_int_equal(find(1, 0, beta, &other), WITNESS_OK);
    *old.word = old.claim; /* alpha has won, and nobody will know */
    for (int life = 0; life < 3; life++) {
        table_restart();
        assert_int_equal(find(1, 0, stranger, &other), WITNESS_DOUBTFUL);
        for (int i = 0; i < 3; i++)
            assert_int_equal(find(1, old.pair, beta, &other), WITNESS_DOUBTFUL);
    }
    /* But if alpha holds no verdict after all, the word that told of it is of no account. */
    assert_int_equal(find(1, old.pair, alpha, &one), WITNESS_OK);
    assert_int_equal(find(1, old.pair, beta, &other), WITNESS_OK);
    assert_ptr_equal(one.word, other.word);
    assert_int_equal(*one.word, one.free);
    assert_true(one.free != old.free && one.claim != other.claim);
    assert_int_equal(find(1, old.pair, stranger, &other), WITNESS_OK);
    table_restart();
    assert_int_equal(find(1, old.pair, alpha, &one), WITNESS_DOUBTFUL);
    assert_int_equal(find(1, old.pair, beta, &one), WITNESS_DOUBTFUL);
    assert_int_equal(find(1, old.pair, stranger, &one), WITNESS_OK);
}

static void table_restarted_knows_the_latest_generation_only(void **test)
{
    struct witness_place place = { 0 };

    (void)test;
    begun(VM, alpha);
    begun(VM, alpha);
    table_restart();
    assert_int_equal(find(1, 0, alpha, &place), WITNESS_UNKNOWN_GENERATION);
    assert_int_equal(find(2, 0, alpha, &place), WITNESS_OK);
}

static void table_has_bounds(void **test)
{
    struct witness_place place = { 0 };
    uint8_t member[WITNESS_MEMBER_BYTES] = { 0 };

    (void)test;
    begun(VM, alpha);
    for (uint8_t i = 1; i < WITNESS_MEMBERS; i++) {
        member[0] = i;
        assert_int_equal(find(1, 0, member, &place), WITNESS_OK);
    }
    member[0] = WITNESS_MEMBERS;
    assert_int_equal(find(1, 0, member, &place), WITNESS_MEMBERS_FULL);
    assert_int_equal(find(1, 0, alpha, &place), WITNESS_OK);
    table_restart(); /* the longest line there is */
    assert_int_equal(find(1, 0, alpha, &place), WITNESS_DOUBTFUL);
    begun("b", alpha);
    begun("c", alpha);
    begun("d", alpha);
    assert_int_equal(witness_table_begin(table, "e", alpha, &place), WITNESS_TABLE_FULL);
    begun("d", alpha);
    witness_table_close(table);
    assert_int_equal(witness_table_open(&table, state, 3, word_revoke, NULL), -ENOSPC);
    assert_null(table);
}

static void table_is_one_witness_s_alone(void **test)
{
    struct witness_table *second;

    (void)test;
    assert_int_equal(witness_table_open(&second, state, 4, word_revoke, NULL), -EBUSY);
    assert_int_equal(witness_table_open(&second, "/nonexistent", 4, word_revoke, NULL), -ENOENT);
    assert_int_equal(begun(VM, alpha).generation, 1);
}

static void table_that_cannot_write_gives_nothing(void **test)
{
    struct rlimit old, none = { 0 };
    struct witness_place place = { 0 };

    (void)test;
    begun(VM, alpha);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    none.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_FSIZE, &none);
    assert_int_equal(witness_table_begin(table, VM, alpha, &place), WITNESS_STORAGE);
    assert_int_equal(find(1, 0, beta, &place), WITNESS_STORAGE);
    assert_int_equal(witness_table_begin(table, "new", alpha, &place), WITNESS_STORAGE);
    assert_int_equal(find(1, 0, alpha, &place), WITNESS_OK); /* nothing to write */
    assert_int_equal(find(2, 0, alpha, &place), WITNESS_UNKNOWN_GENERATION);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(find(1, 0, beta, &place), WITNESS_OK);
    table_restart();
    assert_int_equal(begun(VM, alpha).generation, 2);
}

/* Cut anywhere it is refused, and with blanks in it mostly. */
static void table_damaged_on_disk_is_refused(void **test)
{
    char path[128];
    uint8_t good[512], bad[512];
    size_t bytes;
    FILE *file;
    unsigned refused = 0;

    (void)test;
    for (int i = 0; i < 12; i++)
        begun(VM, alpha);
    begun("db", beta);
    witness_table_close(table);
    snprintf(path, sizeof(path), "%s/generations", state);
    file = fopen(path, "r");
    assert_non_null(file);
    bytes = fread(good, 1, sizeof(good), file);
    fclose(file);
    assert_true(bytes > 100 && bytes < sizeof(good));
    for (size_t cut = 0; cut < bytes; cut++) {
        file_write(path, good, cut);
        assert_int_equal(witness_table_open(&table, state, 4, word_revoke, NULL), -EBADMSG);
    }
    for (size_t at = 0; at < bytes; at++) {
        memcpy(bad, good, bytes);
        bad[at] = ' ';
        if (memcmp(bad, good, bytes) == 0)
            continue;
        file_write(path, bad, bytes);
        refused += witness_table_open(&table, state, 4, word_revoke, NULL) == -EBADMSG;
        witness_table_close(table);
    }
    assert_true(refused > 100);
    file_write(path, good, bytes);
    table_start(4);
    assert_int_equal(begun(VM, alpha).generation, 13);
}

/* ---- the conversation ---- */

static const struct channel_secret secret = { .count = 32, .bytes = "0123456789abcdef0123456789abcdef" };
static struct witness_peer peer;

static struct witness_hello hello_of(const char *vm)
{
    struct witness_hello hello = { .head = witness_head_of(WITNESS_HELLO, sizeof(hello)), .nonce = "a challenge" };

    memcpy(hello.vm, vm, strnlen(vm, sizeof(hello.vm)));
    return hello;
}

static enum witness_status meet(const void *hello, size_t bytes)
{
    enum witness_status status;

    witness_peer_close(&peer);
    status = witness_peer_meet(&peer, hello, bytes, keys, "test");
    assert_int_equal(peer.welcome.status, status);
    return status;
}

static struct witness_hello met(void)
{
    struct witness_hello hello = hello_of(VM);

    assert_int_equal(meet(&hello, sizeof(hello)), WITNESS_OK);
    assert_true(witness_proof_holds(&secret, &hello, NULL, NULL, &peer.welcome, sizeof(peer.welcome)));
    return hello;
}

static struct witness_request request_of(const struct witness_hello *hello, uint32_t operation, uint32_t number)
{
    struct witness_request request = { .head = witness_head_of(WITNESS_REQUEST, sizeof(request)),
                                       .operation = operation, .number = number, .generation = 1, .member = "alpha" };

    assert_int_equal(witness_prove(&secret, hello, &peer.welcome, NULL, &request, sizeof(request), request.proof), 0);
    return request;
}

static bool ask(const void *request, size_t bytes, struct witness_answer *answer)
{
    uint64_t *word;

    return witness_peer_ask(&peer, table, request, bytes, answer, &word, "test");
}

static void peer_with_the_key_is_answered_and_the_answer_is_proven(void **test)
{
    struct witness_hello hello = met();
    struct witness_request request = request_of(&hello, WITNESS_BEGIN, 1);
    struct witness_answer answer, changed;

    (void)test;
    assert_true(ask(&request, sizeof(request), &answer));
    assert_int_equal(answer.status, WITNESS_OK);
    assert_int_equal(answer.generation, 1);
    answer.address = 0x1234;
    assert_int_equal(witness_peer_seal(&peer, &answer), 0);
    assert_true(witness_proof_holds(&secret, &hello, &peer.welcome, &request, &answer, sizeof(answer)));
    for (size_t bit = 0; bit < 8 * sizeof(answer); bit++) {
        changed = answer;
        ((uint8_t *)&changed)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(witness_proof_holds(&secret, &hello, &peer.welcome, &request, &changed, sizeof(changed)));
    }
    request = request_of(&hello, WITNESS_FIND, 2);
    assert_false(witness_proof_holds(&secret, &hello, &peer.welcome, &request, &answer, sizeof(answer)));
    assert_true(ask(&request, sizeof(request), &answer));
    assert_int_equal(answer.status, WITNESS_OK);
    request.generation++;
    assert_int_equal(answer.generation, 1);
}

static void peer_without_the_key_gets_nothing(void **test)
{
    struct witness_hello hello = met();
    struct witness_request request = request_of(&hello, WITNESS_BEGIN, 1), old = request, changed;
    struct witness_answer answer;
    struct witness_place place;

    (void)test;
    for (size_t bit = 0; bit < 8 * sizeof(request); bit++) {
        changed = request;
        ((uint8_t *)&changed)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(ask(&changed, sizeof(changed), &answer));
        assert_false(peer.proven);
    }
    for (size_t bytes = 0; bytes < sizeof(request); bytes++)
        assert_false(ask(&request, bytes, &answer));
    assert_true(ask(&request, sizeof(request), &answer));
    assert_false(ask(&request, sizeof(request), &answer)); /* said again */
    hello = met();
    assert_false(ask(&old, sizeof(old), &answer)); /* in another connection */
    request = request_of(&hello, 7, 1);
    assert_false(ask(&request, sizeof(request), &answer)); /* no operation */
    assert_int_equal(find(2, 0, alpha, &place), WITNESS_UNKNOWN_GENERATION); /* one was begun, by the one good request */
}

static void peer_of_an_unknown_vm_is_refused(void **test)
{
    static const char *const names[] = { "nobody", "", "../state/generations", "/etc/passwd", ".", "..", ".hidden",
                                         "0123456789012345678901234567890123456789" };
    struct witness_hello hello;
    char path[128];

    (void)test;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        hello = hello_of(names[i]);
        assert_int_equal(meet(&hello, sizeof(hello)), WITNESS_UNKNOWN_VM);
    }
    snprintf(path, sizeof(path), "%s/open", keys);
    file_write(path, "0123456789abcdef0123456789abcdef", 32);
    assert_int_equal(chmod(path, 0644), 0);
    hello = hello_of("open");
    assert_int_equal(meet(&hello, sizeof(hello)), WITNESS_UNKNOWN_VM);
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(meet(&hello, sizeof(hello)), WITNESS_OK); /* without a restart */
}

static void peer_that_talks_nonsense_is_refused(void **test)
{
    uint64_t random = test_seed("nonsense");
    struct witness_answer answer;
    uint8_t junk[256];

    (void)test;
    for (unsigned round = 0; round < 20000; round++) {
        size_t bytes = test_random(&random) % sizeof(junk);
        struct witness_hello hello;

        for (size_t i = 0; i < sizeof(junk); i++)
            junk[i] = (uint8_t)test_random(&random);
        if (round % 2 == 0) { /* the right head, the rest anything */
            struct witness_head head = witness_head_of(round % 4 == 0 ? WITNESS_HELLO : WITNESS_REQUEST,
                                                       round % 4 == 0 ? sizeof(hello) :
                                                                        sizeof(struct witness_request));
            memcpy(junk, &head, sizeof(head));
            bytes = head.bytes;
        }
        assert_true(meet(junk, bytes) != WITNESS_OK);
        hello = met();
        assert_false(ask(junk, bytes, &answer));
    }
    assert_int_equal(meet(NULL, 0), WITNESS_NOT_WITNESS);
    assert_int_equal(begun(VM, alpha).generation, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(table_members_share_a_word_and_differ_in_their_claim, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_generations_are_never_given_twice, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_forgets_old_generations_and_withdraws_their_word_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_restarted_waits_for_every_member, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_restarted_knows_the_latest_generation_only, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_has_bounds, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_is_one_witness_s_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_that_cannot_write_gives_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(table_damaged_on_disk_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(peer_with_the_key_is_answered_and_the_answer_is_proven, set_up, tear_down),
        cmocka_unit_test_setup_teardown(peer_without_the_key_gets_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(peer_of_an_unknown_vm_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(peer_that_talks_nonsense_is_refused, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
