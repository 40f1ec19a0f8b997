/* bzImages of every packing, and all ways to damage one. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>

#include "fake_kernel.h"
#include "vmm/bzimage.h"

static uint8_t payload[9 << 20]; /* more than one block of lz4 */

static void fill_payload(size_t bytes)
{
    uint64_t state = 1;

    for (size_t i = 0; i < bytes; i++)
        payload[i] = i % 3 ? (uint8_t)i : (uint8_t)test_random(&state);
    memcpy(payload, "\177ELF", 4);
}

static void unpack_gives_back_what_was_packed(enum fake_packing packing, const char *name, size_t bytes)
{
    struct bzimage image;
    size_t file_bytes;

    fill_payload(bytes);
    uint8_t *file = fake_bzimage(payload, bytes, packing, &file_bytes);
    assert_int_equal(bzimage_parse(&image, file, file_bytes, "test"), 0);
    assert_int_equal(image.vmlinux_bytes, bytes);
    assert_memory_equal(image.vmlinux, payload, bytes);
    assert_string_equal(image.compression, name);
    assert_string_equal(image.version, "6.1.0-fake");
    assert_int_equal(image.protocol, 0x20f);
    bzimage_close(&image);
    assert_null(image.vmlinux);
    free(file);
}

static void bzimage_unpacks_gzip(void **state)
{
    (void)state;
    unpack_gives_back_what_was_packed(FAKE_GZIP, "gzip", 100000);
}

static void bzimage_unpacks_xz(void **state)
{
    (void)state;
    unpack_gives_back_what_was_packed(FAKE_XZ, "xz", 100000);
}

static void bzimage_unpacks_lz4_of_one_and_of_two_blocks(void **state)
{
    (void)state;
    unpack_gives_back_what_was_packed(FAKE_LZ4, "lz4", 100000);
    unpack_gives_back_what_was_packed(FAKE_LZ4, "lz4", sizeof(payload));
}

static void bzimage_unpacks_zstd(void **state)
{
    (void)state;
    unpack_gives_back_what_was_packed(FAKE_ZSTD, "zstd", 100000);
}

static void bzimage_of_unknown_packing_is_refused(void **state)
{
    struct bzimage image;
    size_t bytes;

    (void)state;
    fill_payload(1000);
    for (int packing = FAKE_BZIP2_MAGIC; packing <= FAKE_NONSENSE; packing++) {
        uint8_t *file = fake_bzimage(payload, 1000, packing, &bytes);
        assert_int_equal(bzimage_parse(&image, file, bytes, "test"), -ENOTSUP);
        assert_null(image.vmlinux);
        free(file);
    }
}

static void bzimage_cut_anywhere_is_refused(void **state)
{
    (void)state;
    fill_payload(2000);
    for (int packing = FAKE_GZIP; packing <= FAKE_ZSTD; packing++) {
        size_t bytes;
        uint8_t *file = fake_bzimage(payload, 2000, packing, &bytes);

        for (size_t cut = 0; cut < bytes; cut += cut < 0x300 ? 7 : 61) {
            struct bzimage image;
            uint8_t *exact = malloc(cut + 1); /* so that a sanitizer sees any read beyond */

            memcpy(exact, file, cut);
            assert_true(bzimage_parse(&image, exact, cut, "test") < 0);
            assert_null(image.vmlinux);
            free(exact);
        }
        free(file);
    }
}

/* Whatever single byte of the payload is wrong: refused, or (lz4 and zstd have no checksum here) unpacked to the
 * right size. gzip and xz do not notice damage in the few bytes of their headers that mean nothing. */
static void bzimage_with_a_damaged_byte_never_overruns(void **state)
{
    uint64_t random = 7;

    (void)state;
    fill_payload(5000);
    for (int packing = FAKE_GZIP; packing <= FAKE_ZSTD; packing++) {
        size_t bytes, refused = 0;
        uint8_t *file = fake_bzimage(payload, 5000, packing, &bytes);

        for (unsigned i = 0; i < 200; i++) {
            struct bzimage image;
            size_t at = 0x440 + test_random(&random) % (bytes - 0x440 - 4);
            uint8_t old = file[at];

            file[at] ^= (uint8_t)(1 + test_random(&random) % 255);
            int rc = bzimage_parse(&image, file, bytes, "test");
            if (rc == 0)
                assert_int_equal(image.vmlinux_bytes, 5000);
            refused += rc < 0;
            bzimage_close(&image);
            file[at] = old;
        }
        if (packing == FAKE_GZIP || packing == FAKE_XZ)
            assert_in_range(refused, 190, 200);
        free(file);
    }
}

