/* Proves and judges messages; the sentences of refusals. */
#include "witness/protocol.h"

#include <string.h>

struct witness_head witness_head_of(enum witness_type type, size_t bytes)
{
    return (struct witness_head){ .magic = WITNESS_MAGIC, .version = WITNESS_VERSION, .type = (uint8_t)type,
                                  .bytes = (uint16_t)bytes };
}

bool witness_head_is(const struct witness_head *head, enum witness_type type, size_t bytes, size_t heard_bytes)
{
    return heard_bytes >= bytes && head->magic == WITNESS_MAGIC && head->version == WITNESS_VERSION &&
           head->type == type && head->bytes == bytes;
}

int witness_prove(const struct channel_secret *secret, const struct witness_hello *hello,
                  const struct witness_welcome *welcome, const struct witness_request *request, const void *message,
                  size_t bytes, uint8_t proof[SECRET_PROOF_BYTES])
{
    uint8_t said[sizeof(*hello) + sizeof(*welcome) + sizeof(*request) + sizeof(struct witness_answer)];
    size_t said_bytes = 0;

    memcpy(said, hello, sizeof(*hello));
    said_bytes += sizeof(*hello);
    if (welcome != NULL) {
        memcpy(said + said_bytes, welcome, sizeof(*welcome));
        said_bytes += sizeof(*welcome);
    }
    if (request != NULL) {
        memcpy(said + said_bytes, request, sizeof(*request));
        said_bytes += sizeof(*request);
    }
    memcpy(said + said_bytes, message, bytes - SECRET_PROOF_BYTES);
    return secret_prove(secret, said, said_bytes + bytes - SECRET_PROOF_BYTES, proof);
}

bool witness_proof_holds(const struct channel_secret *secret, const struct witness_hello *hello,
                         const struct witness_welcome *welcome, const struct witness_request *request,
                         const void *message, size_t bytes)
{
    uint8_t proof[SECRET_PROOF_BYTES];

    return witness_prove(secret, hello, welcome, request, message, bytes, proof) == 0 &&
           secret_proofs_equal(proof, (const uint8_t *)message + bytes - SECRET_PROOF_BYTES);
}

const char *witness_status_text(uint32_t status)
{
    switch ((enum witness_status)status) {
    case WITNESS_OK: return "no objection";
    case WITNESS_NOT_WITNESS:
        return "it does not speak our version of the witness's protocol; install one version on all hosts";
    case WITNESS_BUSY: return "too many hosts are connecting to it just now";
    case WITNESS_UNKNOWN_VM:
        return "it has no key for a VM of this name, or none that it may read; put one into its --keys directory";
    case WITNESS_KEY: return "it does not hold the same key for this VM; copy one key file to all three hosts";
    case WITNESS_TABLE_FULL: return "its table is full of other VMs; start it with a larger --vms";
    case WITNESS_MEMBERS_FULL: return "too many processes have asked for this generation; begin a new pair";
    case WITNESS_UNKNOWN_GENERATION: return "it does not know this generation, or no longer";
    case WITNESS_OTHER_PAIR: return "it knows this generation as another pair's";
    case WITNESS_DOUBTFUL:
        return "it was restarted and has forgotten who has won; it decides again when both hosts have come back to it";
    case WITNESS_STORAGE: return "it cannot write its state; is its disk full? Its log says more";
    }
    return "a reason unknown to us; install one version on all hosts";
}
