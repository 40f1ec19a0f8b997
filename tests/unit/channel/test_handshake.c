/*
 * Joining: only who holds the key joins, and nothing that was said can be changed, repeated or reflected. Two ends
 * speak over a pipe in memory, and an adversary sits in it.
 */
#include "tests/unit/cmocka_prelude.h"

#include "channel/handshake.h"
#include "channel/record.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MESSAGES 4

/* ---- the pipe, and who sits in it ---- */

struct message {
    size_t bytes;
    uint8_t data[HANDSHAKE_MAX_BYTES];
};

struct direction {
    struct message messages[MESSAGES];
    unsigned written, read;
};

static struct line {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    struct direction to_receiver, to_sender;
    bool closed;
    unsigned said;                /* messages, both ways */
    struct message heard[MESSAGES]; /* as they were said */
    /* The adversary: bit `flip_bit` of message `flip_message` is turned round; -1: none. */
    int flip_message;
    size_t flip_bit;
} line = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };

struct end {
    struct direction *out, *in;
};

static int line_send(void *context, const void *data, size_t bytes)
{
    struct end *end = context;
    struct message *message;

    assert_true(bytes <= HANDSHAKE_MAX_BYTES);
    pthread_mutex_lock(&line.lock);
    if (end->out->written < MESSAGES && line.said < MESSAGES) {
        message = &end->out->messages[end->out->written++];
        message->bytes = bytes;
        memcpy(message->data, data, bytes);
        line.heard[line.said] = *message;
        if ((int)line.said == line.flip_message)
            message->data[line.flip_bit / 8] ^= (uint8_t)(1u << (line.flip_bit % 8));
        line.said++;
    }
    pthread_cond_broadcast(&line.moved);
    pthread_mutex_unlock(&line.lock);
    return 0;
}

static int line_receive(void *context, void *data, size_t *bytes)
{
    struct end *end = context;
    int result = 0;

    pthread_mutex_lock(&line.lock);
    while (end->in->read == end->in->written && !line.closed)
        pthread_cond_wait(&line.moved, &line.lock);
    if (end->in->read < end->in->written) {
        const struct message *message = &end->in->messages[end->in->read++];

        *bytes = message->bytes;
        memcpy(data, message->data, message->bytes);
    } else {
        result = -ECONNRESET;
    }
    pthread_mutex_unlock(&line.lock);
    return result;
}

static void line_close(void) /* an end has given up: the other one waits for nothing */
{
    pthread_mutex_lock(&line.lock);
    line.closed = true;
    pthread_cond_broadcast(&line.moved);
    pthread_mutex_unlock(&line.lock);
}

static void line_reset(void)
{
    memset(&line.to_receiver, 0, sizeof(line.to_receiver));
    memset(&line.to_sender, 0, sizeof(line.to_sender));
    line.closed = false;
    line.said = 0;
    line.flip_message = -1;
}

/* ---- two ends ---- */

static const struct handshake_place receiver_place = { .ring_address = 0x1122334455667788, .ring_rkey = 0x99aabbcc,
                                                       .control_address = 0x123456789abcdef0, .control_rkey = 7 };
static const struct handshake_place sender_place = { .control_address = 0xfedcba9876543210, .control_rkey = 9 };
#define FRAME_KEY UINT64_C(0x0f1e2d3c4b5a6978)
static const struct handshake_log receiver_log = { .key = FRAME_KEY, .index = 0x1234567890, .lsn = 0x55667788 };

struct joining {
    struct join_side ours;
    const struct channel_secret *secret;
    struct end end;
    struct handshake h;
    uint64_t session; /* to be resumed */
    struct handshake_place theirs;
    struct handshake_log log;
    int result;
};

static struct join_side side_of(bool key)
{
    return (struct join_side){ .version = WIRE_VERSION, .features = JOIN_FEATURE_RESUME | (key ? JOIN_FEATURE_KEY : 0),
                               .ring_bytes = 1u << 20,
                               .hello = { .vm = "guest", .generation = 7, .digest = { 1, 2, 3 } } };
}

