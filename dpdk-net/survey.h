/* Which kinds of network port this host could open, without opening one. Cold. */
#ifndef FTVMM_DPDK_NET_SURVEY_H
#define FTVMM_DPDK_NET_SURVEY_H

#include <stdbool.h>

/* One kind of port: usable or not, what was found, and what mends it ("" if it is usable). */
typedef void survey_say(bool good, const char *what, const char *found, const char *remedy);

/* Tells `say` of each kind in turn. Changes nothing, and needs no privilege: what is not allowed is told as that. */
void net_survey(survey_say *say);

#endif
