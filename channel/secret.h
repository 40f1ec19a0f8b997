/* The key that the two ends of a channel share: read from a file, never printed, never on a command line. */
#ifndef FTVMM_CHANNEL_SECRET_H
#define FTVMM_CHANNEL_SECRET_H

#include "channel/channel.h"

#include <stddef.h>
#include <stdint.h>

#define SECRET_PROOF_BYTES 32u /* HMAC-SHA-256 (RFC 2104, FIPS 198-1) */

/* HMAC-SHA-256 of `data` under the secret; NULL stands for 32 zero bytes, which prove nothing to anybody. 0; -EIO:
 * the crypto library failed, said in words. */
int secret_prove(const struct channel_secret *secret, const void *data, size_t bytes,
                 uint8_t proof[SECRET_PROOF_BYTES]);
/* In a time that does not depend on where they differ. */
bool secret_proofs_equal(const uint8_t a[SECRET_PROOF_BYTES], const uint8_t b[SECRET_PROOF_BYTES]);

#endif
