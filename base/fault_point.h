/*
 * Steps of a failover, a switch-over or a transfer at which a host may die. fault_point does nothing; the ftvmm that
 * tests/unit/lockstep/test_faults.c runs is linked with another one, which ends or freezes the process where told.
 */
#ifndef FTVMM_BASE_FAULT_POINT_H
#define FTVMM_BASE_FAULT_POINT_H

/* `step` has just been done. Any thread; not on a path that is taken for each record. */
void fault_point(const char *step);

#endif
