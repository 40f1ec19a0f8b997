/*
 * Hosts of a test (real_hosts.h) whose guest works a disk (disk_guest.c): their images, and whether these hold what the
 * guest was told. What is wrong fails the test.
 */
#ifndef FTVMM_TESTS_LOCKSTEP_DISK_HOSTS_H
#define FTVMM_TESTS_LOCKSTEP_DISK_HOSTS_H

#include <stdbool.h>

#include "tests/unit/lockstep/real_hosts.h"

int disk_hosts_open(const char *ftvmm_path, const char *ftctl_path);

/* The next host_start or host_protect has image `number` for a disk; it is made, full of holes, if there is none. */
void disk_hosts_image(unsigned number, bool shared);
/* From now on the host's guest is another one: it asks other things of its disk. */
void disk_hosts_divert(const struct host *host, unsigned *seed);
/* Bytes all over the image with the host's number are changed behind its back, some that the guest reads, and some that it
 * never does; and with `divert` the guest, too. All at one moment of the guest. */
void disk_hosts_spoil(const struct host *host, bool divert, unsigned *seed);
/* Bytes of the image are cut off its end, which the guest does not use. */
void disk_hosts_cut(unsigned number);

/* The number behind the last line with this letter on the host's console; 0: there is none. Fails if the guest has found its
 * disk to be wrong. */
uint64_t disk_hosts_told(const struct host *host, char letter);
void disk_hosts_await(const struct host *host, char letter, uint64_t least);

/* The image has every write up to number `told`, or a later one in its place, and nothing that was never written. */
void disk_hosts_check(unsigned number, uint64_t told);
void disk_hosts_check_equal(unsigned one, unsigned other);

#endif
