/* What a host knows of the VMs that it could be a backup of: DIR/VM.json, one file each. */
#ifndef FTVMM_FLEET_DESCRIPTION_H
#define FTVMM_FLEET_DESCRIPTION_H

#include "fleet/host.h"

#define DESCRIPTION_ARGUMENTS_MAX 128u

struct description {
    struct fleet_vm vm;
    char **arguments; /* for ftvmm backup; owned */
    unsigned argument_count;
};

struct descriptions {
    unsigned count;
    struct description of[FLEET_VMS_MAX];
    unsigned bad; /* files that are none; each was said in words, if `say` */
};

/*
 * Reads all. A directory or file that others could write to is not read, since what stands there is carried out as us.
 * 0, however many files are bad; -errno: the directory cannot be read, said in words if `say`.
 */
int descriptions_read(struct descriptions *out, const char *dir, bool say);
void descriptions_free(struct descriptions *descriptions);
const struct description *descriptions_find(const struct descriptions *descriptions, const char *vm);

#endif
