/* What a device checks its state with that came from another host, before it believes any of it. */
#ifndef FTVMM_VMM_STATE_CHECK_H
#define FTVMM_VMM_STATE_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* A bool that holds neither 0 nor 1 must not even be looked at as one. */
#define STATE_BOOL_FITS(flag) state_byte_is_bool(&(flag))
static inline bool state_byte_is_bool(const void *flag)
{
    uint8_t byte;

    memcpy(&byte, flag, sizeof(byte));
    return byte <= 1;
}

#endif
