/* What the guest's CPUID shows. */
#ifndef FTVMM_VMM_CPUID_H
#define FTVMM_VMM_CPUID_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

/* Reduces KVM_GET_SUPPORTED_CPUID's table, in place, to what a deterministic guest may see. */
void cpuid_filter(struct kvm_cpuid2 *table);

/* Is the vendor string "GenuineIntel"? */
bool cpuid_is_intel(const struct kvm_cpuid2 *table);

/* 0 if both tables are the same; else -EPROTO after naming the first leaf that differs. */
int cpuid_compare(const struct kvm_cpuid2 *ours, const struct kvm_cpuid_entry2 *theirs, uint32_t count);

#endif