static struct joining joining_of(bool is_sender, const struct channel_secret *secret)
{
    struct joining joining = { .ours = side_of(secret != NULL), .secret = secret };

    joining.end = is_sender ? (struct end){ .out = &line.to_receiver, .in = &line.to_sender } :
                              (struct end){ .out = &line.to_sender, .in = &line.to_receiver };
    return joining;
}

static void begin(struct joining *joining, const char *name)
{
    joining->h = (struct handshake){ .pipe = { .context = &joining->end, .send = line_send, .receive = line_receive },
                                     .ours = &joining->ours, .secret = joining->secret, .peer = name,
                                     .session = joining->session };
}

static void *send_side(void *argument)
{
    struct joining *joining = argument;

    begin(joining, "receiver");
    joining->result = handshake_sender_meet(&joining->h);
    if (joining->result == 0)
        joining->result = handshake_sender_finish(&joining->h, &sender_place, &joining->theirs, &joining->log);
    if (joining->result != 0)
        line_close();
    return NULL;
}

static void receive_side(struct joining *joining)
{
    begin(joining, "sender");
    joining->result = handshake_receiver_meet(&joining->h, &joining->theirs);
    if (joining->result == 0)
        joining->result = handshake_receiver_finish(&joining->h, &receiver_place, &receiver_log);
    if (joining->result != 0)
        line_close();
}

static void join(struct joining *sender, struct joining *receiver)
{
    pthread_t thread;

    pthread_create(&thread, NULL, send_side, sender);
    receive_side(receiver);
    pthread_join(thread, NULL);
}

static struct channel_secret secret_of(uint8_t seed, size_t count)
{
    struct channel_secret secret = { .count = count };

    for (size_t i = 0; i < count; i++)
        secret.bytes[i] = (uint8_t)(seed + i * 37);
    return secret;
}

static bool same_place(const struct handshake_place *a, const struct handshake_place *b)
{
    return a->ring_address == b->ring_address && a->ring_rkey == b->ring_rkey &&
           a->control_address == b->control_address && a->control_rkey == b->control_rkey;
}

/* ---- words are kept quiet, and looked at ---- */

static int words_fd, real_stderr;

static int quiet_begin(void **state)
{
    (void)state;
    words_fd = memfd_create("words", 0);
    fcntl(words_fd, F_SETFL, O_APPEND); /* both ends speak, in two threads */
    real_stderr = dup(STDERR_FILENO);
    dup2(words_fd, STDERR_FILENO);
    return 0;
}

static int quiet_end(void **state)
{
    (void)state;
    dup2(real_stderr, STDERR_FILENO);
    close(words_fd);
    return 0;
}

static char *words_since(off_t begin)
{
    static char words[65536];
    ssize_t bytes = pread(words_fd, words, sizeof(words) - 1, begin);

    words[bytes < 0 ? 0 : bytes] = '\0';
    return words;
}

static off_t words_now(void)
{
    return lseek(STDERR_FILENO, 0, SEEK_END);
}

/* ---- who joins ---- */

static void ends_with_one_key_join_and_learn_each_others_places(void **state)
{
    struct channel_secret secret = secret_of(1, 32);

    (void)state;
    for (int with_key = 0; with_key < 2; with_key++) {
        struct joining sender = joining_of(true, with_key ? &secret : NULL);
        struct joining receiver = joining_of(false, with_key ? &secret : NULL);

        line_reset();
        sender.ours.ack = CHANNEL_ACK_SEEN;
        join(&sender, &receiver);
        assert_int_equal(sender.result, 0);
        assert_int_equal(receiver.result, 0);
        assert_true(same_place(&sender.theirs, &receiver_place));
        assert_true(same_place(&receiver.theirs, &sender_place));
        assert_memory_equal(&sender.log, &receiver_log, sizeof(receiver_log));
        assert_string_equal(receiver.h.theirs.hello.vm, "guest");
        assert_int_equal(receiver.h.theirs.ack, CHANNEL_ACK_SEEN);
        assert_int_equal(line.said, MESSAGES);
    }
}