static void bzimage_with_a_wrong_size_is_refused(void **state)
{
    static const uint32_t wrong[] = {0, 1, 4999, 5001, 8 << 20, 0x7fffffff, 0xffffffff};

    (void)state;
    fill_payload(5000);
    for (int packing = FAKE_GZIP; packing <= FAKE_ZSTD; packing++) {
        size_t bytes;
        uint8_t *file = fake_bzimage(payload, 5000, packing, &bytes);

        for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
            struct bzimage image;

            memcpy(file + bytes - 4, &wrong[i], 4);
            assert_true(bzimage_parse(&image, file, bytes, "test") < 0);
            assert_null(image.vmlinux);
        }
        free(file);
    }
}

static void bzimage_with_a_wrong_header_is_refused(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
        int rc;
    } wrong[] = {
        {0x202, 'h', -EINVAL},   /* no HdrS */
        {0x1fe, 0, -EINVAL},     /* no boot flag */
        {0x206, 0x09, -ENOTSUP}, /* protocol 2.09 */
        {0x211, 0, -ENOTSUP},    /* a zImage */
        {0x236, 0, -ENOTSUP},    /* no 64-bit entry */
        {0x24b, 0x7f, -EBADMSG}, /* payload offset beyond the file */
        {0x24f, 0x7f, -EBADMSG}, /* payload length beyond the file */
        {0x201, 0xff, -EBADMSG}, /* header longer than its room */
        {0x201, 0x10, -EBADMSG}, /* header shorter than its fields */
    };
    size_t bytes;

    (void)state;
    fill_payload(1000);
    uint8_t *file = fake_bzimage(payload, 1000, FAKE_GZIP, &bytes);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct bzimage image;
        uint8_t old = file[wrong[i].at];

        file[wrong[i].at] = wrong[i].value;
        assert_int_equal(bzimage_parse(&image, file, bytes, "test"), wrong[i].rc);
        file[wrong[i].at] = old;
    }
    free(file);
}

static void bzimage_that_holds_no_elf_is_refused(void **state)
{
    struct bzimage image;
    size_t bytes;

    (void)state;
    fill_payload(1000);
    payload[1] = 'X';
    uint8_t *file = fake_bzimage(payload, 1000, FAKE_ZSTD, &bytes);
    assert_int_equal(bzimage_parse(&image, file, bytes, "test"), -EINVAL);
    assert_null(image.vmlinux);
    free(file);
}

static void bzimage_open_names_what_is_wrong_with_the_file(void **state)
{
    struct bzimage image;

    (void)state;
    assert_int_equal(bzimage_open(&image, "/nonexistent/vmlinuz"), -ENOENT);
    assert_int_equal(bzimage_open(&image, "/tmp"), -EINVAL);
    assert_int_equal(bzimage_open(&image, fake_file("", 0)), -EINVAL);
    assert_int_equal(bzimage_open(&image, fake_file("\177ELF", 4)), -EINVAL);
    assert_null(image.vmlinux);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bzimage_unpacks_gzip),
        cmocka_unit_test(bzimage_unpacks_xz),
        cmocka_unit_test(bzimage_unpacks_lz4_of_one_and_of_two_blocks),
        cmocka_unit_test(bzimage_unpacks_zstd),
        cmocka_unit_test(bzimage_of_unknown_packing_is_refused),
        cmocka_unit_test(bzimage_cut_anywhere_is_refused),
        cmocka_unit_test(bzimage_with_a_damaged_byte_never_overruns),
        cmocka_unit_test(bzimage_with_a_wrong_size_is_refused),
        cmocka_unit_test(bzimage_with_a_wrong_header_is_refused),
        cmocka_unit_test(bzimage_that_holds_no_elf_is_refused),
        cmocka_unit_test(bzimage_open_names_what_is_wrong_with_the_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
