/* Reads the shared key and proves with it. */
#include "channel/secret.h"

#include "base/report.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#define HOW_TO_MAKE "'(umask 077; head -c 32 /dev/urandom >FILE)' makes one, to be copied to the other host"

static int secret_check(const char *path, int fd)
{
    struct stat status;

    if (fstat(fd, &status) != 0)
        return -errno;
    if (!S_ISREG(status.st_mode)) {
        report_error("key '%s': it is no regular file; " HOW_TO_MAKE, path);
        return -EINVAL;
    }
    if (status.st_uid != geteuid() && status.st_uid != 0) {
        report_error("key '%s': it belongs to user %u, who could change it; it must be ours or root's: "
                     "'chown %u %s'", path, (unsigned)status.st_uid, (unsigned)geteuid(), path);
        return -EACCES;
    }
    if ((status.st_mode & 077) != 0) {
        report_error("key '%s': its mode %04o lets others at it; 'chmod 600 %s', and if others were about, make a new "
                     "one", path, (unsigned)status.st_mode & 07777, path);
        return -EACCES;
    }
    if (status.st_size < (off_t)CHANNEL_SECRET_MIN_BYTES || status.st_size > (off_t)CHANNEL_SECRET_MAX_BYTES) {
        report_error("key '%s': it has %lld bytes, and must have %u to %u; " HOW_TO_MAKE, path,
                     (long long)status.st_size, CHANNEL_SECRET_MIN_BYTES, CHANNEL_SECRET_MAX_BYTES);
        return -EINVAL;
    }
    return 0;
}

int channel_secret_load(struct channel_secret *secret, const char *path)
{
    /* O_NONBLOCK: a FIFO of that name must not keep us. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), result;
    ssize_t bytes;

    memset(secret, 0, sizeof(*secret));
    if (fd < 0) {
        result = -errno;
        report_error("key '%s': cannot be opened: %s; " HOW_TO_MAKE, path, strerror(-result));
        return result;
    }
    result = secret_check(path, fd);
    if (result == 0) {
        bytes = read(fd, secret->bytes, sizeof(secret->bytes));
        if (bytes < (ssize_t)CHANNEL_SECRET_MIN_BYTES) {
            result = bytes < 0 ? -errno : -EIO;
            report_error("key '%s': cannot be read: %s", path, strerror(-result));
            channel_secret_wipe(secret);
        } else {
            secret->count = (size_t)bytes;
        }
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
