/* What the clocks are called; see guest_clock.h. */
#include "vmm/guest_clock.h"

#include <string.h>

static const char *const names[] = { "exits", "pmu", "step", "auto" };

const char *guest_clock_name(uint32_t clock)
{
    return clock < sizeof(names) / sizeof(names[0]) ? names[clock] : NULL;
}

bool guest_clock_named(const char *name, enum guest_clock *clock)
{
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(names[i], name) == 0) {
            *clock = (enum guest_clock)i;
            return true;
        }
    return false;
}
