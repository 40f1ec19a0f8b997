/* A vCPU as place.h wants a guest. */
#ifndef FTVMM_VMM_VCPU_PLACE_H
#define FTVMM_VMM_VCPU_PLACE_H

#include "vmm/place.h"
#include "vmm/vcpu.h"

/* Its ctx is the vCPU. vcpu_run_to_end must follow place_find. */
struct place_guest vcpu_place_guest(struct vcpu *vcpu, struct branch_counter *counter);

#endif
