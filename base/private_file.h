/* Opens a file that holds a secret, if nobody but us and root can read or change it. */
#ifndef FTVMM_BASE_PRIVATE_FILE_H
#define FTVMM_BASE_PRIVATE_FILE_H

#include <stddef.h>

/*
 * `what` names the file's use in the sentences ("key"); `remedy` ends the sentence when the file is missing or of the
 * wrong size. The file must be regular, ours or root's, closed to all others, and have least_bytes to most_bytes.
 * Returns a descriptor to read from, or -errno, said in words. Any thread.
 */
int private_file_open(const char *path, const char *what, size_t least_bytes, size_t most_bytes, const char *remedy);

#endif
