/* Unpacks a bzImage: finds the payload by the setup header, and unpacks it in the four ways in use. */
#include "vmm/bzimage.h"

#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <lzma.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "base/report.h"

/* Offsets in the file: boot.rst. */
#define SETUP_SECTORS  0x1f1
#define HEADER_JUMP    0x201 /* the header ends at 0x202 plus this byte */
#define HEADER_MAGIC   0x202
#define PROTOCOL       0x206
#define KERNEL_VERSION 0x20e
#define LOAD_FLAGS     0x211
#define XLOAD_FLAGS    0x236
#define PAYLOAD_OFFSET 0x248
#define PAYLOAD_LENGTH 0x24c
#define HEADER_END_MIN 0x268

#define LOADED_HIGH            1u    /* loadflags: a bzImage, not a zImage */
#define XLF_KERNEL_64          1u    /* xloadflags: has the 64-bit entry */
#define PROTOCOL_MIN           0x20c /* first with xloadflags */
#define SECTOR_BYTES           512u
#define LZ4_LEGACY_MAGIC       0x184c2102u
#define LZ4_LEGACY_BLOCK_BYTES (8u << 20)

static uint32_t read_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint16_t read_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

/* Each unpacker fills exactly `room` bytes of `out`, or says no. */

static bool unpack_gzip(const uint8_t *in, size_t bytes, uint8_t *out, size_t room)
{
    z_stream stream = {
        .next_in = (uint8_t *)(uintptr_t)in, .avail_in = (uInt)bytes, .next_out = out, .avail_out = (uInt)room};

    if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK)
        return false;
    int rc = inflate(&stream, Z_FINISH);
    bool whole = rc == Z_STREAM_END && stream.avail_out == 0;
    inflateEnd(&stream);
    return whole;
}

static bool unpack_xz(const uint8_t *in, size_t bytes, uint8_t *out, size_t room)
{
    uint64_t memory_limit = UINT64_C(256) << 20;
    size_t in_at = 0, out_at = 0;

    return lzma_stream_buffer_decode(&memory_limit, 0, NULL, in, &in_at, bytes, out, &out_at, room) == LZMA_OK &&
           out_at == room;
}

/* The "legacy frame" of lz4 -l: magic, then blocks of a length and the packed bytes, up to the end. */
static bool unpack_lz4(const uint8_t *in, size_t bytes, uint8_t *out, size_t room)
{
    size_t at = 4, filled = 0;

    while (at < bytes) {
        if (bytes - at < 4)
            return false;
        uint32_t packed = read_u32(in + at);
        at += 4;
        if (packed == LZ4_LEGACY_MAGIC)
            continue; /* files of several frames */
        if (packed > bytes - at || packed > (uint32_t)LZ4_COMPRESSBOUND(LZ4_LEGACY_BLOCK_BYTES))
            return false;
        size_t block_room = room - filled < LZ4_LEGACY_BLOCK_BYTES ? room - filled : LZ4_LEGACY_BLOCK_BYTES;
        int got = LZ4_decompress_safe((const char *)in + at, (char *)out + filled, (int)packed, (int)block_room);
        if (got < 0)
            return false;
        filled += (size_t)got;
        at += packed;
    }
    return filled == room;
}

static bool unpack_zstd(const uint8_t *in, size_t bytes, uint8_t *out, size_t room)
{
    return ZSTD_decompress(out, room, in, bytes) == room;
}

struct format {
    const char *name;
    uint8_t magic[6];
    uint8_t magic_bytes;
    uint8_t trailer_bytes; /* of the size that the kernel's build appends; gzip's own trailer has it already */
    bool (*unpack)(const uint8_t *in, size_t bytes, uint8_t *out, size_t room); /* NULL: known but not unpacked */
};

static const struct format formats[] = {
    {"gzip", {0x1f, 0x8b}, 2, 0, unpack_gzip},
    {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, 4, unpack_xz},
    {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4, 4, unpack_lz4},
    {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, 4, unpack_zstd},
    {"bzip2", {'B', 'Z', 'h'}, 3, 4, NULL},
    {"lzma", {0x5d, 0x00, 0x00}, 3, 4, NULL},
    {"lzop", {0x89, 'L', 'Z', 'O'}, 4, 4, NULL},
};

static int unpack(struct bzimage *image, const uint8_t *payload, size_t bytes, const char *name)
{
    const struct format *format = NULL;

    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]) && format == NULL; i++)
        if (bytes >= formats[i].magic_bytes && memcmp(payload, formats[i].magic, formats[i].magic_bytes) == 0)
            format = &formats[i];
    if (format == NULL || format->unpack == NULL) {
        report_error("kernel '%s' is packed %s%s (first bytes %02x %02x %02x %02x); gzip, xz, lz4 and zstd are known: "
                     "take a kernel packed so, as Debian's are",
                     name, format ? "with " : "in an unknown way", format ? format->name : "", payload[0], payload[1],
                     payload[2], payload[3]);
        return -ENOTSUP;
    }
    size_t unpacked = read_u32(payload + bytes - 4);
    if (unpacked == 0 || unpacked > BZIMAGE_UNPACKED_MAX_BYTES) {
        report_error("kernel '%s' says that it unpacks to %zu bytes, which cannot be: the file is damaged; "
                     "fetch it again",
                     name, unpacked);
        return -EFBIG;
    }
    image->vmlinux = malloc(unpacked);
    if (image->vmlinux == NULL) {
        report_error("no memory to unpack kernel '%s' (%zu MiB)", name, unpacked >> 20);
        return -ENOMEM;
    }
    image->vmlinux_bytes = unpacked;
    image->compression = format->name;
    if (!format->unpack(payload, bytes - format->trailer_bytes, image->vmlinux, unpacked)) {
        report_error("kernel '%s' does not unpack (%s, %zu bytes that should become %zu): the file is damaged; "
                     "fetch it again",
                     name, format->name, bytes, unpacked);
        return -EBADMSG;
    }
    if (unpacked < 64 || memcmp(image->vmlinux, "\177ELF", 4) != 0) {
        report_error("kernel '%s' unpacks, but not to an ELF file: it is no Linux kernel for x86-64", name);
        return -EINVAL;
    }
    return 0;
}

