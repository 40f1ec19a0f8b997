/* Runs a fuzz target once with each file named, and each file of the directories named; no fuzzer needed. */
#include "fuzz.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

static unsigned inputs;

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat status;
    uint8_t *data;
    size_t bytes;

    if (file == NULL || fstat(fileno(file), &status) != 0) {
        fprintf(stderr, "%s: cannot be read\n", path);
        return 1;
    }
    /* Exactly as much memory as there are bytes: sanitizers see a read beyond them. */
    data = malloc(status.st_size > 0 ? (size_t)status.st_size : 1);
    bytes = fread(data, 1, (size_t)status.st_size, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, bytes);
    free(data);
    inputs++;
    return 0;
}

static int not_hidden(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int run_path(const char *path)
{
    struct dirent **entries;
    struct stat status;
    int count, failed = 0;

    if (stat(path, &status) != 0 || !S_ISDIR(status.st_mode))
        return run_file(path);
    count = scandir(path, &entries, not_hidden, alphasort);
    for (int i = 0; i < count; i++) {
        char name[4096];

        snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
        failed |= run_file(name);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;

    for (int i = 1; i < argc; i++)
        failed |= run_path(argv[i]);
    printf("%u inputs\n", inputs);
    return failed != 0 || inputs == 0;
}
