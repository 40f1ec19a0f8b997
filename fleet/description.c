/* Descriptions of VMs; see description.h. */
#include "fleet/description.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/report.h"

#define FILE_MAX_BYTES (64u << 10)

/* Where only we and root can change what is there. */
static bool is_ours(const struct stat *status)
{
    return (status->st_mode & 022) == 0 && (status->st_uid == geteuid() || status->st_uid == 0);
}

static void description_free(struct description *description)
{
    for (unsigned i = 0; i < description->argument_count; i++)
        free(description->arguments[i]);
    free(description->arguments);
    *description = (struct description){ 0 };
}

void descriptions_free(struct descriptions *descriptions)
{
    for (unsigned i = 0; i < descriptions->count; i++)
        description_free(&descriptions->of[i]);
    descriptions->count = 0;
}

/* The file's text, 0 behind it; NULL, and *why. Freed by the caller. */
static char *text_read(int dir_fd, const char *name, const char **why)
{
    int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char *text = malloc(FILE_MAX_BYTES + 1);
    struct stat status;
    ssize_t got = -1;

    *why = NULL;
    if (text == NULL || fd < 0 || fstat(fd, &status) != 0)
        *why = strerror(errno);
    else if (!S_ISREG(status.st_mode) || !is_ours(&status))
        *why = "it must be a regular file, ours or root's, that nobody else can write (chmod go-w)";
    else if ((got = read(fd, text, FILE_MAX_BYTES + 1)) < 0)
        *why = strerror(errno);
    else if (got > (ssize_t)FILE_MAX_BYTES)
        *why = "it is longer than 64 KiB";
    if (fd >= 0)
        close(fd);
    if (*why != NULL || got < 0) {
        free(text);
        return NULL;
    }
    text[got] = '\0';
    return text;
}

static const char *take_arguments(struct description *description, const cJSON *list)
{
    static const char *const ours[] = { "--listen", "--name", "--memory" };
    const cJSON *item;

    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) > (int)DESCRIPTION_ARGUMENTS_MAX)
        return "\"arguments\" must be a list of words, 128 at most";
    description->arguments = calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof(char *));
    if (description->arguments == NULL)
        return "no memory";
    cJSON_ArrayForEach(item, list) {
        if (!cJSON_IsString(item))
            return "\"arguments\" must be a list of words in quotes";
        for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
            if (strncmp(item->valuestring, ours[i], strlen(ours[i])) == 0 &&
                strchr("=", item->valuestring[strlen(ours[i])]) != NULL)
                return "--listen, --name and --memory do not belong into \"arguments\": they are \"listen\", the "
                       "file's name, and \"memory_mib\"";
        description->arguments[description->argument_count] = strdup(item->valuestring);
        if (description->arguments[description->argument_count] == NULL)
            return "no memory";
        description->argument_count++;
    }
    return NULL;
}

/* NULL: it is a description; else why it is none. `name`: VM.json. */
static const char *description_take(struct description *description, const char *name, const char *text)
{
    size_t length = strlen(name) - strlen(".json");
    cJSON *object = cJSON_Parse(text);
    const char *listen = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "listen")), *why = NULL;
    double memory = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(object, "memory_mib"));

    snprintf(description->vm.name, sizeof(description->vm.name), "%.*s", (int)length, name);
    if (length >= VM_NAME_BYTES || !vm_name_is_valid(description->vm.name))
        why = "its name must be a VM's: " VM_NAME_RULE;
    else if (!cJSON_IsObject(object))
        why = "it is no JSON object";
    else if (listen == NULL || !fleet_address_is_valid(listen))
        why = "\"listen\" must be an address of this host: verbs:HOST:PORT, tcp:HOST:PORT or shm:NAME";
    else if (!(memory >= 64 && memory <= 3072) || floor(memory) != memory)
        why = "\"memory_mib\" must be a whole number from 64 to 3072";
    else
        why = take_arguments(description, cJSON_GetObjectItemCaseSensitive(object, "arguments"));
    if (why == NULL) {
        strcpy(description->vm.address, listen);
        description->vm.memory_mib = (uint32_t)memory;
    }
    cJSON_Delete(object);
    return why;
}

static int is_description(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);

    return entry->d_name[0] != '.' && length > 5 && strcmp(entry->d_name + length - 5, ".json") == 0;
}

int descriptions_read(struct descriptions *out, const char *dir, bool say)
{
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), count, rc = 0;
    struct dirent **entries = NULL;
    struct stat status;

    *out = (struct descriptions){ 0 };
    if (dir_fd < 0 || fstat(dir_fd, &status) != 0)
        rc = -errno;
    else if (!is_ours(&status))
        rc = -EPERM;
    count = rc == 0 ? scandir(dir, &entries, is_description, alphasort) : 0;
    if (count < 0)
        rc = -errno;
    if (rc < 0 && say)
        report_error("--vms '%s': %s; it should be a directory, ours or root's, that nobody else can write: 'mkdir -p "
                     "-m 755 %s'", dir, rc == -EPERM ? "others can write there" : strerror(-rc), dir);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name, *why;
        char *text = text_read(dir_fd, name, &why);

        if (text != NULL && out->count < FLEET_VMS_MAX) {
            why = description_take(&out->of[out->count], name, text);
            if (why == NULL)
                out->count++;
            else
                description_free(&out->of[out->count]);
        } else if (text != NULL) {
            why = "there are 64 before it, and no more are read";
        }
        if (why != NULL) {
            out->bad++;
            if (say)
                report_warning("'%s/%s' is left out: %s", dir, name, why);
        }
        free(text);
        free(entries[i]);
    }
    free(entries);
    if (dir_fd >= 0)
        close(dir_fd);
    return rc;
}

const struct description *descriptions_find(const struct descriptions *descriptions, const char *vm)
{
    for (unsigned i = 0; i < descriptions->count; i++)
        if (strcmp(descriptions->of[i].vm.name, vm) == 0)
            return &descriptions->of[i];
    return NULL;
}
