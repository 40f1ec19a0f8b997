/* Distributes the dirty log to those who ask for it; see dirty.h. */
#include "vmm/dirty.h"

#include <errno.h>
#include <stdlib.h>

#include "vmm/lockstep.h"

int dirty_collect(struct lockstep *ls)
{
    struct guest_memory *memory = &ls->machine.memory;
    uint64_t words = (memory->bytes / GUEST_PAGE_BYTES + 63) / 64;
    uint64_t *written = calloc(words, sizeof(*written));
    int rc;

    if (written == NULL)
        return -ENOMEM;
    rc = vcpu_dirty_pages(&ls->machine.vcpu, written);
    for (uint64_t i = 0; rc == 0 && i < words; i++) {
        if (ls->unsent_pages != NULL)
            ls->unsent_pages[i] |= written[i]; /* what the devices wrote, the backup's devices wrote too */
        if (ls->verify != NULL)
            ls->verify->written_pages[i] |= written[i] | memory->dirty[i];
        if (ls->transfer_pages != NULL)
            ls->transfer_pages[i] |= written[i] | memory->dirty[i];
        if (ls->verify != NULL || ls->transfer_pages != NULL)
            memory->dirty[i] = 0;
    }
    free(written);
    return rc;
}
