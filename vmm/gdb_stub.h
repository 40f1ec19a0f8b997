/*
 * gdb on a guest that is replayed (`ftvmm replay --gdb`). At a stop the machine thread itself serves gdb, until it is told
 * to go on; so nothing moves meanwhile. Looking leaves no trace: registers and memory are read, page tables are walked here
 * and not by KVM, and nothing is written.
 */
#ifndef FTVMM_VMM_GDB_STUB_H
#define FTVMM_VMM_GDB_STUB_H

#include <stdbool.h>
#include <stdint.h>

struct gdb_stub;
struct lockstep;

/* Listens at 127.0.0.1:PORT (any loopback address) or unix:PATH, a socket that nobody else can open. 0 or -errno, said
 * in words. */
int gdb_stub_open(struct gdb_stub **out, const char *address, uint64_t first_stop);
void gdb_stub_close(struct gdb_stub *stub);

/* ---- machine thread ---- */

/* The machine's position is done. True: go on. False: the operator, or gdb, ends the replay (ls->failure). */
bool gdb_stub_go_on(struct gdb_stub *stub, struct lockstep *ls);
/* The guest stands at a breakpoint, on its way to the next position. True and false as above. */
bool gdb_stub_break(struct gdb_stub *stub, struct lockstep *ls);
/* The replay has come to its end, whichever: a last look. */
void gdb_stub_end(struct gdb_stub *stub, struct lockstep *ls);

#endif
