/*
 * What is saved of a difference between the two machines, by the backup that found it: a file of JSON in the directory of
 * --differences, with the sentence that said it, this machine's registers and devices, the last records, and, when the
 * primary has sent its RAM anew, which pages were not the same. docs/recordings.md says how to read it.
 */
#ifndef FTVMM_VMM_DIFFERENCE_H
#define FTVMM_VMM_DIFFERENCE_H

#include "channel/channel.h"

struct lockstep;
struct difference;

/* Begins a report, with the machine as it stands; the vCPU is out of the guest. NULL: no memory, and none will be made. */
struct difference *difference_open(struct lockstep *ls);
/* The primary's registers at a position: VERIFY. Those of positions that this machine has not come to are of no use. */
void difference_registers(struct difference *difference, const struct channel_record *record);
/* Pages that the primary has changed since: SEGMENT_PAGES of a transfer, which passed event_check. Accepts NULL, as all. */
void difference_excuse(struct difference *difference, const struct channel_record *record);
/* Before, and after, the pages of a PAGES record take the place of ours. */
void difference_before(struct difference *difference, const struct channel_record *record);
void difference_after(struct difference *difference, const struct channel_record *record);
/* Writes the file, says where it is, and frees the report. `outcome`: 0 if the machine is whole again. */
void difference_close(struct difference *difference, int outcome);

#endif
