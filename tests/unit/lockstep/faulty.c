/*
 * The fault_point (base/fault_point.h) of an ftvmm that dies on purpose: FTVMM_FAULT=STEP:kill ends the process at that
 * step, FTVMM_FAULT=STEP:stop stops it as SIGSTOP does, once. Linked before the library that has the empty one.
 */
#include "base/fault_point.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

void fault_point(const char *step)
{
    static _Atomic bool done;
    const char *fault = getenv("FTVMM_FAULT");
    size_t length = strlen(step);

    if (fault == NULL || strncmp(fault, step, length) != 0 || fault[length] != ':' || atomic_exchange(&done, true))
        return;
    kill(getpid(), strcmp(fault + length + 1, "kill") == 0 ? SIGKILL : SIGSTOP);
    clock_sleep_ns(50 * NS_PER_MS); /* the signal may go to another thread: this one must not go on before it stands still */
}
