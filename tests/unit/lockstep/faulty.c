/*
 * The fault_point (base/fault_point.h) of an ftvmm that dies on purpose: FTVMM_FAULT=STEP:kill ends the process at that
 * step, FTVMM_FAULT=STEP:stop stops it as SIGSTOP does, once; FTVMM_FAULT=STEP:hold stops the thread alone that comes there,
 * once, until there is a file FTVMM_FAULT_GO, or for a minute. Linked before the library that has the empty one.
 */
#include "base/fault_point.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void hold(const char *step)
{
    const char *go = getenv("FTVMM_FAULT_GO");

    fprintf(stderr, "fault: held at %s\n", step);
    for (unsigned i = 0; i < 6000 && (go == NULL || access(go, F_OK) != 0); i++)
        usleep(10000);
}

void fault_point(const char *step)
{
    static _Atomic bool done;
    const char *fault = getenv("FTVMM_FAULT");
    size_t length = strlen(step);

    if (fault == NULL || strncmp(fault, step, length) != 0 || fault[length] != ':' || atomic_exchange(&done, true))
        return;
    if (strcmp(fault + length + 1, "hold") == 0)
        hold(step);
    else /* to this thread, which takes it before it goes on: one to the process could be left to another, which sleeps */
        raise(strcmp(fault + length + 1, "kill") == 0 ? SIGKILL : SIGSTOP);
}
