/* Names, lists and looks into the files of a kept log; see kept_files.h. */
#include "vmm/kept_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/report.h"
#include "channel/channel.h"
#include "vmm/event.h"

int kept_file_path(const char *directory, const struct kept_file *file, char path[KEPT_PATH_BYTES])
{
    int bytes = file->whole ? snprintf(path, KEPT_PATH_BYTES, "%s/%06u-%06u-at-%llu.log", directory, file->run, file->part,
                                       (unsigned long long)file->position)
                            : snprintf(path, KEPT_PATH_BYTES, "%s/%06u-%06u.new", directory, file->run, file->part);

    return bytes < (int)KEPT_PATH_BYTES ? 0 : -ENAMETOOLONG;
}

static bool parse_name(const char *name, struct kept_file *file)
{
    unsigned long long position = 0;
    int end = 0;

    *file = (struct kept_file){ 0 };
    if (sscanf(name, "%6u-%6u-at-%llu.log%n", &file->run, &file->part, &position, &end) == 3 && end > 0) {
        file->position = position;
        file->whole = true;
    } else if (sscanf(name, "%6u-%6u.new%n", &file->run, &file->part, &end) != 2 || end == 0) {
        return false;
    }
    return name[end] == '\0';
}

static int by_run_and_part(const void *a, const void *b)
{
    const struct kept_file *left = a, *right = b;

    if (left->run != right->run)
        return left->run < right->run ? -1 : 1;
    return left->part < right->part ? -1 : left->part > right->part;
}

int kept_files_list(const char *directory, struct kept_file **files, size_t *count)
{
    DIR *stream = opendir(directory);
    int error = errno;
    struct dirent *entry;

    *files = NULL;
    *count = 0;
    if (stream == NULL) {
        report_error("the directory '%s' of a kept log does not open: %s", directory, strerror(error));
        return -error;
    }
    while ((entry = readdir(stream)) != NULL) {
        struct kept_file file, *more;

        if (!parse_name(entry->d_name, &file))
            continue;
        more = realloc(*files, (*count + 1) * sizeof(file));
        if (more == NULL) {
            free(*files);
            *files = NULL;
            closedir(stream);
            return -ENOMEM;
        }
        *files = more;
        (*files)[(*count)++] = file;
    }
    closedir(stream);
    if (*count != 0)
        qsort(*files, *count, sizeof(**files), by_run_and_part);
    return 0;
}

bool kept_files_last_run(const struct kept_file *files, size_t count, size_t *first)
{
    while (count > 0 && !files[count - 1].whole)
        count--;
    if (count == 0)
        return false;
    for (*first = count - 1; *first > 0 && files[*first - 1].run == files[count - 1].run;)
        --*first;
    return true;
}

static int find_part(const char *directory, uint64_t until, char found[KEPT_PATH_BYTES])
{
    const struct kept_file *best = NULL;
    struct kept_file *files;
    size_t count, first;
    int rc = kept_files_list(directory, &files, &count);

    if (rc < 0)
        return rc;
    if (!kept_files_last_run(files, count, &first)) {
        report_error("the directory '%s' has no part of a kept log that is whole (names like 000001-000001-at-0.log)",
                     directory);
        free(files);
        return -ENOENT;
    }
    for (size_t i = first; i < count; i++)
        if (files[i].whole && (until == 0 || files[i].position <= until))
            best = &files[i];
    if (best == NULL) {
        report_error("the log kept in '%s' does not go back to position %llu: its oldest part begins at %llu", directory,
                     (unsigned long long)until, (unsigned long long)files[first].position);
        rc = -ERANGE;
    } else {
        rc = kept_file_path(directory, best, found);
        report_info("replaying '%s'", found);
    }
    free(files);
    return rc;
}

/* Whether the log at `path` says at its start that it was kept. What is wrong with it is left to who opens it next. */
static bool is_kept(const char *path)
{
    struct channel_record record;
    struct channel *channel;
    bool kept;

    if (channel_open_log(&channel, path) < 0)
        return false;
    kept = channel_next(channel, &record) == 0 && event_check(&record) == 0 && record.kind == EVENT_START &&
           ((const struct event_start *)record.payload)->kept;
    channel_close(channel);
    return kept;
}

int kept_files_find(const char *path, uint64_t until, char found[KEPT_PATH_BYTES], bool *kept)
{
    struct stat status;
    int rc = 0;

    *kept = false;
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
        rc = find_part(path, until, found);
    else if (snprintf(found, KEPT_PATH_BYTES, "%s", path) >= (int)KEPT_PATH_BYTES)
        rc = -ENAMETOOLONG;
    else if (stat(path, &status) < 0 || !S_ISREG(status.st_mode))
        return 0; /* the channel says what is wrong */
    if (rc == 0)
        *kept = is_kept(found);
    return rc;
}
