/* DPDK's environment (EAL): started once a process, and DPDK's own words kept for our sentences. Cold. */
#ifndef FTVMM_DPDK_NET_EAL_H
#define FTVMM_DPDK_NET_EAL_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Starts EAL unless it runs already. `pci_address` is the only PCI device it may touch, or NULL: none.
 * The calling thread's CPU affinity is as before on return. -EBUSY: EAL runs and was started without this
 * PCI device; -ENOMEM, -EACCES, ...: each reported in words.
 */
int eal_start(const char *pci_address);

/* The calling thread gets a number of EAL's, and with it the mempools' caches. Without one (there are 128) it works,
 * too. */
void eal_thread_begin(void);
void eal_thread_end(void);

/* DPDK's first complaint since eal_words_clear, or "" . */
void eal_words_clear(void);
const char *eal_words(void);

#endif
