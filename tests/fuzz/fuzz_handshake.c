/*
 * The conversation of joining, with a peer that says anything. First byte: bit 0 we are the sender, bit 1 we have a key,
 * bit 2 the peer has it too and proves each message, bit 3 our session is to be resumed; then its messages, each behind
 * a byte of its length.
 */
#include "fuzz.h"

#include "channel/handshake.h"
#include "channel/record.h"

#include <errno.h>
#include <string.h>

struct peer {
    const uint8_t *data;
    size_t bytes;
    const struct channel_secret *secret;
    bool proves;
    uint8_t said[8 * HANDSHAKE_MAX_BYTES]; /* by both */
    size_t said_bytes;
};

static void remember(struct peer *peer, const void *message, size_t bytes)
{
    fuzz_check(peer->said_bytes + bytes <= sizeof(peer->said));
    memcpy(peer->said + peer->said_bytes, message, bytes);
    peer->said_bytes += bytes;
}

static int peer_hears(void *context, const void *message, size_t bytes)
{
    fuzz_check(bytes >= HANDSHAKE_HEAD_BYTES && bytes <= HANDSHAKE_MAX_BYTES);
    remember(context, message, bytes);
    return 0;
}

static int peer_says(void *context, void *message, size_t *bytes)
{
    struct peer *peer = context;
    uint8_t *said = peer->said + peer->said_bytes, proof[SECRET_PROOF_BYTES];
    size_t count;

    if (peer->bytes == 0)
        return -ECONNRESET;
    count = peer->data[0] % (HANDSHAKE_MAX_BYTES + 1);
    peer->data++;
    peer->bytes--;
    count = count < peer->bytes ? count : peer->bytes;
    remember(peer, peer->data, count);
    peer->data += count;
    peer->bytes -= count;
    if (peer->proves && count > SECRET_PROOF_BYTES) {
        memset(said + count - SECRET_PROOF_BYTES, 0, SECRET_PROOF_BYTES);
        fuzz_check(secret_prove(peer->secret, peer->said, peer->said_bytes, proof) == 0);
        /* An ASK has none. */
        if (said[5] != HANDSHAKE_ASK)
            memcpy(said + count - SECRET_PROOF_BYTES, proof, SECRET_PROOF_BYTES);
    }
    memcpy(message, said, count);
    *bytes = count;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const struct channel_secret secret = { .count = 32, .bytes = "the secret of the fuzzer's ends" };
    static const struct handshake_place place = { .ring_address = 1, .control_address = 2, .ring_rkey = 3, .control_rkey = 4 };
    struct handshake_place theirs;
    struct join_side ours = { .version = WIRE_VERSION, .features = JOIN_FEATURE_RESUME, .ring_bytes = 1u << 20,
                              .hello = { .vm = "guest", .generation = 7, .digest = { 1, 2, 3 } } };
    struct peer peer = { .data = data + 1, .bytes = bytes - 1 };
    struct handshake h = { .pipe = { .context = &peer, .send = peer_hears, .receive = peer_says }, .ours = &ours,
                           .peer = "fuzzer" };
    static const struct handshake_log held = { .key = 5, .index = 4096, .lsn = 20 };
    struct handshake_log log;
    int result;

    if (bytes < 1)
        return 0;
    if ((data[0] & 2) != 0) {
        ours.features |= JOIN_FEATURE_KEY;
        h.secret = &secret;
    }
    h.session = (data[0] & 8) != 0 ? held.key : 0;
    peer.secret = h.secret;
    peer.proves = (data[0] & 4) != 0;
    if ((data[0] & 1) != 0) {
        result = handshake_sender_meet(&h);
        if (result == 0)
            result = handshake_sender_finish(&h, &place, &theirs, &log);
    } else {
        result = handshake_receiver_meet(&h, &theirs);
        if (result == 0)
            result = handshake_receiver_finish(&h, &place, &held);
    }
    fuzz_check(result == 0 || result == -EPROTO || result == -ECONNRESET || result == -EBUSY);
    if (result == 0) { /* nobody guesses an HMAC over our nonce */
        fuzz_check(peer.proves);
        fuzz_check(memcmp(&h.theirs.hello.vm, ours.hello.vm, sizeof(ours.hello.vm)) == 0);
        fuzz_check((data[0] & 1) == 0 || h.session == 0 || log.key == h.session);
        fuzz_check(h.theirs.ring_bytes == ours.ring_bytes && h.theirs.ack <= CHANNEL_ACK_SEEN);
    }
    return 0;
}
