/* The state of a machine that stands still, as JSON: what docs/recordings.md calls state.json. */
#ifndef FTVMM_VMM_MACHINE_JSON_H
#define FTVMM_VMM_MACHINE_JSON_H

#include <cjson/cJSON.h>

#include "vmm/machine.h"

/* An object with `machine`, `vcpu` and `devices`; two machines that a guest cannot tell apart give the same text.
 * The caller frees it. Only while the vCPU does not run. */
cJSON *machine_json(const struct machine *machine, const struct vcpu_state *vcpu);

/* Adds a 64-bit value as text, 0x and 16 digits: a JSON number does not hold all of them. */
void json_add_hex(cJSON *object, const char *name, uint64_t value);

#endif
