/* The vCPU's set-up: KVM, its capabilities, CPUID, the MSR filter. The running of it is in vcpu_path.c. */
#include "vmm/vcpu.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/cpuid.h"
#include "vmm/event.h"

/* The signal that makes a vCPU leave the guest. */
#define KICK_SIGNAL SIGUSR1

static __thread struct kvm_run *kicked_run;

/* Setting immediate_exit inside the handler closes the race between the kick and entering the guest. */
static void kick_handler(int signal_number)
{
    (void)signal_number;
    if (kicked_run != NULL)
        kicked_run->immediate_exit = 1;
}

static int open_kvm(struct vcpu *vcpu)
{
    vcpu->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vcpu->kvm_fd >= 0)
        return 0;
    int error = errno;
    if (error == ENOENT)
        report_error("no /dev/kvm: this kernel has no KVM, or its module is not loaded; try 'modprobe kvm_amd' or "
                     "'modprobe kvm_intel', and switch virtualization on in the firmware");
    else if (error == EACCES || error == EPERM)
        report_error("/dev/kvm may not be opened: %s; run as root or add the user to the group kvm", strerror(error));
    else
        report_error("/dev/kvm does not open: %s", strerror(error));
    return -error;
}

static const struct {
    int capability;
    const char *name;
} needed_capabilities[] = {
    { KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY" },
    { KVM_CAP_SYNC_REGS, "KVM_CAP_SYNC_REGS" },
    { KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT" },
    { KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR" },
    { KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER" },
    { KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG" },
    { KVM_CAP_XSAVE, "KVM_CAP_XSAVE" },
};

static int check_capabilities(const struct vcpu *vcpu)
{
    int version = ioctl(vcpu->kvm_fd, KVM_GET_API_VERSION, 0);

    if (version != KVM_API_VERSION) {
        report_error("/dev/kvm speaks API version %d, this program %d", version, KVM_API_VERSION);
        return -ENOTSUP;
    }
    for (size_t i = 0; i < sizeof(needed_capabilities) / sizeof(needed_capabilities[0]); i++)
        if (ioctl(vcpu->kvm_fd, KVM_CHECK_EXTENSION, needed_capabilities[i].capability) <= 0) {
            report_error("this KVM lacks %s; Linux 5.10 or newer with kvm_amd or kvm_intel has it",
                         needed_capabilities[i].name);
            return -ENOTSUP;
        }
    return 0;
}

/* MSRs that the guest may use without an exit: they are plain state, saved and loaded with the vCPU. All
 * others come to us (machine_path.c), where a value is the same on both hosts or the access is refused. */
static int set_msr_filter(const struct vcpu *vcpu)
{
    static uint8_t sysenter = 0x07;      /* 0x174-0x176 */
    static uint8_t pat = 0x01;           /* 0x277 */
    static uint8_t syscall_bits = 0x1f;  /* 0xC0000080-84 */
    static uint8_t base_bits = 0x07;     /* 0xC0000100-102 */
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args = { KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL },
    };
    const uint32_t both = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    struct kvm_msr_filter filter = {
        .flags = KVM_MSR_FILTER_DEFAULT_DENY,
        .ranges = {
            { .flags = both, .nmsrs = 3, .base = 0x174, .bitmap = &sysenter },
            { .flags = both, .nmsrs = 1, .base = 0x277, .bitmap = &pat },
            { .flags = both, .nmsrs = 5, .base = 0xC0000080, .bitmap = &syscall_bits },
            { .flags = both, .nmsrs = 3, .base = 0xC0000100, .bitmap = &base_bits },
        },
    };

    if (ioctl(vcpu->vm_fd, KVM_ENABLE_CAP, &cap) < 0 || ioctl(vcpu->vm_fd, KVM_X86_SET_MSR_FILTER, &filter) < 0) {
        int error = errno;
        report_error("KVM refuses the MSR filter: %s", strerror(error));
        return -error;
    }
    return 0;
}

static int set_cpuid(struct vcpu *vcpu)
{
    const uint32_t room = 256;

    vcpu->cpuid = calloc(1, sizeof(*vcpu->cpuid) + room * sizeof(vcpu->cpuid->entries[0]));
    if (vcpu->cpuid == NULL)
        return -ENOMEM;
    vcpu->cpuid->nent = room;
    if (ioctl(vcpu->kvm_fd, KVM_GET_SUPPORTED_CPUID, vcpu->cpuid) < 0) {
        int error = errno;
        report_error("KVM does not tell its CPUID: %s", strerror(error));
        return -error;
    }
    cpuid_filter(vcpu->cpuid);
    /* AMD has no SYSENTER in long mode, and KVM keeps only the low half of its MSRs when it loads them (svm.c,
     * svm_set_msr), though not when the guest writes them. */
    vcpu->sysenter_mask = cpuid_is_intel(vcpu->cpuid) ? UINT64_MAX : UINT32_MAX;
    if (vcpu->cpuid->nent > EVENT_CPUID_MAX)
        report_bug("%u CPUID leaves remain after filtering", vcpu->cpuid->nent);
    if (ioctl(vcpu->fd, KVM_SET_CPUID2, vcpu->cpuid) < 0) {
        int error = errno;
        report_error("KVM refuses the guest's CPUID: %s", strerror(error));
        return -error;
    }
    return 0;
}

static int set_memory(const struct vcpu *vcpu, bool log_dirty)
{
    struct kvm_userspace_memory_region region = {
        .slot = 0,
        .flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .guest_phys_addr = 0,
        .memory_size = vcpu->memory->bytes,
        .userspace_addr = (uint64_t)(uintptr_t)vcpu->memory->base,
    };

    if (ioctl(vcpu->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0) {
        int error = errno;
        report_error("KVM refuses %llu MiB of guest memory: %s", (unsigned long long)(region.memory_size >> 20),
                     strerror(error));
        return -error;
    }
    return 0;
}

int vcpu_open(struct vcpu *vcpu, const struct guest_memory *memory, bool log_dirty)
{
    int rc;

    *vcpu = (struct vcpu){ .kvm_fd = -1, .vm_fd = -1, .fd = -1, .memory = memory };
    rc = open_kvm(vcpu);
    if (rc == 0)
        rc = check_capabilities(vcpu);
    if (rc < 0)
        goto fail;
    vcpu->vm_fd = ioctl(vcpu->kvm_fd, KVM_CREATE_VM, 0);
    if (vcpu->vm_fd < 0) {
        rc = -errno;
        report_error("KVM makes no virtual machine: %s", strerror(-rc));
        goto fail;
    }
    /* Intel needs a place for its real-mode TSS; harmless elsewhere. Below 4 GiB, above all RAM. */
    (void)ioctl(vcpu->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000ul);
    rc = set_msr_filter(vcpu);
    if (rc == 0)
        rc = set_memory(vcpu, log_dirty);
    if (rc < 0)
        goto fail;
    vcpu->fd = ioctl(vcpu->vm_fd, KVM_CREATE_VCPU, 0);
    if (vcpu->fd < 0) {
        rc = -errno;
        report_error("KVM makes no vCPU: %s", strerror(-rc));
        goto fail;
    }
    vcpu->run_bytes = (size_t)ioctl(vcpu->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    vcpu->run = mmap(NULL, vcpu->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED) {
        rc = -errno;
        vcpu->run = NULL;
        report_error("the vCPU's shared page cannot be mapped: %s", strerror(-rc));
        goto fail;
    }
    rc = set_cpuid(vcpu);
    if (rc < 0)
        goto fail;
    vcpu->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    return 0;
fail:
    vcpu_close(vcpu);
    return rc;
}

void vcpu_close(struct vcpu *vcpu)
{
    if (vcpu->run != NULL)
        munmap(vcpu->run, vcpu->run_bytes);
    free(vcpu->cpuid);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    if (vcpu->vm_fd >= 0)
        close(vcpu->vm_fd);
    if (vcpu->kvm_fd >= 0)
        close(vcpu->kvm_fd);
    *vcpu = (struct vcpu){ .kvm_fd = -1, .vm_fd = -1, .fd = -1 };
}

const struct kvm_cpuid2 *vcpu_cpuid(const struct vcpu *vcpu)
{
    return vcpu->cpuid;
}

int vcpu_cpuid_compare(const struct vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count)
{
    return cpuid_compare(vcpu->cpuid, entries, count);
}

int vcpu_enter_thread(struct vcpu *vcpu)
{
    struct sigaction action = { .sa_handler = kick_handler };

    sigemptyset(&action.sa_mask);
    if (sigaction(KICK_SIGNAL, &action, NULL) < 0)
        return -errno;
    kicked_run = vcpu->run;
    vcpu->thread = pthread_self();
    return 0;
}

void vcpu_leave_thread(void)
{
    kicked_run = NULL;
}

void vcpu_kick(struct vcpu *vcpu)
{
    pthread_kill(vcpu->thread, KICK_SIGNAL);
}

int vcpu_kick_signal(void)
{
    return KICK_SIGNAL;
}

int vcpu_set_boot_state(struct vcpu *vcpu, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
    if (ioctl(vcpu->fd, KVM_SET_SREGS, sregs) < 0 || ioctl(vcpu->fd, KVM_SET_REGS, regs) < 0) {
        int error = errno;
        report_error("KVM refuses the boot registers: %s", strerror(error));
        return -error;
    }
    return 0;
}

int vcpu_get_sregs(struct vcpu *vcpu, struct kvm_sregs *sregs)
{
    return ioctl(vcpu->fd, KVM_GET_SREGS, sregs) < 0 ? -errno : 0;
}

int vcpu_set_sregs(struct vcpu *vcpu, const struct kvm_sregs *sregs)
{
    return ioctl(vcpu->fd, KVM_SET_SREGS, sregs) < 0 ? -errno : 0;
}

int vcpu_dirty_pages(struct vcpu *vcpu, uint64_t *bitmap)
{
    uint64_t words = (vcpu->memory->bytes / GUEST_PAGE_BYTES + 63) / 64;
    static __thread uint64_t *fresh;
    static __thread uint64_t fresh_words;

    if (fresh_words < words) {
        free(fresh);
        fresh = calloc(words, sizeof(*fresh));
        fresh_words = fresh != NULL ? words : 0;
        if (fresh == NULL)
            return -ENOMEM;
    }
    struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = fresh };

    if (ioctl(vcpu->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0) {
        int error = errno;
        report_error("KVM does not tell which pages were written: %s", strerror(error));
        return -error;
    }
    for (uint64_t i = 0; i < words; i++)
        bitmap[i] |= fresh[i];
    return 0;
}