static void copy_version(struct bzimage *image, const uint8_t *file, size_t bytes)
{
    size_t at = (size_t)read_u16(file + KERNEL_VERSION) + 0x200;

    if (at == 0x200)
        return;
    for (size_t i = 0; i + 1 < sizeof(image->version) && at + i < bytes; i++) {
        if (file[at + i] <= ' ' || file[at + i] > '~')
            break;
        image->version[i] = (char)file[at + i];
    }
}

int bzimage_parse(struct bzimage *image, const uint8_t *file, size_t bytes, const char *name)
{
    int rc;

    memset(image, 0, sizeof(*image));
    if (bytes < HEADER_END_MIN || memcmp(file + HEADER_MAGIC, "HdrS", 4) != 0 || read_u16(file + 0x1fe) != 0xaa55) {
        bool elf = bytes >= 4 && memcmp(file, "\177ELF", 4) == 0;
        report_error("'%s' is no bzImage: %s; give the vmlinuz of a Debian kernel", name,
                     elf                      ? "it is an unpacked ELF kernel"
                     : bytes < HEADER_END_MIN ? "it is too short"
                                              : "the mark HdrS is missing at 0x202");
        return -EINVAL;
    }
    image->protocol = read_u16(file + PROTOCOL);
    if (image->protocol < PROTOCOL_MIN || !(file[LOAD_FLAGS] & LOADED_HIGH) || !(file[XLOAD_FLAGS] & XLF_KERNEL_64)) {
        report_error("kernel '%s' has boot protocol %u.%02u%s; needed: an x86-64 kernel with 2.12 or newer", name,
                     image->protocol >> 8, image->protocol & 0xff,
                     file[XLOAD_FLAGS] & XLF_KERNEL_64 ? "" : " and no 64-bit entry");
        return -ENOTSUP;
    }

    size_t setup_sectors = file[SETUP_SECTORS] ? file[SETUP_SECTORS] : 4; /* boot.rst: 0 means 4 */
    uint64_t payload = (setup_sectors + 1) * SECTOR_BYTES + (uint64_t)read_u32(file + PAYLOAD_OFFSET);
    uint64_t length = read_u32(file + PAYLOAD_LENGTH);
    if (length < 8 || payload + length > bytes) {
        report_error("kernel '%s' is cut short or damaged: its payload should be %llu bytes from byte %llu, the file "
                     "has %zu bytes; fetch it again",
                     name, (unsigned long long)length, (unsigned long long)payload, bytes);
        return -EBADMSG;
    }

    size_t header_end = HEADER_MAGIC + file[HEADER_JUMP];
    size_t header_bytes = header_end - BZIMAGE_SETUP_HEADER_OFFSET;
    if (header_end < HEADER_END_MIN || header_bytes > BZIMAGE_SETUP_HEADER_MAX_BYTES || header_end > bytes) {
        report_error("kernel '%s' has a setup header that ends at 0x%zx, which cannot be: the file is damaged", name,
                     header_end);
        return -EBADMSG;
    }
    memcpy(image->setup_header, file + BZIMAGE_SETUP_HEADER_OFFSET, header_bytes);
    copy_version(image, file, bytes);
    rc = unpack(image, file + payload, length, name);
    if (rc < 0)
        bzimage_close(image);
    return rc;
}

/* Not a mapping: a file that shrinks meanwhile is then an error, not a SIGBUS. */
static int read_all(int fd, uint8_t *at, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = read(fd, at, bytes);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        at += got;
        bytes -= (size_t)got;
    }
    return 0;
}

int bzimage_open(struct bzimage *image, const char *path)
{
    struct stat st;
    uint8_t *file;
    int rc, fd;

    memset(image, 0, sizeof(*image));
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        rc = -errno;
        report_error("kernel '%s' does not open: %s; scripts/guest-image makes one from Debian's packages", path,
                     strerror(-rc));
        goto out;
    }
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        report_error("kernel '%s' is %s", path, S_ISREG(st.st_mode) ? "an empty file" : "not a file");
        rc = -EINVAL;
        goto out;
    }
    if ((uint64_t)st.st_size > BZIMAGE_UNPACKED_MAX_BYTES) {
        report_error("kernel '%s' of %lld MiB is too large to be one", path, (long long)(st.st_size >> 20));
        rc = -EFBIG;
        goto out;
    }
    file = malloc((size_t)st.st_size);
    if (file == NULL) {
        report_error("no memory to read kernel '%s' (%lld MiB)", path, (long long)(st.st_size >> 20));
        rc = -ENOMEM;
        goto out;
    }
    rc = read_all(fd, file, (size_t)st.st_size);
    if (rc < 0)
        report_error("kernel '%s' cannot be read: %s", path, strerror(-rc));
    else
        rc = bzimage_parse(image, file, (size_t)st.st_size, path);
    free(file);
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

void bzimage_close(struct bzimage *image)
{
    free(image->vmlinux);
    memset(image, 0, sizeof(*image));
}
