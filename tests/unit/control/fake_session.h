/* A session without guest, channel or threads, for the control thread to look at. */
#ifndef FTVMM_TESTS_CONTROL_FAKE_SESSION_H
#define FTVMM_TESTS_CONTROL_FAKE_SESSION_H


#include "vmm/lockstep.h"

static inline struct lockstep *fake_session_open(enum lockstep_role role, bool opened)
{
    struct lockstep *ls = calloc(1, sizeof(*ls));

    ls->began_ns = clock_now_ns();
    ls->generation = 7;
    /* Asked whether it is there, and nothing else. */
    ls->arbiter = role == ROLE_ALONE ? NULL : (struct arbiter *)ls;
    COUNT_SET(ls->role, role);
    COUNT_SET(ls->opened, opened);
    COUNT_SET(ls->running, opened);
    COUNT_SET(ls->followed, opened);
    return ls;
}

static inline void fake_session_close(struct lockstep *ls)
{
    free(ls);
}

#endif
