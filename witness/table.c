/* VMs, generations, words; and the file that outlives them. See table.h. */
#include "witness/table.h"

#include "base/report.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define FILE_NAME  "generations"
#define FILE_NEW   "generations.new"
#define FILE_FIRST "ftwitness 1"
#define FILE_LAST  "end"
#define LINE_BYTES 1024 /* a name, two numbers and 16 members have 611 characters at most */
_Static_assert(WITNESS_GENERATIONS * sizeof(uint64_t) <= PAGE_BYTES, "the words of a VM");

struct member {
    uint8_t id[WITNESS_MEMBER_BYTES];
    bool vouched; /* for holding no verdict, since this witness was started */
};

struct generation {
    uint64_t number; /* 0: none */
    uint64_t pair;
    uint64_t free;   /* 0: doubtful, there is no word yet */
    unsigned members;
    struct member member[WITNESS_MEMBERS];
};

struct vm {
    char name[VM_NAME_BYTES];
    uint64_t highest; /* begun */
    struct generation generations[WITNESS_GENERATIONS]; /* number N at N modulo their count */
    uint64_t *words;                                    /* likewise */
};

struct witness_table {
    char *path;
    int directory; /* locked */
    unsigned vms_max, vms;
    struct vm **vm;
    uint64_t next_mark; /* begins at random, so that a word's content tells one life of the witness from another */
    witness_revoke *revoke;
    void *context;
};

/* ---- VMs ---- */

static struct vm *vm_find(struct witness_table *table, const char *name)
{
    for (unsigned i = 0; i < table->vms; i++)
        if (strcmp(table->vm[i]->name, name) == 0)
            return table->vm[i];
    return NULL;
}

static void vm_free(struct vm *vm)
{
    if (vm != NULL)
        free(vm->words);
    free(vm);
}

/* NULL: the table is full, or memory is. */
static struct vm *vm_add(struct witness_table *table, const char *name)
{
    struct vm *vm = table->vms < table->vms_max ? calloc(1, sizeof(*vm)) : NULL;

    if (vm == NULL)
        return NULL;
    vm->words = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
    if (vm->words == NULL) {
        vm_free(vm);
        return NULL;
    }
    memset(vm->words, 0, PAGE_BYTES);
    snprintf(vm->name, sizeof(vm->name), "%s", name);
    return table->vm[table->vms++] = vm;
}

static struct generation *generation_of(struct vm *vm, uint64_t number)
{
    return &vm->generations[number % WITNESS_GENERATIONS];
}

static uint64_t *word_of(struct vm *vm, uint64_t number)
{
    return &vm->words[number % WITNESS_GENERATIONS];
}

/* A word that nobody has claimed, with a mark that no other has. */
static void word_begin(struct witness_table *table, struct vm *vm, struct generation *generation)
{
    uint64_t *word = word_of(vm, generation->number);

    table->revoke(table->context, word);
    do
        generation->free = table->next_mark++ << 16;
    while (generation->free == 0);
    /* Release: whoever is told of it later reaches it with this in it. */
    __atomic_store_n(word, generation->free, __ATOMIC_RELEASE);
}

static struct member *member_find(struct generation *generation, const uint8_t id[WITNESS_MEMBER_BYTES])
{
    for (unsigned i = 0; i < generation->members; i++)
        if (memcmp(generation->member[i].id, id, WITNESS_MEMBER_BYTES) == 0)
            return &generation->member[i];
    return NULL;
}

/* There is room for it. */
static struct member *member_add(struct generation *generation, const uint8_t id[WITNESS_MEMBER_BYTES])
{
    struct member *member = &generation->member[generation->members++];

    memcpy(member->id, id, WITNESS_MEMBER_BYTES);
    member->vouched = true;
    return member;
}

/* ---- the file ---- */

static void line_print(FILE *file, struct vm *vm)
{
    const struct generation *generation = generation_of(vm, vm->highest);

    fprintf(file, "%s %" PRIu64 " %016" PRIx64, vm->name, vm->highest,
            generation->number == vm->highest ? generation->pair : 0);
    for (unsigned i = 0; generation->number == vm->highest && i < generation->members; i++) {
        fputc(' ', file);
        for (unsigned j = 0; j < WITNESS_MEMBER_BYTES; j++)
            fprintf(file, "%02x", generation->member[i].id[j]);
    }
    fputc('\n', file);
}

