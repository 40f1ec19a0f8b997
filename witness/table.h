/*
 * What a witness remembers: per VM the highest generation that was ever begun, which outlives it in a file, and the
 * words of the latest generations, which do not.
 *
 * A word is written here only while nobody may reach it; then the NICs of those who claim have it alone.
 *
 * After a restart nobody knows who had won what. Of each VM's highest generation the file names the pair and its
 * members: all processes that ever were given the place. When each of them has asked for it anew, which it does only
 * if it holds no verdict (and the connection in which it might have got one is gone), nobody had won, or will on the
 * strength of the lost word: a fresh one is given out. Until then, and of all older generations for ever, nothing is
 * decided.
 *
 * The file: "ftwitness 1", a line "VM GENERATION PAIR MEMBER..." per VM, and "end". It is replaced as a whole, and is
 * on disk before anybody learns of what is new in it.
 *
 * Threads: one at a time.
 */
#ifndef FTVMM_WITNESS_TABLE_H
#define FTVMM_WITNESS_TABLE_H

#include "witness/protocol.h"

#define WITNESS_VMS_MAX     1024u
#define WITNESS_GENERATIONS 256u /* of a VM that have a word; older ones are forgotten */

struct witness_table;

struct witness_place {
    uint64_t generation, pair;
    uint64_t *word;       /* the table's, until it is closed or `revoke` has named it */
    uint64_t free, claim; /* see protocol.h */
};

/* To be called before a word that was given out becomes another generation's: from its return on no NIC may reach it. */
typedef void witness_revoke(void *context, const uint64_t *word);

/* `directory`: of the state file; ours alone (locked). 0, or -errno, said in words: -EBUSY: another witness uses it;
 * -EBADMSG: the file is damaged. */
int witness_table_open(struct witness_table **out, const char *directory, unsigned vms, witness_revoke *revoke,
                       void *context);
/* Accepts NULL. No word may be reachable any more. */
void witness_table_close(struct witness_table *table);

/* The next unused generation of the VM, and its place. A refusal leaves *place alone. `vm` is a sound name. */
enum witness_status witness_table_begin(struct witness_table *table, const char *vm,
                                        const uint8_t member[WITNESS_MEMBER_BYTES], struct witness_place *place);
/* The place of a generation; of this `pair`, unless 0. Who asks vouches for holding no verdict on it. */
enum witness_status witness_table_find(struct witness_table *table, const char *vm, uint64_t generation, uint64_t pair,
                                       const uint8_t member[WITNESS_MEMBER_BYTES], struct witness_place *place);

#endif
