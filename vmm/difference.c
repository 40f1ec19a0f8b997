/* Gathers and writes the report of a difference; see difference.h. Cold: the guest does not run here meanwhile. */
#include "vmm/difference.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/lockstep.h"
#include "vmm/machine_json.h"
#include "vmm/pages.h"

#define PAGES_TOLD 1000u /* one by one; the rest are counted */
#define REPORTS_MOST 16u  /* of one process: a pair that differs again and again shall not fill the disk */

struct difference {
    struct lockstep *ls;
    cJSON *root, *pages;
    char path[512];    /* empty: none is written */
    uint64_t *excused; /* one bit a page: the primary has changed it since */
    uint64_t *seen;    /* has come once */
    uint64_t before[PAGES_PER_RECORD]; /* digests of our pages of the record under way */
    uint64_t differing, changed_since, came;
    uint64_t registers_compared;
    uint64_t first_position;   /* at which a register differed; 0: at none */
    const char *first_name;
    uint64_t first_values[2];
};

static bool bit_at(const uint64_t *bits, uint64_t number)
{
    return bits[number / 64] >> (number % 64) & 1;
}

static void bit_set(uint64_t *bits, uint64_t number)
{
    bits[number / 64] |= UINT64_C(1) << (number % 64);
}

/* ---- what the last records said ---- */

static void tell_number(void *ctx, const char *name, uint64_t value)
{
    cJSON_AddNumberToObject(ctx, name, (double)value);
}

static void tell_hex(void *ctx, const char *name, uint64_t value)
{
    json_add_hex(ctx, name, value);
}

static void tell_text(void *ctx, const char *name, const char *value)
{
    cJSON_AddStringToObject(ctx, name, value);
}

static void add_records(cJSON *root, const struct heal *heal)
{
    cJSON *list = cJSON_AddArrayToObject(root, "last_records");
    uint64_t first = heal->recent_count > HEAL_RECENT_RECORDS ? heal->recent_count - HEAL_RECENT_RECORDS : 0;

    for (uint64_t i = first; i < heal->recent_count; i++) {
        const struct heal_recent *recent = &heal->recent[i % HEAL_RECENT_RECORDS];
        struct channel_record record = { .lsn = recent->lsn, .position = recent->position, .kind = recent->kind,
                                         .bytes = recent->bytes, .payload = recent->payload };
        cJSON *item = cJSON_CreateObject();
        const struct event_reader reader = { .ctx = item, .number = tell_number, .hex = tell_hex, .text = tell_text };

        cJSON_AddNumberToObject(item, "lsn", (double)recent->lsn);
        cJSON_AddNumberToObject(item, "position", (double)recent->position);
        cJSON_AddStringToObject(item, "kind", event_name(recent->kind));
        cJSON_AddNumberToObject(item, "bytes", recent->bytes);
        if (recent->bytes <= HEAL_RECENT_BYTES)
            event_read(&record, &reader);
        cJSON_AddItemToArray(list, item);
    }
}

/* ---- the file ---- */

static void name_file(struct difference *difference)
{
    const char *directory = difference->ls->options.differences_path;

    if (directory == NULL || COUNT_GET(difference->ls->divergences) > REPORTS_MOST)
        return;
    if (mkdir(directory, 0700) < 0 && errno != EEXIST) {
        report_warning("the directory '%s' for differences cannot be made: %s; this one is not saved", directory,
                       strerror(errno));
        return;
    }
    if (snprintf(difference->path, sizeof(difference->path), "%s/difference-%lld-%d-%llu.json", directory,
                 (long long)time(NULL), (int)getpid(), (unsigned long long)COUNT_GET(difference->ls->divergences)) >=
        (int)sizeof(difference->path)) {
        report_warning("the name of the directory '%s' for differences is too long; this one is not saved", directory);
        difference->path[0] = '\0';
    }
}

static void write_file(struct difference *difference)
{
    char *text;
    FILE *file;

    if (difference->path[0] == '\0')
        return;
    text = cJSON_Print(difference->root);
    file = fopen(difference->path, "we");
    if (text == NULL || file == NULL || fputs(text, file) < 0) {
        report_warning("'%s' cannot be written: %s", difference->path, strerror(errno));
        difference->path[0] = '\0';
    }
    if (file != NULL && fclose(file) != 0 && difference->path[0] != '\0')
        report_warning("'%s' cannot be written: %s", difference->path, strerror(errno));
    cJSON_free(text);
}

