/*
 * A witness in a process of its own, without RDMA: the table and the conversation are ftwitness's; connections are TCP on
 * loopback, and a thread per connection plays the NIC, which swaps without the table's lock. With it comes the hosts'
 * end of such connections, in place of witness/wire_verbs.c.
 */
#ifndef FTVMM_TESTS_FAKE_WITNESS_H
#define FTVMM_TESTS_FAKE_WITNESS_H

#include <stdatomic.h>
#include <sys/types.h>

struct fake_manners { /* the test's to change; shared with the witness */
    _Atomic int lose_swap_answers; /* so many of the next swaps happen, and the connection breaks before they answer */
    atomic_bool silent;            /* nothing is answered, and nothing done */
    _Atomic unsigned spoil_byte;   /* bit 0 of this byte (from 1 on) of each answer is turned round; 0: none */
    _Atomic unsigned swaps, requests;
};

struct fake_witness {
    char directory[64]; /* has keys/ and state/ */
    int port;           /* kept when it is started again */
    pid_t pid;
    struct fake_manners *manners;
};

/* Makes the directory, with a key for each of `vms` (NULL at the end), and starts. */
void fake_witness_open(struct fake_witness *witness, const char *const *vms);
void fake_witness_start(struct fake_witness *witness, unsigned vms);
/* As a power loss would. */
void fake_witness_kill(struct fake_witness *witness);
/* Kills it, and removes all. */
void fake_witness_close(struct fake_witness *witness);

/* A key for this VM: keys/VM, and DIRECTORY/auth-VM/key as hosts have it. */
void fake_witness_key(struct fake_witness *witness, const char *vm);

#endif
