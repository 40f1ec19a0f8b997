/* Reads the shared key and proves with it. */
#include "channel/secret.h"

#include "base/private_file.h"
#include "base/report.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#define HOW_TO_MAKE "'(umask 077; head -c 32 /dev/urandom >FILE)' makes one, to be copied to the other host"

int channel_secret_load(struct channel_secret *secret, const char *path)
{
    int fd = private_file_open(path, "key", CHANNEL_SECRET_MIN_BYTES, CHANNEL_SECRET_MAX_BYTES, HOW_TO_MAKE);
    int result = 0;
    ssize_t bytes;

    memset(secret, 0, sizeof(*secret));
    if (fd < 0)
        return fd;
    bytes = read(fd, secret->bytes, sizeof(secret->bytes));
    if (bytes < (ssize_t)CHANNEL_SECRET_MIN_BYTES) {
        result = bytes < 0 ? -errno : -EIO;
        report_error("key '%s': cannot be read: %s", path, strerror(-result));
        channel_secret_wipe(secret);
    } else {
        secret->count = (size_t)bytes;
    }
    close(fd);
    return result;
}

void channel_secret_wipe(struct channel_secret *secret)
{
    explicit_bzero(secret, sizeof(*secret));
}

int secret_prove(const struct channel_secret *secret, const void *data, size_t bytes,
                 uint8_t proof[SECRET_PROOF_BYTES])
{
    static const uint8_t nothing[32];
    size_t proof_bytes = 0;

    if (EVP_Q_mac(NULL, "HMAC", NULL, "SHA256", NULL, secret != NULL ? secret->bytes : nothing,
                  secret != NULL ? secret->count : sizeof(nothing), data, bytes, proof, SECRET_PROOF_BYTES,
                  &proof_bytes) == NULL ||
        proof_bytes != SECRET_PROOF_BYTES) {
        report_error("channel: libcrypto cannot compute HMAC-SHA-256; is OpenSSL's configuration sound?");
        return -EIO;
    }
    return 0;
}

bool secret_proofs_equal(const uint8_t a[SECRET_PROOF_BYTES], const uint8_t b[SECRET_PROOF_BYTES])
{
    return CRYPTO_memcmp(a, b, SECRET_PROOF_BYTES) == 0;
}