/* 0 or -errno, said in words. */
static int save(struct witness_table *table)
{
    int fd = openat(table->directory, FILE_NEW, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    int rc = 0;

    if (file == NULL) {
        rc = -errno;
        if (fd >= 0)
            close(fd);
    } else {
        fputs(FILE_FIRST "\n", file);
        for (unsigned i = 0; i < table->vms; i++)
            if (table->vm[i]->highest > 0)
                line_print(file, table->vm[i]);
        fputs(FILE_LAST "\n", file);
        errno = EIO;
        if (fflush(file) != 0 || ferror(file) != 0 || fsync(fd) != 0)
            rc = -errno;
        fclose(file);
    }
    if (rc == 0 && (renameat(table->directory, FILE_NEW, table->directory, FILE_NAME) != 0 ||
                    fsync(table->directory) != 0))
        rc = -errno;
    if (rc < 0)
        report_error("the state in '%s' cannot be written: %s; nobody is given a new place until it can", table->path,
                     strerror(-rc));
    return rc;
}

static bool member_scan(const char *text, uint8_t id[WITNESS_MEMBER_BYTES])
{
    if (strlen(text) != 2 * WITNESS_MEMBER_BYTES || strspn(text, "0123456789abcdef") != 2 * WITNESS_MEMBER_BYTES)
        return false;
    for (unsigned i = 0; i < WITNESS_MEMBER_BYTES; i++) {
        unsigned byte;

        sscanf(text + 2 * i, "%2x", &byte);
        id[i] = (uint8_t)byte;
    }
    return true;
}

static bool number_scan(const char *text, int base, uint64_t *number)
{
    char *end;

    if (text == NULL || !isxdigit((unsigned char)*text))
        return false;
    errno = 0;
    *number = strtoull(text, &end, base);
    return *end == '\0' && errno == 0;
}

/* One line of a VM, without its end. 0, -EBADMSG, or -ENOSPC: more VMs than the table may have. */
static int line_read(struct witness_table *table, char *line)
{
    char *rest = NULL, *name = strtok_r(line, " ", &rest), *number = strtok_r(NULL, " ", &rest);
    char *pair_text = strtok_r(NULL, " ", &rest), *text;
    uint64_t highest, pair;
    struct vm *vm;

    if (name == NULL || !vm_name_is_valid(name) || vm_find(table, name) != NULL || !number_scan(number, 10, &highest) ||
        highest == 0 || highest >= INT64_MAX || !number_scan(pair_text, 16, &pair))
        return -EBADMSG;
    vm = vm_add(table, name);
    if (vm == NULL)
        return table->vms == table->vms_max ? -ENOSPC : -ENOMEM;
    vm->highest = highest;
    if (pair != 0) {
        struct generation *generation = generation_of(vm, highest);

        generation->number = highest;
        generation->pair = pair;
        while ((text = strtok_r(NULL, " ", &rest)) != NULL) {
            if (generation->members == WITNESS_MEMBERS ||
                !member_scan(text, generation->member[generation->members++].id))
                return -EBADMSG;
        }
    }
    return 0;
}

static int load(struct witness_table *table)
{
    int fd = openat(table->directory, FILE_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;
    bool ended = false;
    char line[LINE_BYTES];
    int rc = 0;

    if (file == NULL) {
        rc = -errno;
        if (fd >= 0)
            close(fd);
        return rc == -ENOENT ? 0 : rc; /* the first time */
    }
    for (unsigned n = 0; rc == 0 && fgets(line, sizeof(line), file) != NULL; n++) {
        size_t length = strlen(line);

        if (length == 0 || line[length - 1] != '\n' || ended) {
            rc = -EBADMSG;
            break;
        }
        line[length - 1] = '\0';
        ended = n > 0 && strcmp(line, FILE_LAST) == 0;
        if (n == 0)
            rc = strcmp(line, FILE_FIRST) == 0 ? 0 : -EBADMSG;
        else if (!ended)
            rc = line_read(table, line);
    }
    if (rc == 0 && !ended)
        rc = ferror(file) != 0 ? -EIO : -EBADMSG;
    fclose(file);
    return rc;
}

int witness_table_open(struct witness_table **out, const char *directory, unsigned vms, witness_revoke *revoke,
                       void *context)
{
    struct witness_table *table = calloc(1, sizeof(*table));
    int rc = -ENOMEM;

    *out = NULL;
    if (table == NULL)
        return rc;
    table->directory = -1;
    table->vms_max = vms;
    table->revoke = revoke;
    table->context = context;
    table->path = strdup(directory);
    table->vm = calloc(vms, sizeof(table->vm[0]));
    if (table->path == NULL || table->vm == NULL)
        goto fail;
    if (getrandom(&table->next_mark, sizeof(table->next_mark), 0) != sizeof(table->next_mark)) {
        rc = -EIO;
        goto fail;
    }
    table->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (table->directory < 0) {
        rc = -errno;
        report_error("the state directory '%s' does not open: %s; make it, ours alone: 'mkdir -m 700 %s'", directory,
                     strerror(-rc), directory);
        goto fail;
    }
    if (flock(table->directory, LOCK_EX | LOCK_NB) != 0) {
        rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
        report_error("the state directory '%s' is in use by another witness (%s); each needs its own", directory,
                     strerror(-rc));
        goto fail;
    }
    rc = load(table);
    if (rc < 0) {
        report_error("the state '%s/" FILE_NAME "' is not to be used: %s; %s", directory, strerror(-rc),
                     rc == -ENOSPC ? "it has more VMs than --vms" :
                                     "restore it, or remove it while no pair runs that uses this witness");
        goto fail;
    }
    rc = save(table); /* now, not when a pair begins */
    if (rc < 0)
        goto fail;
    *out = table;
    return 0;

fail:
    witness_table_close(table);
    return rc;
}

void witness_table_close(struct witness_table *table)
{
    if (table == NULL)
        return;
    for (unsigned i = 0; table->vm != NULL && i < table->vms; i++)
        vm_free(table->vm[i]);
    if (table->directory >= 0)
        close(table->directory);
    free(table->vm);
    free(table->path);
    free(table);
}

/* ---- places ---- */

static void place_of(struct vm *vm, struct generation *generation, const struct member *member,
                     struct witness_place *place)
{
    *place = (struct witness_place){ .generation = generation->number, .pair = generation->pair,
                                     .word = word_of(vm, generation->number), .free = generation->free,
                                     .claim = generation->free + 1 + (uint64_t)(member - generation->member) };
}

enum witness_status witness_table_begin(struct witness_table *table, const char *name,
                                        const uint8_t member[WITNESS_MEMBER_BYTES], struct witness_place *place)
{
    struct vm *vm = vm_find(table, name);
    struct generation *generation;

    if (vm == NULL)
        vm = vm_add(table, name);
    if (vm == NULL)
        return WITNESS_TABLE_FULL;
    generation = generation_of(vm, ++vm->highest);
    memset(generation, 0, sizeof(*generation));
    generation->number = vm->highest;
    (void)member_add(generation, member);
    word_begin(table, vm, generation);
    if (getrandom(&generation->pair, sizeof(generation->pair), 0) != sizeof(generation->pair) ||
        generation->pair == 0 || save(table) < 0) {
        generation->number = 0;
        vm->highest--; /* nobody has heard of it */
        return WITNESS_STORAGE;
    }
    place_of(vm, generation, &generation->member[0], place);
    return WITNESS_OK;
}

enum witness_status witness_table_find(struct witness_table *table, const char *name, uint64_t number, uint64_t pair,
                                       const uint8_t id[WITNESS_MEMBER_BYTES], struct witness_place *place)
{
    struct vm *vm = vm_find(table, name);
    struct generation *generation = vm != NULL ? generation_of(vm, number) : NULL;
    struct member *member;

    if (generation == NULL || number == 0 || generation->number != number)
        return WITNESS_UNKNOWN_GENERATION;
    if (pair != 0 && pair != generation->pair)
        return WITNESS_OTHER_PAIR;
    member = member_find(generation, id);
    if (member != NULL) {
        member->vouched = true;
    } else if (generation->free == 0) {
        return WITNESS_DOUBTFUL; /* a newcomer can wait */
    } else if (generation->members == WITNESS_MEMBERS) {
        return WITNESS_MEMBERS_FULL;
    } else {
        member = member_add(generation, id);
        /* Before it learns of the place: a later life must know whom to wait for. */
        if (number == vm->highest && save(table) < 0) {
            generation->members--;
            return WITNESS_STORAGE;
        }
    }
    for (unsigned i = 0; i < generation->members && generation->free == 0; i++)
        if (!generation->member[i].vouched)
            return WITNESS_DOUBTFUL;
    if (generation->free == 0)
        word_begin(table, vm, generation);
    place_of(vm, generation, member, place);
    return WITNESS_OK;
}
