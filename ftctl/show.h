/* Answers of ftvmm, as text for people, on standard output. What an answer lacks is left out. */
#ifndef FTVMM_FTCTL_SHOW_H
#define FTVMM_FTCTL_SHOW_H

#include <cjson/cJSON.h>

void show_status(const cJSON *status);
void show_event(const cJSON *event);
/* Accepts NULL. */
void show_handover(const cJSON *handover);

#endif
