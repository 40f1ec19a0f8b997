/* Goes through an initrd, a chain of cpio archives, for kernel modules. */
#include "vmm/initrd.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/report.h"
#include "vmm/tsc_patch.h"

#define HEADER_BYTES     110 /* "070701" or "070702" and 13 numbers of 8 hex digits */
#define FIELD_MODE       1
#define FIELD_FILE_BYTES 6
#define FIELD_NAME_BYTES 11
#define MODE_TYPE        0170000u
#define MODE_REGULAR     0100000u

static bool header_field(const uint8_t *header, unsigned field, uint32_t *value)
{
    *value = 0;
    for (unsigned i = 0; i < 8; i++) {
        uint8_t c = header[6 + 8 * field + i];
        uint32_t digit;

        if (c >= '0' && c <= '9')
            digit = c - '0';
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (c | 0x20) - 'a' + 10u;
        else
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t length = strlen(name), tail = strlen(suffix);

    return length >= tail && strcmp(name + length - tail, suffix) == 0;
}

/* The name of the packing that the first bytes tell of, NULL if none. */
static const char *packing(const uint8_t *at, size_t bytes)
{
    static const struct {
        const char *name;
        uint8_t magic[4];
        uint8_t count;
    } known[] = {
        {"gzip", {0x1f, 0x8b}, 2},
        {"xz", {0xfd, '7', 'z', 'X'}, 4},
        {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4},
        {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4},
        {"bzip2", {'B', 'Z', 'h'}, 3},
        {"lzma", {0x5d, 0x00, 0x00}, 3},
        {"lzop", {0x89, 'L', 'Z', 'O'}, 4},
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (bytes >= known[i].count && memcmp(at, known[i].magic, known[i].count) == 0)
            return known[i].name;
    return NULL;
}

static int patch_entry(uint8_t *data, size_t bytes, const char *entry, const char *name, uint32_t *modules,
                       uint32_t *sites)
{
    static const char *const packed[] = {".ko.xz", ".ko.gz", ".ko.zst"};
    char label[160];

    for (size_t i = 0; i < sizeof(packed) / sizeof(packed[0]); i++)
        if (ends_with(entry, packed[i])) {
            report_error("initrd '%s' holds the compressed module %s, whose RDTSCs cannot be seen; unpack it there",
                         name, entry);
            return -ENOTSUP;
        }
    if (!ends_with(entry, ".ko"))
        return 0;
    (*modules)++;
    snprintf(label, sizeof(label), "module %s", entry);
    return tsc_patch_module(data, bytes, label, sites);
}

static size_t align4(size_t at)
{
    return (at + 3) & ~(size_t)3;
}

int initrd_patch_modules(uint8_t *archive, size_t bytes, const char *name, uint32_t *modules, uint32_t *sites)
{
    size_t at = 0;

    *modules = *sites = 0;
    while (at < bytes) {
        uint8_t *header = archive + at;
        uint32_t mode, file_bytes, name_bytes;

        if (*header == 0) { /* padding between archives, and after the last */
            at++;
            continue;
        }
        const char *packer = packing(header, bytes - at);
        if (packer != NULL) {
            report_error("initrd '%s' is packed with %s, so that the kernel modules in it cannot be looked through for "
                         "RDTSC; give it unpacked (scripts/guest-image makes one so)",
                         name, packer);
            return -ENOTSUP;
        }
        if (bytes - at < HEADER_BYTES || memcmp(header, "07070", 5) != 0 || (header[5] != '1' && header[5] != '2') ||
            !header_field(header, FIELD_MODE, &mode) || !header_field(header, FIELD_FILE_BYTES, &file_bytes) ||
            !header_field(header, FIELD_NAME_BYTES, &name_bytes)) {
            report_error("initrd '%s' is no cpio archive of the newc format, or damaged, at byte %zu", name, at);
            return -EINVAL;
        }
        size_t name_at = at + HEADER_BYTES;
        if (name_bytes == 0 || name_bytes > 4096 || name_bytes > bytes - name_at ||
            archive[name_at + name_bytes - 1] != 0 || align4(name_at + name_bytes) > bytes ||
            file_bytes > bytes - align4(name_at + name_bytes)) {
            report_error("initrd '%s' ends within its entry at byte %zu: it is cut short or damaged", name, at);
            return -EINVAL;
        }
        size_t data_at = align4(name_at + name_bytes);
        if ((mode & MODE_TYPE) == MODE_REGULAR && file_bytes > 0) {
            int rc = patch_entry(archive + data_at, file_bytes, (const char *)archive + name_at, name, modules, sites);
            if (rc < 0)
                return rc;
        }
        at = align4(data_at + file_bytes);
    }
    return 0;
}