static void other_key_or_none_is_refused_by_both_in_words_without_the_key(void **state)
{
    struct channel_secret one = secret_of(1, 32), other = secret_of(2, 32), longer = secret_of(1, 33);
    const struct channel_secret *const pairs[][2] = { { &one, &other }, { &one, &longer }, { &longer, &one },
                                                      { &one, NULL }, { NULL, &one } };

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct joining sender = joining_of(true, pairs[i][0]), receiver = joining_of(false, pairs[i][1]);
        off_t before = words_now();
        const char *words;

        line_reset();
        join(&sender, &receiver);
        assert_int_equal(sender.result, -EPROTO);
        assert_int_equal(receiver.result, -EPROTO);
        words = words_since(before);
        assert_non_null(strstr(words, i < 3 ? "does not hold the same key" : "has a shared key"));
        assert_non_null(strstr(words, "key file"));
        for (unsigned m = 0; m < line.said; m++) /* neither the line nor the words have it */
            assert_null(memmem(line.heard[m].data, line.heard[m].bytes, one.bytes, 8));
        assert_null(memmem(words, strlen(words), one.bytes, 8));
        assert_true(receiver.h.theirs.hello.vm[0] == 'g'); /* it was the key alone */
    }
}

static void features_of_the_lower_half_are_equal_and_those_of_the_upper_are_offers(void **state)
{
    struct channel_secret secret = secret_of(4, 32);

    (void)state;
    for (unsigned bit = 1; bit < 32; bit++) /* bit 0 is whether there is a key */
        for (int newer = 0; newer < 2; newer++) {
            struct joining sender = joining_of(true, &secret), receiver = joining_of(false, &secret);
            off_t before = words_now();

            (newer ? &sender : &receiver)->ours.features ^= 1u << bit;
            line_reset();
            join(&sender, &receiver);
            if (bit >= 16) {
                assert_true(sender.result == 0 && receiver.result == 0);
                continue;
            }
            assert_true(sender.result == -EPROTO && receiver.result == -EPROTO);
            assert_int_equal(sender.h.refusal, JOIN_FEATURE);
            assert_non_null(strstr(words_since(before), "its features are"));
        }
}

static void a_session_is_resumed_by_its_own_two_ends_alone(void **state)
{
    static const struct {
        uint64_t sender, receiver;
        int result;
        enum join_refusal refusal;
        const char *said; /* by both; NULL: nothing */
    } cases[] = {
        { FRAME_KEY, FRAME_KEY, 0, JOIN_ACCEPTED, NULL },
        { FRAME_KEY ^ 1, FRAME_KEY, -EPROTO, JOIN_SESSION, "is not one of" },
        { FRAME_KEY, 0, -EPROTO, JOIN_SESSION, "is not one of" }, /* a receiver that was started anew */
        { 0, FRAME_KEY, -EBUSY, JOIN_BUSY, NULL },                /* somebody else, who will ask again and again */
    };
    struct channel_secret secret = secret_of(3, 32);

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int with_key = 0; with_key < 2; with_key++) {
            struct joining sender = joining_of(true, with_key ? &secret : NULL);
            struct joining receiver = joining_of(false, with_key ? &secret : NULL);
            off_t before = words_now();
            const char *words;

            sender.session = cases[i].sender;
            receiver.session = cases[i].receiver;
            line_reset();
            join(&sender, &receiver);
            assert_int_equal(sender.result, cases[i].result);
            assert_int_equal(receiver.result, cases[i].result);
            words = words_since(before);
            if (cases[i].said == NULL) {
                assert_string_equal(words, "");
            } else {
                assert_non_null(strstr(words, "sender refused"));
                assert_non_null(strstr(words, "receiver refuses us"));
                assert_non_null(strstr(words, cases[i].said));
            }
            assert_int_equal(sender.h.refusal, cases[i].refusal);
            if (cases[i].result == 0) {
                assert_memory_equal(&sender.log, &receiver_log, sizeof(receiver_log));
            } else { /* and nothing was told of the log, nor where it lies */
                for (size_t byte = 12; byte < line.heard[3].bytes; byte++)
                    assert_int_equal(line.heard[3].data[byte], 0);
            }
        }
}

