/* The trial of counter_grade.h by a guest of a few bytes on /dev/kvm. */
#include "vmm/counter_grade.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/vcpu_place.h"

#define MEMORY_BYTES (UINT64_C(2) << 20)
#define CODE_GPA 0x1000u

/* 32-bit code: as many branches as ECX says, then an exit. */
static const uint8_t code[] = {
    0x49,       /* dec %ecx */
    0x75, 0xFD, /* jnz to it */
    0xE6, 0x80, /* out %al, $0x80 */
    0xEB, 0xFC, /* and again: nobody waits for ever */
};

struct trial {
    struct grade_guest guest;
    struct guest_memory memory;
    struct vcpu vcpu;
};

static int trial_begin(void *ctx, uint64_t branches)
{
    struct trial *trial = (struct trial *)((char *)ctx - offsetof(struct trial, vcpu));
    const struct kvm_regs regs = { .rip = CODE_GPA, .rcx = branches, .rflags = 2 };
    const struct kvm_segment flat = { .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
                                      .selector = 16 };
    struct kvm_sregs sregs;
    int rc = vcpu_complete(&trial->vcpu); /* of the round before */

    trial->vcpu.exit_waits = false;
    if (rc == 0)
        rc = vcpu_get_sregs(&trial->vcpu, &sregs);
    if (rc < 0)
        return rc;
    sregs.cr0 |= 1;
    sregs.cs = flat;
    sregs.cs.type = 0xb;
    sregs.cs.selector = 8;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat;
    rc = vcpu_set_boot_state(&trial->vcpu, &regs, &sregs);
    return rc < 0 ? rc : vcpu_complete(&trial->vcpu); /* the shared page shows the new registers */
}

int counter_grade_on_kvm(int (*open)(void *ctx, struct vcpu *vcpu, struct branch_counter **counter), void *ctx,
                         uint64_t branches_most, unsigned rounds, uint64_t seed, struct counter_grading *grading)
{
    struct trial trial = { .memory = { .bytes = MEMORY_BYTES } };
    struct branch_counter *counter = NULL;
    int rc;

    trial.memory.base = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (trial.memory.base == MAP_FAILED)
        return -ENOMEM;
    memcpy(trial.memory.base + CODE_GPA, code, sizeof(code));
    rc = vcpu_open(&trial.vcpu, &trial.memory, false);
    if (rc == 0) {
        rc = vcpu_enter_thread(&trial.vcpu);
        if (rc == 0)
            rc = open(ctx, &trial.vcpu, &counter);
        if (rc == 0)
            rc = counter->ops->start(counter);
        if (rc == 0) {
            trial.guest = (struct grade_guest){
                .place = vcpu_place_guest(&trial.vcpu, counter), .branches_most = branches_most, .begin = trial_begin
            };
            rc = counter_grade(&trial.guest, rounds, seed, grading);
        }
        if (counter != NULL)
            counter->ops->stop(counter);
        vcpu_leave_thread();
        vcpu_close(&trial.vcpu);
    }
    munmap(trial.memory.base, MEMORY_BYTES);
    return rc;
}
