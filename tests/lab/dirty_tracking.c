/*
 * What it costs to know which pages a guest has written, by each of KVM's ways: the log that write-protects when it is
 * read, the log that is protected by hand, and the ring. One guest writes one word in each of so many pages and halts;
 * then the pages are asked for. Printed for each way and number of pages: the time to write a page beyond what it takes
 * with no tracking, and the time to ask. Needs /dev/kvm only, a software one will do.
 *   dirty-tracking [ROUNDS]
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

#define MEMORY_BYTES (UINT64_C(256) << 20)
#define FIRST_GPA    (UINT64_C(16) << 20)
#define PAGE_BYTES   4096u
#define CODE_GPA     0x1000u
#define RING_ENTRIES 65536u
#define ROUNDS_MAX   1000u

enum way { WAY_NONE, WAY_LOG, WAY_MANUAL, WAY_RING };
static const char *const way_names[] = { "none", "log", "manual", "ring" };

/* EDI: where, ECX: how many pages; 32-bit flat. */
static const uint8_t code[] = {
    0x89, 0x0f,                         /* 1: mov %ecx, (%edi) */
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /* add $4096, %edi */
    0x49,                               /* dec %ecx */
    0x75, 0xf5,                         /* jnz 1b */
    0xf4,                               /* hlt */
};

struct guest {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    uint8_t *memory;
    struct kvm_dirty_gfn *ring;
    uint32_t ring_next;
    uint64_t *bitmap;
};