/* The ack mode was agreed on when the two first joined. */
static void resume_with_another_ack_mode_is_refused(void **state)
{
    struct joining sender = joining_of(true, NULL), receiver = joining_of(false, NULL);

    (void)state;
    sender.session = receiver.session = FRAME_KEY;
    sender.ours.ack = CHANNEL_ACK_SEEN;
    line_reset();
    join(&sender, &receiver);
    assert_int_equal(receiver.result, -EPROTO);
    assert_int_equal(sender.h.refusal, JOIN_SESSION);
}

static void every_bit_changed_on_the_way_keeps_them_apart(void **state)
{
    static const size_t bytes[MESSAGES] = { 136, 136, 64, 96 };
    struct channel_secret secret = secret_of(9, 32);
    unsigned tried = 0;

    (void)state;
    for (int how = 0; how < 3; how++) /* without a key; with one; and to resume */
        for (int message = 0; message < MESSAGES; message++)
            for (size_t bit = 0; bit < bytes[message] * 8; bit += how > 0 ? 1 : 7, tried++) {
                struct joining sender = joining_of(true, how > 0 ? &secret : NULL);
                struct joining receiver = joining_of(false, how > 0 ? &secret : NULL);

                sender.session = receiver.session = how == 2 ? FRAME_KEY : 0;
                line_reset();
                line.flip_message = message;
                line.flip_bit = bit;
                join(&sender, &receiver);
                /* The last message is the receiver's: it cannot know what became of it. */
                if (sender.result == 0 || (message < 3 && receiver.result == 0)) {
                    print_message("message %d, bit %zu: sender %d, receiver %d\n", message + 1, bit, sender.result,
                                  receiver.result);
                    fail();
                }
                assert_true(ftruncate(words_fd, 0) == 0);
                lseek(STDERR_FILENO, 0, SEEK_SET);
            }
    assert_true(tried > 3000);
}

/* ---- who has no key, but ears ---- */

static void what_a_sender_said_once_is_worth_nothing_a_second_time(void **state)
{
    struct channel_secret secret = secret_of(5, 64);
    struct joining sender = joining_of(true, &secret), receiver = joining_of(false, &secret);
    struct message ask, proof;

    (void)state;
    line_reset();
    join(&sender, &receiver);
    assert_int_equal(receiver.result, 0);
    ask = line.heard[0];
    proof = line.heard[2];
    line_reset();
    line.to_receiver.messages[0] = ask;
    line.to_receiver.messages[1] = proof;
    line.to_receiver.written = 2;
    receiver = joining_of(false, &secret);
    receive_side(&receiver);
    assert_int_equal(receiver.result, -EPROTO);
    assert_int_equal(receiver.h.refusal, JOIN_KEY);
    assert_int_equal(line.to_sender.written, 2); /* ANSWER, and a GRANT that refuses: */
    for (size_t i = 16; i < line.to_sender.messages[1].bytes; i++) /* no place, no key of frames */
        if (i != 8 && i != 9 && i != 10 && i != 11)
            assert_int_equal(line.to_sender.messages[1].data[i], 0);
}

static void what_a_receiver_said_once_is_worth_nothing_a_second_time(void **state)
{
    struct channel_secret secret = secret_of(5, 64);
    struct joining sender = joining_of(true, &secret), receiver = joining_of(false, &secret);
    struct message answer, grant;

    (void)state;
    line_reset();
    join(&sender, &receiver);
    answer = line.heard[1];
    grant = line.heard[3];
    line_reset();
    line.to_sender.messages[0] = answer;
    line.to_sender.messages[1] = grant;
    line.to_sender.written = 2;
    sender = joining_of(true, &secret);
    send_side(&sender);
    assert_int_equal(sender.result, -EPROTO);
    assert_int_equal(sender.h.refusal, JOIN_KEY);
}

