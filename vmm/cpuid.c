/*
 * The CPUID table the guest sees: what KVM supports here, less every feature whose use would not give the
 * same result twice, and less what differs between hosts for no good reason. docs/determinism.md says why
 * each bit goes.
 */
#include "vmm/cpuid.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/report.h"

#define BIT(n) (UINT32_C(1) << (n))

/* Leaf 1 ECX: PERFMON capabilities, MONITOR, VMX, PCID, x2APIC, TSC deadline, FMA, XSAVE family, AVX, F16C, RDRAND. */
#define LEAF1_ECX_HIDDEN                                                                                               \
    (BIT(3) | BIT(5) | BIT(12) | BIT(15) | BIT(17) | BIT(21) | BIT(24) | BIT(26) | BIT(27) | BIT(28) | BIT(29) |       \
     BIT(30))
/* Leaf 1 EDX: MCE, APIC, MTRR, MCA, DS, ACPI, HTT, TM. */
#define LEAF1_EDX_HIDDEN (BIT(7) | BIT(9) | BIT(12) | BIT(14) | BIT(21) | BIT(22) | BIT(28) | BIT(29))
/* Leaf 7 EBX that stays: FSGSBASE, BMI1, BMI2, ERMS, ADX, CLFLUSHOPT, CLWB, SHA. Gone with the rest: TSC_ADJUST,
 * TSX, AVX2 and AVX-512, SMEP, SMAP, INVPCID, cache monitoring, RDSEED, processor trace. */
#define LEAF7_EBX_SHOWN (BIT(0) | BIT(3) | BIT(8) | BIT(9) | BIT(19) | BIT(23) | BIT(24) | BIT(29))
/* 0x80000001 ECX that stays: LAHF, ABM, SSE4A, misaligned SSE, PREFETCHW. */
#define EXT1_ECX_SHOWN (BIT(0) | BIT(5) | BIT(6) | BIT(7) | BIT(8))
/* 0x80000001 EDX: RDTSCP and the mirrors of leaf 1. */
#define EXT1_EDX_HIDDEN (BIT(27) | BIT(7) | BIT(9) | BIT(12) | BIT(14))

#define LAST_BASIC_LEAF 7
#define LAST_EXTENDED_LEAF 0x80000008

/* Rewrites `e` for the guest; false: the leaf goes. */
static bool entry_filter(struct kvm_cpuid_entry2 *e)
{
    switch (e->function) {
    case 0:
        e->eax = LAST_BASIC_LEAF;
        return true;
    case 1:
        e->ecx &= ~LEAF1_ECX_HIDDEN;
        e->edx &= ~LEAF1_EDX_HIDDEN;
        e->ebx = (e->ebx & 0x0000ff00) | (1u << 16); /* APIC id 0, one logical CPU; CLFLUSH size stays */
        return true;
    case 7:
        if (e->index != 0)
            return false;
        e->eax = 0;
        e->ebx &= LEAF7_EBX_SHOWN;
        e->ecx = 0;
        e->edx = 0;
        return true;
    case 0x80000000:
        e->eax = LAST_EXTENDED_LEAF;
        return true;
    case 0x80000001:
        e->ecx &= EXT1_ECX_SHOWN;
        e->edx &= ~EXT1_EDX_HIDDEN;
        return true;
    case 0x80000007:
        e->eax = e->ebx = e->ecx = 0;
        e->edx = BIT(8); /* invariant TSC: ours is virtual time, and constant by construction */
        return true;
    case 0x80000008:
        e->ebx = e->ecx = e->edx = 0;
        return true;
    case 0x80000002:
    case 0x80000003:
    case 0x80000004:
    case 0x80000005:
    case 0x80000006:
        return true;
    default:
        return false;
    }
}

void cpuid_filter(struct kvm_cpuid2 *table)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < table->nent; i++)
        if (entry_filter(&table->entries[i]))
            table->entries[kept++] = table->entries[i];
    table->nent = kept;
}

bool cpuid_is_intel(const struct kvm_cpuid2 *table)
{
    for (uint32_t i = 0; i < table->nent; i++)
        if (table->entries[i].function == 0)
            return table->entries[i].ebx == 0x756e6547; /* "Genu" */
    return false;
}

int cpuid_compare(const struct kvm_cpuid2 *ours, const struct kvm_cpuid_entry2 *theirs, uint32_t count)
{
    for (uint32_t i = 0; i < ours->nent || i < count; i++) {
        const struct kvm_cpuid_entry2 *a = i < ours->nent ? &ours->entries[i] : NULL;
        const struct kvm_cpuid_entry2 *b = i < count ? &theirs[i] : NULL;

        if (a && b && memcmp(a, b, sizeof(*a)) == 0)
            continue;
        report_error("the two hosts' CPUs differ: CPUID leaf 0x%x is %08x %08x %08x %08x here and %08x %08x %08x %08x "
                     "on the primary; pair hosts of one CPU model and one microcode and kernel version",
                     a ? a->function : b->function, a ? a->eax : 0, a ? a->ebx : 0, a ? a->ecx : 0, a ? a->edx : 0,
                     b ? b->eax : 0, b ? b->ebx : 0, b ? b->ecx : 0, b ? b->edx : 0);
        return -EPROTO;
    }
    return 0;
}
