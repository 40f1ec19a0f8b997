/* What a device checks its state with that came from another host, before it believes any of it. */
#ifndef FTVMM_VMM_STATE_CHECK_H
#define FTVMM_VMM_STATE_CHECK_H

#include <stdint.h>

/* A bool that holds neither 0 nor 1 must not even be looked at as one. */
#define STATE_BOOL_FITS(flag) (*(const uint8_t *)&(flag) <= 1)

#endif