static void add_machine(struct difference *difference)
{
    struct lockstep *ls = difference->ls;
    struct vcpu_state vcpu;

    if (vcpu_save(&ls->machine.vcpu, &vcpu) == 0)
        cJSON_AddItemToObject(difference->root, "backup", machine_json(&ls->machine, &vcpu));
    if (ls->verify != NULL && verify_renew(ls->verify, ls) == 0)
        json_add_hex(difference->root, "ram_digest", ls->verify->ram_digest);
}

struct difference *difference_open(struct lockstep *ls)
{
    struct difference *difference = calloc(1, sizeof(*difference));

    if (difference == NULL)
        return NULL;
    difference->ls = ls;
    difference->root = cJSON_CreateObject();
    difference->excused = calloc(pages_words(&ls->machine.memory), sizeof(uint64_t));
    difference->seen = calloc(pages_words(&ls->machine.memory), sizeof(uint64_t));
    if (difference->root == NULL || difference->excused == NULL || difference->seen == NULL) {
        cJSON_Delete(difference->root);
        free(difference->excused);
        free(difference->seen);
        free(difference);
        return NULL;
    }
    cJSON_AddStringToObject(difference->root, "found", report_last_error());
    cJSON_AddNumberToObject(difference->root, "unix_seconds", (double)time(NULL));
    cJSON_AddNumberToObject(difference->root, "generation", (double)COUNT_GET(ls->generation));
    cJSON_AddNumberToObject(difference->root, "position", (double)ls->machine.position);
    cJSON_AddStringToObject(difference->root, "exit", vcpu_exit_name(ls->machine.exit));
    add_records(difference->root, &ls->heal);
    add_machine(difference);
    name_file(difference);
    write_file(difference); /* what comes later may not come */
    difference->pages = cJSON_AddArrayToObject(difference->root, "differing_pages");
    return difference;
}

/* ---- the primary's registers and RAM ---- */

void difference_registers(struct difference *difference, const struct channel_record *record)
{
    const struct vcpu_registers *theirs = record->payload;
    struct vcpu_registers ours = { .sregs = theirs->sregs }; /* which are not kept */
    const struct kvm_regs *kept;
    uint64_t values[2];
    const char *name;

    if (difference == NULL)
        return;
    kept = register_ring_at(difference->ls->registers, record->position);
    if (kept == NULL)
        return;
    difference->registers_compared++;
    ours.regs = *kept;
    name = vcpu_registers_difference(&ours, theirs, values);
    if (name == NULL || (difference->first_position != 0 && difference->first_position <= record->position))
        return;
    difference->first_position = record->position;
    difference->first_name = name;
    difference->first_values[0] = values[0];
    difference->first_values[1] = values[1];
}

void difference_excuse(struct difference *difference, const struct channel_record *record)
{
    const struct event_segment_page *list = record->payload;

    if (difference == NULL)
        return;
    for (size_t i = 0; i < record->bytes / sizeof(list[0]); i++)
        if (list[i].page < difference->ls->machine.memory.bytes / GUEST_PAGE_BYTES)
            bit_set(difference->excused, list[i].page);
}

/* Calls `take` for each page of the record that lies in RAM, with its place in the record. */
static void for_pages(struct difference *difference, const struct channel_record *record,
                      void (*take)(struct difference *difference, unsigned place, uint64_t page))
{
    const uint8_t *at = record->payload, *end = at + record->bytes;

    for (unsigned place = 0; difference != NULL && at < end && place < PAGES_PER_RECORD; place++) {
        struct event_page head;

        memcpy(&head, at, sizeof(head));
        if (head.gpa / GUEST_PAGE_BYTES < difference->ls->machine.memory.bytes / GUEST_PAGE_BYTES)
            take(difference, place, head.gpa / GUEST_PAGE_BYTES);
        at += sizeof(head) + head.bytes;
    }
}

static void take_before(struct difference *difference, unsigned place, uint64_t page)
{
    difference->before[place] = difference->ls->verify->page_digests[page];
}

