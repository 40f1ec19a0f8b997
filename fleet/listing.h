/* The whole fleet, for people and for machines. */
#ifndef FTVMM_FLEET_LISTING_H
#define FTVMM_FLEET_LISTING_H

#include <stdbool.h>

#include "fleet/registry.h"

/* Prints all hosts and claims. 0; -errno, and `why`: nothing could be listed. A host whose values are none of ours is
 * listed with the reason. */
int listing_print(struct fleet *fleet, bool json, char why[FLEET_WHY_BYTES]);

#endif
