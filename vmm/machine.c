/* The machine's set-up: RAM, vCPU, devices, and how it boots. What happens at each exit is in machine_path.c. */
#include "vmm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/report.h"

#define NET_PCI_SLOT 1
#define NET_IO_PORT 0xC000
#define DISK_PCI_SLOT 2
#define DISK_IO_PORT 0xC080

static void console_out(void *ctx, uint8_t byte)
{
    struct machine *machine = ctx;

    machine->output.console(machine->output.ctx, byte);
}

static int open_memory(struct guest_memory *memory, uint64_t bytes)
{
    int fd;

    if (bytes < 64 << 20 || bytes > UINT64_C(3) << 30 || bytes % (2 << 20) != 0) {
        report_error("guest memory of %llu bytes: give 64 MiB to 3072 MiB in steps of 2 MiB (--memory 256)",
                     (unsigned long long)bytes);
        return -EINVAL;
    }
    fd = memfd_create("guest memory", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        memory->base = MAP_FAILED;
    else
        memory->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (memory->base == MAP_FAILED) {
        int error = errno;
        memory->base = NULL;
        if (fd >= 0)
            close(fd);
        report_error("%llu MiB of guest memory cannot be had: %s", (unsigned long long)(bytes >> 20), strerror(error));
        return -error;
    }
    close(fd);
    memory->bytes = bytes;
    memory->dirty = calloc((bytes / GUEST_PAGE_BYTES + 63) / 64, sizeof(uint64_t));
    return memory->dirty != NULL ? 0 : -ENOMEM;
}

int machine_open(struct machine *machine, const struct machine_options *options, const struct machine_output *output)
{
    struct virtio_net_cable cable = { .ctx = output->ctx, .transmit = output->frame, .filter = output->filter };
    int rc;

    memset(machine, 0, sizeof(*machine));
    machine->vcpu = (struct vcpu){ .kvm_fd = -1, .vm_fd = -1, .fd = -1 };
    machine->output = *output;
    rc = open_memory(&machine->memory, options->memory_bytes);
    if (rc == 0)
        rc = vcpu_open(&machine->vcpu, &machine->memory, options->log_dirty);
    if (rc < 0)
        goto fail;
    pic_init(&machine->pic);
    pit_init(&machine->pit, 0);
    uart_init(&machine->uart, &machine->pic, console_out, machine);
    pci_init(&machine->pci, &machine->pic);
    rc = virtio_net_init(&machine->net, &machine->pci, NET_PCI_SLOT, NET_IO_PORT, options->mac, options->mtu,
                         &machine->memory, &cable);
    machine->cards[NET_PCI_SLOT] = &machine->net.card;
    if (rc == 0 && options->disk.sectors != 0) {
        struct virtio_blk_file file = {
            .ctx = output->ctx, .data = output->disk_data, .submit = output->disk_submit
        };

        rc = virtio_blk_init(&machine->blk, &machine->pci, DISK_PCI_SLOT, DISK_IO_PORT, options->disk.sectors,
                             options->disk.readonly, &machine->memory, &file);
        machine->cards[DISK_PCI_SLOT] = &machine->blk.card;
    }
    if (rc < 0)
        goto fail;
    return 0;
fail:
    machine_close(machine);
    return rc;
}

void machine_close(struct machine *machine)
{
    vcpu_close(&machine->vcpu);
    if (machine->memory.base != NULL)
        munmap(machine->memory.base, machine->memory.bytes);
    free(machine->memory.dirty);
    machine->memory = (struct guest_memory){ 0 };
}

int machine_boot(struct machine *machine, const struct machine_options *options, const struct event_start *start)
{
    struct boot_options boot = {
        .kernel_path = options->kernel_path,
        .initrd_path = options->initrd_path,
        .command_line = options->command_line,
    };
    struct boot_info info;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    int rc;

    memcpy(boot.rng_seed, start->rng_seed, sizeof(boot.rng_seed));
    rc = boot_load(&machine->memory, &boot, &info);
    if (rc < 0)
        return rc;
    rc = vcpu_get_sregs(&machine->vcpu, &sregs);
    if (rc < 0)
        return rc;
    boot_set_registers(&info, &sregs, &regs);
    machine->time_ns = start->time_ns;
    rtc_init(&machine->rtc, start->unix_seconds, start->time_ns);
    return vcpu_set_boot_state(&machine->vcpu, &regs, &sregs);
}

static int digest_file(XXH3_state_t *state, const char *what, const char *path)
{
    static uint8_t buffer[1 << 16];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (fd < 0) {
        int error = errno;
        report_error("the guest's %s '%s' does not open: %s", what, path, strerror(error));
        return -error;
    }
    while ((got = read(fd, buffer, sizeof(buffer))) > 0)
        XXH3_128bits_update(state, buffer, (size_t)got);
    if (got < 0) {
        int error = errno;
        report_error("the guest's %s '%s' cannot be read: %s", what, path, strerror(error));
        close(fd);
        return -error;
    }
    close(fd);
    return 0;
}

int machine_configuration_digest(const struct machine_options *options, uint8_t digest[16])
{
    XXH3_state_t state;
    XXH128_canonical_t canonical;
    uint64_t card[] = { VIRTIO_NET_FEATURES, options->mtu };
    int rc;

    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, &options->memory_bytes, sizeof(options->memory_bytes));
    XXH3_128bits_update(&state, options->mac, sizeof(options->mac));
    XXH3_128bits_update(&state, card, sizeof(card));
    XXH3_128bits_update(&state, options->command_line, strlen(options->command_line) + 1);
    if (options->disk.sectors != 0)
        XXH3_128bits_update(&state, &options->disk, sizeof(options->disk));
    rc = digest_file(&state, "kernel", options->kernel_path);
    if (rc == 0 && options->initrd_path != NULL)
        rc = digest_file(&state, "initrd", options->initrd_path);
    if (rc < 0)
        return rc;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    memcpy(digest, canonical.digest, 16);
    return 0;
}