static void a_proof_of_one_generation_or_machine_is_none_for_another(void **state)
{
    struct channel_secret secret = secret_of(5, 64);

    (void)state;
    for (int misfit = 0; misfit < 4; misfit++) {
        struct joining sender = joining_of(true, &secret), receiver = joining_of(false, &secret);

        line_reset();
        if (misfit == 0)
            sender.ours.hello.generation = 8;
        else if (misfit == 1)
            sender.ours.hello.vm[0] = 'G';
        else if (misfit == 2)
            sender.ours.hello.digest[15] = 1;
        else
            sender.ours.ring_bytes *= 2;
        join(&sender, &receiver);
        assert_int_equal(sender.result, -EPROTO);
        assert_int_equal(receiver.result, -EPROTO);
    }
}

/* A sender without the key sends the receiver's own answer back as its proof, and all else it has heard. */
static void what_is_reflected_proves_nothing(void **state)
{
    struct channel_secret secret = secret_of(5, 64);

    (void)state;
    for (int with = 0; with < 2; with++) {
        struct joining receiver = joining_of(false, &secret), good = joining_of(true, &secret);
        struct message *forged = &line.to_receiver.messages[1];

        line_reset();
        join(&good, &receiver);
        line.to_receiver.messages[0] = line.heard[0];
        *forged = line.heard[2];
        memcpy(forged->data + forged->bytes - 32, line.heard[with == 0 ? 1 : 3].data + line.heard[with == 0 ? 1 : 3].bytes - 32,
               32);
        line.to_receiver.written = 2;
        line.to_receiver.read = 0;
        line.said = 0;
        memset(&line.to_sender, 0, sizeof(line.to_sender));
        receiver = joining_of(false, &secret);
        receive_side(&receiver);
        assert_int_equal(receiver.result, -EPROTO);
        assert_int_equal(receiver.h.refusal, JOIN_KEY);
    }
}

static void nonsense_and_other_versions_are_refused_in_words(void **state)
{
    uint64_t seed = test_seed("handshake");
    struct message hello;

    (void)state;
    for (int i = 0; i < 2000; i++) {
        struct joining receiver = joining_of(false, NULL);
        struct message *message = &line.to_receiver.messages[0];

        line_reset();
        message->bytes = test_random(&seed) % (HANDSHAKE_MAX_BYTES + 1);
        for (size_t b = 0; b < message->bytes; b++)
            message->data[b] = (uint8_t)test_random(&seed);
        if (i % 2 == 0 && message->bytes >= sizeof(struct handshake_head)) { /* a good head at least */
            struct handshake_head head = handshake_head_of(HANDSHAKE_ASK, message->bytes);

            memcpy(message->data, &head, sizeof(head));
        }
        line.to_receiver.written = 1;
        line.closed = true;
        receive_side(&receiver);
        assert_true(receiver.result == -EPROTO);
        assert_true(ftruncate(words_fd, 0) == 0);
        lseek(STDERR_FILENO, 0, SEEK_SET);
    }
    for (int version = 0; version < 256; version += 3) {
        struct joining sender = joining_of(true, NULL), receiver = joining_of(false, NULL);
        off_t before;

        if (version == WIRE_VERSION)
            continue;
        line_reset();
        line.closed = true;
        send_side(&sender);
        hello = line.to_receiver.messages[0];
        hello.data[4] = (uint8_t)version;
        line_reset();
        line.closed = true;
        line.to_receiver.messages[0] = hello;
        line.to_receiver.written = 1;
        before = words_now();
        receive_side(&receiver);
        assert_int_equal(receiver.result, -EPROTO);
        assert_int_equal(receiver.h.refusal, JOIN_VERSION);
        assert_non_null(strstr(words_since(before), "version"));
        assert_int_equal(line.to_sender.written, 1); /* and told why */
    }
}

/* ---- the file ---- */