static void take_after(struct difference *difference, unsigned place, uint64_t page)
{
    uint64_t before = difference->before[place], now = difference->ls->verify->page_digests[page];
    cJSON *item;

    if (bit_at(difference->seen, page))
        return;
    bit_set(difference->seen, page);
    difference->came++;
    if (now == before)
        return;
    if (bit_at(difference->excused, page)) {
        difference->changed_since++;
        return;
    }
    if (difference->differing++ >= PAGES_TOLD)
        return;
    item = cJSON_CreateObject();
    json_add_hex(item, "address", page * GUEST_PAGE_BYTES);
    json_add_hex(item, "backup_digest", before);
    json_add_hex(item, "primary_digest", now);
    cJSON_AddItemToArray(difference->pages, item);
}

void difference_before(struct difference *difference, const struct channel_record *record)
{
    for_pages(difference, record, take_before);
}

void difference_after(struct difference *difference, const struct channel_record *record)
{
    for_pages(difference, record, take_after);
}

static void add_registers(const struct difference *difference)
{
    cJSON *first;

    cJSON_AddNumberToObject(difference->root, "registers_compared_count", (double)difference->registers_compared);
    if (difference->first_position == 0)
        return;
    first = cJSON_AddObjectToObject(difference->root, "first_register");
    cJSON_AddNumberToObject(first, "position", (double)difference->first_position);
    cJSON_AddStringToObject(first, "name", difference->first_name);
    json_add_hex(first, "backup", difference->first_values[0]);
    json_add_hex(first, "primary", difference->first_values[1]);
    report_warning("of the last %" PRIu64 " positions, %" PRIu64 " is the first at which a general register differed: %s "
                   "was 0x%" PRIx64 " here and 0x%" PRIx64 " at the primary", difference->registers_compared,
                   difference->first_position, difference->first_name, difference->first_values[0],
                   difference->first_values[1]);
}

static void say_pages(const struct difference *difference)
{
    const cJSON *first = cJSON_GetArrayItem(difference->pages, 0);

    report_warning("%" PRIu64 " of %" PRIu64 " pages differed%s%s; %" PRIu64 " more are not the same, and the primary has "
                   "written them since", difference->differing, difference->came, first != NULL ? ", the first at " : "",
                   first != NULL ? cJSON_GetStringValue(cJSON_GetObjectItem(first, "address")) : "",
                   difference->changed_since);
}

/* Of a mirrored disk, as far as it was compared (heal_disk.h). */
static void add_disk(const struct difference *difference)
{
    const struct heal *heal = &difference->ls->heal;
    uint64_t compared = COUNT_GET(heal->disk_compared_bytes), differing = COUNT_GET(heal->disk_differing_bytes);
    cJSON *disk;

    if (compared == 0)
        return;
    disk = cJSON_AddObjectToObject(difference->root, "disk");
    cJSON_AddNumberToObject(disk, "compared_bytes", (double)compared);
    cJSON_AddNumberToObject(disk, "differing_bytes", (double)differing);
    if (differing > 0)
        json_add_hex(disk, "first_share", COUNT_GET(heal->disk_first_differing));
    report_warning("of %" PRIu64 " MiB of the disk %" PRIu64 " MiB were not the same here and at the primary, when it was "
                   "compared", compared >> 20, differing >> 20);
}

void difference_close(struct difference *difference, int outcome)
{
    if (difference == NULL)
        return;
    add_registers(difference);
    add_disk(difference);
    cJSON_AddNumberToObject(difference->root, "differing_count", (double)difference->differing);
    cJSON_AddNumberToObject(difference->root, "changed_since_count", (double)difference->changed_since);
    cJSON_AddNumberToObject(difference->root, "compared_count", (double)difference->came);
    cJSON_AddStringToObject(difference->root, "outcome", outcome == 0 ? "healed" : "not healed");
    COUNT_SET(difference->ls->heal.differing_pages, difference->differing);
    if (difference->came > 0)
        say_pages(difference);
    write_file(difference);
    if (difference->path[0] != '\0')
        report_info("what was found of the difference is in '%s'", difference->path);
    cJSON_Delete(difference->root);
    free(difference->excused);
    free(difference->seen);
    free(difference);
}
