/*
 * The directory of a kept log (kept_log.h): its files' names, and which of them has a position.
 *
 * RUN-PART-at-POSITION.log: the backup's runs and the parts of each are numbered from 1; the part begins with the machine
 * as it stood at POSITION. RUN-PART.new: a part whose beginning is not whole.
 */
#ifndef FTVMM_VMM_KEPT_FILES_H
#define FTVMM_VMM_KEPT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEPT_PATH_BYTES 4096u

struct kept_file {
    unsigned run, part;
    uint64_t position;
    bool whole; /* else .new */
};

/* The file's path. -ENAMETOOLONG. */
int kept_file_path(const char *directory, const struct kept_file *file, char path[KEPT_PATH_BYTES]);
/* All of them, by run and part; free() *files. 0 or -errno, said in words. */
int kept_files_list(const char *directory, struct kept_file **files, size_t *count);
/* Those of the last run that has a whole part: files[*first] to the last one. False: there is none. */
bool kept_files_last_run(const struct kept_file *files, size_t count, size_t *first);

/*
 * What `ftvmm replay PATH` is to replay: the path itself, or, of a directory, the newest part that begins at or before
 * `until` (0: the newest). *kept: it is a part of a kept log, wherever it lies now. 0 or -errno, said in words.
 */
int kept_files_find(const char *path, uint64_t until, char found[KEPT_PATH_BYTES], bool *kept);

#endif