static int die(const char *what)
{
    fprintf(stderr, "dirty-tracking: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int call(int fd, unsigned long request, void *argument, const char *what)
{
    int rc = ioctl(fd, request, argument);

    return rc < 0 ? die(what) : rc;
}

static int enable(const struct guest *guest, uint32_t capability, uint64_t argument)
{
    struct kvm_enable_cap cap = { .cap = capability, .args = { argument } };

    return ioctl(guest->vm, KVM_ENABLE_CAP, &cap);
}

/* False: this KVM does not have it. */
static int guest_open(struct guest *guest, enum way way)
{
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY_BYTES };
    struct kvm_sregs sregs;

    *guest = (struct guest){ .kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC) };
    if (guest->kvm < 0)
        die("/dev/kvm");
    guest->vm = ioctl(guest->kvm, KVM_CREATE_VM, 0);
    if (guest->vm < 0)
        die("KVM_CREATE_VM");
    (void)ioctl(guest->vm, KVM_SET_TSS_ADDR, 0xfffbd000ul);
    if (way == WAY_RING && enable(guest, KVM_CAP_DIRTY_LOG_RING, RING_ENTRIES * sizeof(struct kvm_dirty_gfn)) < 0)
        return 0;
    if (way == WAY_MANUAL && enable(guest, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                                    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET) < 0)
        return 0;
    guest->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    guest->bitmap = calloc(MEMORY_BYTES / PAGE_BYTES / 64, sizeof(uint64_t));
    if (guest->memory == MAP_FAILED || guest->bitmap == NULL)
        die("memory");
    memcpy(guest->memory + CODE_GPA, code, sizeof(code));
    region.userspace_addr = (uintptr_t)guest->memory;
    region.flags = way == WAY_NONE ? 0 : KVM_MEM_LOG_DIRTY_PAGES;
    call(guest->vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
    guest->vcpu = ioctl(guest->vm, KVM_CREATE_VCPU, 0);
    if (guest->vcpu < 0)
        die("KVM_CREATE_VCPU");
    guest->run = mmap(NULL, (size_t)ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED,
                      guest->vcpu, 0);
    if (guest->run == MAP_FAILED)
        die("the vCPU's shared page");
    if (way == WAY_RING) {
        guest->ring = mmap(NULL, RING_ENTRIES * sizeof(*guest->ring), PROT_READ | PROT_WRITE, MAP_SHARED, guest->vcpu,
                           (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_BYTES);
        if (guest->ring == MAP_FAILED)
            die("the dirty ring");
    }
    call(guest->vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs = (struct kvm_segment){ .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs =
        (struct kvm_segment){ .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
    sregs.cr0 |= 1;
    call(guest->vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    return 1;
}

static void guest_close(struct guest *guest)
{
    if (guest->memory != NULL)
        munmap(guest->memory, MEMORY_BYTES);
    free(guest->bitmap);
    close(guest->vcpu);
    close(guest->vm);
    close(guest->kvm);
}

/* The guest writes; how long that took. */
static uint64_t guest_write(const struct guest *guest, uint32_t pages)
{
    struct kvm_regs regs = { .rip = CODE_GPA, .rflags = 2, .rdi = FIRST_GPA, .rcx = pages };
    uint64_t began_ns, took_ns = 0;

    call(guest->vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
    do {
        began_ns = clock_now_ns();
        call(guest->vcpu, KVM_RUN, NULL, "KVM_RUN");
        took_ns += clock_now_ns() - began_ns;
    } while (guest->run->exit_reason == KVM_EXIT_INTR);
    if (guest->run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "dirty-tracking: the guest left for reason %u\n", guest->run->exit_reason);
        exit(1);
    }
    return took_ns;
}

/* Asks which pages were written, and forgets them; how many. */
static uint64_t guest_ask(struct guest *guest, enum way way)
{
    uint64_t words = MEMORY_BYTES / PAGE_BYTES / 64, pages = 0;
    struct kvm_dirty_log log = { .dirty_bitmap = guest->bitmap };
    struct kvm_clear_dirty_log clear = { .num_pages = MEMORY_BYTES / PAGE_BYTES, .dirty_bitmap = guest->bitmap };

    switch (way) {
    case WAY_NONE: return 0;
    case WAY_RING:
        for (;;) {
            struct kvm_dirty_gfn *entry = &guest->ring[guest->ring_next % RING_ENTRIES];

            if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
                break;
            guest->bitmap[entry->offset / 64 % words] |= UINT64_C(1) << (entry->offset % 64);
            __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
            guest->ring_next++;
            pages++;
        }
        call(guest->vm, KVM_RESET_DIRTY_RINGS, NULL, "KVM_RESET_DIRTY_RINGS");
        return pages;
    case WAY_LOG:
    case WAY_MANUAL:
        call(guest->vm, KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG");
        if (way == WAY_MANUAL)
            call(guest->vm, KVM_CLEAR_DIRTY_LOG, &clear, "KVM_CLEAR_DIRTY_LOG");
        for (uint64_t i = 0; i < words; i++)
            pages += (uint64_t)__builtin_popcountll(guest->bitmap[i]);
        return pages;
    }
    return 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *values, size_t count)
{
    qsort(values, count, sizeof(values[0]), compare);
    return values[count / 2];
}

int main(int argc, char **argv)
{
    static const uint32_t sizes[] = { 16, 256, 4096, 32768 };
    uint64_t plain_ns[sizeof(sizes) / sizeof(sizes[0])] = { 0 };
    unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 25;

    if (argc > 2 || rounds == 0 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: dirty-tracking [ROUNDS], 1 to %u\n", ROUNDS_MAX);
        return 2;
    }
    printf("%-8s %8s %16s %12s\n", "way", "pages", "ns a page more", "us to ask");
    for (enum way way = WAY_NONE; way <= WAY_RING; way++) {
        struct guest guest;

        if (!guest_open(&guest, way)) {
            printf("%-8s not in this KVM\n", way_names[way]);
            guest_close(&guest);
            continue;
        }
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            static uint64_t write_ns[ROUNDS_MAX], ask_ns[ROUNDS_MAX];
            uint64_t write_median_ns;

            (void)guest_write(&guest, sizes[i]); /* pages are there, and the first round begins like the others */
            (void)guest_ask(&guest, way);
            for (unsigned round = 0; round < rounds; round++) {
                uint64_t began_ns, found;

                write_ns[round] = guest_write(&guest, sizes[i]);
                began_ns = clock_now_ns();
                found = guest_ask(&guest, way);
                ask_ns[round] = clock_now_ns() - began_ns;
                if (way != WAY_NONE && found < sizes[i]) {
                    fprintf(stderr, "dirty-tracking: %u pages were written, %s tells of %llu\n", sizes[i],
                            way_names[way], (unsigned long long)found);
                    return 1;
                }
            }
            write_median_ns = median(write_ns, rounds);
            if (way == WAY_NONE)
                plain_ns[i] = write_median_ns;
            printf("%-8s %8u %16.0f %12.1f\n", way_names[way], sizes[i],
                   way == WAY_NONE ? 0.0 : ((double)write_median_ns - (double)plain_ns[i]) / sizes[i],
                   (double)median(ask_ns, rounds) / 1000);
        }
        guest_close(&guest);
    }
    return 0;
}
