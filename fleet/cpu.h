/* Which machine this is: its CPU, in words that are equal where CPUs are, and its kernel's boot id. */
#ifndef FTVMM_FLEET_CPU_H
#define FTVMM_FLEET_CPU_H

#include <stddef.h>

/* From /proc/cpuinfo's first processor: "vendor family-model-stepping", and the microcode's revision ("?" where none is
 * told). 0 or -errno, said in words. */
int fleet_cpu_read(char *cpu, size_t cpu_bytes, char *microcode, size_t microcode_bytes);
/* A name that no other running kernel has. 0 or -EIO, said in words. */
int fleet_boot_read(char *boot, size_t bytes);

#endif