static void key_file_is_taken_only_if_nobody_else_can_read_or_change_it(void **state)
{
    char path[] = "/tmp/ftvmm-key-XXXXXX", link_path[64];
    uint8_t bytes[300];
    struct channel_secret secret;
    int fd = mkstemp(path);

    (void)state;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(write(fd, bytes, 32), 32);
    assert_int_equal(channel_secret_load(&secret, path), 0);
    assert_int_equal(secret.count, 32);
    assert_memory_equal(secret.bytes, bytes, 32);
    channel_secret_wipe(&secret);
    assert_int_equal(secret.bytes[0], 0);
    for (mode_t mode = 0; mode <= 0777; mode++) {
        if ((mode & 0400) == 0)
            continue;
        assert_int_equal(fchmod(fd, mode), 0);
        assert_int_equal(channel_secret_load(&secret, path), (mode & 077) == 0 ? 0 : -EACCES);
        if ((mode & 077) != 0)
            assert_int_equal(secret.count, 0);
    }
    assert_int_equal(fchmod(fd, 0600), 0);
    if (geteuid() == 0) { /* another user's file: he could change it */
        assert_int_equal(fchown(fd, 12345, 12345), 0);
        assert_int_equal(channel_secret_load(&secret, path), -EACCES);
        assert_int_equal(fchown(fd, 0, 0), 0);
    }
    assert_int_equal(ftruncate(fd, 31), 0);
    assert_int_equal(channel_secret_load(&secret, path), -EINVAL);
    assert_int_equal(pwrite(fd, bytes, 257, 0), 257);
    assert_int_equal(channel_secret_load(&secret, path), -EINVAL);
    assert_int_equal(ftruncate(fd, 256), 0);
    assert_int_equal(channel_secret_load(&secret, path), 0);
    assert_int_equal(secret.count, 256);
    close(fd);
    unlink(path);
    assert_int_equal(channel_secret_load(&secret, path), -ENOENT);
    snprintf(link_path, sizeof(link_path), "%s.fifo", path);
    assert_int_equal(mkfifo(link_path, 0600), 0);
    assert_int_equal(channel_secret_load(&secret, link_path), -EINVAL); /* and does not wait for a writer */
    unlink(link_path);
    assert_int_equal(channel_secret_load(&secret, "/dev"), -EINVAL);
}

/* RFC 4231, test case 2: what we call HMAC-SHA-256 is. */
static void proof_is_hmac_sha_256(void **state)
{
    static const uint8_t expected[32] = { 0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24,
                                          0x26, 0x08, 0x95, 0x75, 0xc7, 0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27,
                                          0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43 };
    struct channel_secret secret = { .count = 4, .bytes = "Jefe" };
    const char *data = "what do ya want for nothing?";
    uint8_t proof[32];

    (void)state;
    assert_int_equal(secret_prove(&secret, data, strlen(data), proof), 0);
    assert_memory_equal(proof, expected, sizeof(proof));
    assert_true(secret_proofs_equal(proof, expected));
    proof[31] ^= 1;
    assert_false(secret_proofs_equal(proof, expected));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(proof_is_hmac_sha_256),
        cmocka_unit_test_setup_teardown(ends_with_one_key_join_and_learn_each_others_places, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(other_key_or_none_is_refused_by_both_in_words_without_the_key, quiet_begin,
                                        quiet_end),
        cmocka_unit_test_setup_teardown(features_of_the_lower_half_are_equal_and_those_of_the_upper_are_offers,
                                        quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(a_session_is_resumed_by_its_own_two_ends_alone, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(resume_with_another_ack_mode_is_refused, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(every_bit_changed_on_the_way_keeps_them_apart, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(what_a_sender_said_once_is_worth_nothing_a_second_time, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(what_a_receiver_said_once_is_worth_nothing_a_second_time, quiet_begin,
                                        quiet_end),
        cmocka_unit_test_setup_teardown(a_proof_of_one_generation_or_machine_is_none_for_another, quiet_begin,
                                        quiet_end),
        cmocka_unit_test_setup_teardown(what_is_reflected_proves_nothing, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(nonsense_and_other_versions_are_refused_in_words, quiet_begin, quiet_end),
        cmocka_unit_test_setup_teardown(key_file_is_taken_only_if_nobody_else_can_read_or_change_it, quiet_begin,
                                        quiet_end),
    };

    return cmocka_run_group_tests_name("handshake", tests, NULL, NULL);
}
