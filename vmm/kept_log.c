/* Parts, bases and the writer's thread of a kept log; see kept_log.h. */
#include "vmm/kept_log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/count.h"
#include "base/fault_point.h"
#include "base/report.h"
#include "vmm/dirty.h"
#include "vmm/kept_files.h"
#include "vmm/lockstep.h"
#include "vmm/pages.h"
#include "vmm/time_pack.h"

/* Of each open part: what a disk may take to come round, at some MiB a second of log. A 24th of all, within these. */
#define BUFFER_BYTES_MIN (UINT64_C(8) << 20)
#define BUFFER_BYTES_MAX (UINT64_C(32) << 20)
/* How often the writer looks into the buffers. */
#define WRITER_LOOK_NS (5 * NS_PER_MS)
/* How often the machine thread looks whether a new part is due. */
#define LOOK_NS (10 * NS_PER_MS)
/* A new part after one that broke, or whose base could not be taken. */
#define RETRY_NS (3 * NS_PER_S)
/* Pages are copied for so long at a position, then not for COPY_REST times as long as that took. */
#define COPY_NS   (300 * NS_PER_US)
#define COPY_REST 4
/* So many pages may be left to be copied at once, at the base's position; later more; then it is given up. */
#define FEW_PAGES      1024u
#define PATIENT_ROUNDS 8u
#define MOST_ROUNDS    60u

enum part_state {
    PART_FREE,    /* the writer is done with it */
    PART_WANTED,  /* the machine thread wants it opened */
    PART_OPEN,    /* and it is */
    PART_FAILED,  /* or it is not; said in words */
    PART_RETIRED, /* the machine thread puts nothing more into it */
};

struct part {
    /* K1: whoever sets a state releases all it has written; whoever sees it has acquired that. The machine thread makes it
     * WANTED and RETIRED, the writer the rest. */
    _Atomic int state;
    struct channel *channel;
    struct kept_file file;
    _Atomic bool based;  /* K2: machine thread, once: file.position is right, and the beginning is in the buffer */
    bool named;          /* writer: file.whole, and older parts are deleted */
    uint64_t began_ns;   /* machine thread */
};

struct kept_log {
    struct lockstep *ls;
    struct kept_log_options options;
    struct channel_hello hello;
    uint64_t buffer_bytes; /* of each part, a power of two */
    pthread_t thread;
    bool started;
    _Atomic bool closing;
    struct part parts[2];

    /* -- machine thread -- */
    struct part *current, *next; /* NULL: none */
    struct {
        struct event_start start;
        struct kvm_cpuid_entry2 cpuid[EVENT_CPUID_MAX];
    } start; /* the pair's, as it began */
    uint64_t *pages;   /* to be copied; dirty.c adds what is written while ls->transfer_pages points here */
    uint64_t page;     /* the next one of this round */
    unsigned rounds;
    bool copying, few_left;
    uint64_t look_ns, copy_ns; /* not before */
    unsigned parts_begun;      /* of this run */
    struct time_pack times;    /* looks at the clock that are not in the current part yet */
    unsigned run;

    _Atomic bool recording, ended;
    _Atomic uint64_t begun, breaks, base_pages, part_bytes;
};

static enum part_state state_of(const struct part *part)
{
    return (enum part_state)atomic_load_explicit(&part->state, memory_order_acquire); /* K1 */
}

static void state_set(struct part *part, enum part_state state)
{
    atomic_store_explicit(&part->state, (int)state, memory_order_release); /* K1 */
}

/* ---- the writer ---- */

static void delete_file(const struct kept_log *kept, const struct kept_file *file)
{
    char path[KEPT_PATH_BYTES];

    if (kept_file_path(kept->options.directory, file, path) == 0)
        (void)unlink(path);
}

/* What is older than the part before `newest`, and than the run before. */
static void delete_old(const struct kept_log *kept, const struct kept_file *newest)
{
    struct kept_file *files;
    size_t count;

    if (kept_files_list(kept->options.directory, &files, &count) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        if (files[i].run + 1 < newest->run || (files[i].run == newest->run && files[i].part + 1 < newest->part) ||
            (files[i].run < newest->run && !files[i].whole))
            delete_file(kept, &files[i]);
    free(files);
}

static int part_open(struct kept_log *kept, struct part *part)
{
    char address[KEPT_PATH_BYTES + 8] = "file:";
    struct channel_options channel = {
        .address = address, .hello = kept->hello, .ring_bytes = kept->buffer_bytes, .file_poller_writes = true
    };
    int rc = kept_file_path(kept->options.directory, &part->file, address + strlen("file:"));

    return rc < 0 ? rc : channel_open_sender(&part->channel, &channel);
}

/* The part can be replayed from now on. */
static void part_name(struct kept_log *kept, struct part *part)
{
    char before[KEPT_PATH_BYTES], after[KEPT_PATH_BYTES];
    int rc = kept_file_path(kept->options.directory, &part->file, before);

    part->named = true;
    part->file.whole = true;
    if (rc == 0)
        rc = kept_file_path(kept->options.directory, &part->file, after);
    if (rc == 0)
        rc = rename(before, after) < 0 ? -errno : 0;
    if (rc < 0)
        report_error("a part of the kept log in '%s' cannot be given its name: %s", kept->options.directory,
                     strerror(-rc));
    else
        delete_old(kept, &part->file);
}

static void part_tend(struct kept_log *kept, struct part *part)
{
    enum part_state state = state_of(part);
    struct channel_lag lag;

    switch (state) {
    case PART_WANTED: {
        int wanted = PART_WANTED; /* still? The machine thread may have retired it meanwhile */
        int opened = part_open(kept, part) == 0 ? PART_OPEN : PART_FAILED;

        (void)atomic_compare_exchange_strong_explicit(&part->state, &wanted, opened, memory_order_acq_rel,
                                                      memory_order_acquire); /* K1 */
        return;
    }
    case PART_OPEN:
    case PART_RETIRED: {
        bool based = atomic_load_explicit(&part->based, memory_order_acquire); /* K2 */

        if (part->channel == NULL) { /* it failed to open */
            state_set(part, PART_FREE);
            return;
        }
        (void)channel_poll(part->channel); /* what fails is said there, and seen by who puts more into it */
        channel_get_lag(part->channel, &lag);
        if (based && !part->named && (lag.bytes < kept->buffer_bytes / 2 || state == PART_RETIRED))
            part_name(kept, part);
        if (state == PART_OPEN)
            return;
        channel_close(part->channel); /* writes the rest */
        part->channel = NULL;
        if (!part->named)
            delete_file(kept, &part->file);
        state_set(part, PART_FREE);
        return;
    }
    case PART_FREE:
    case PART_FAILED:
        return;
    }
}

static void *writer_run(void *arg)
{
    struct kept_log *kept = arg;
    bool last; /* set before the last look, so that look sees all */

    do {
        last = COUNT_GET(kept->closing) || atomic_load_explicit(&kept->ended, memory_order_acquire); /* K3 */
        fault_point("kept-log-look");
        for (unsigned i = 0; i < 2; i++)
            part_tend(kept, &kept->parts[i]);
        if (!last)
            clock_sleep_ns(WRITER_LOOK_NS);
    } while (!last);
    return NULL;
}

/* ---- the machine thread: parts ---- */

/* A free place, made ready for the writer to open; NULL: there is none. */
static struct part *part_begin(struct kept_log *kept, uint64_t now_ns)
{
    for (unsigned i = 0; i < 2; i++) {
        struct part *part = &kept->parts[i];

        if (state_of(part) != PART_FREE)
            continue;
        part->channel = NULL;
        part->file = (struct kept_file){ .run = kept->run, .part = ++kept->parts_begun };
        COUNT_SET(part->based, false);
        part->named = false;
        part->began_ns = now_ns;
        COUNT_ADD(kept->begun, 1);
        return part;
    }
    return NULL;
}

static void part_based(struct part *part, uint64_t position)
{
    part->file.position = position;
    atomic_store_explicit(&part->based, true, memory_order_release); /* K2 */
}

/* Nothing is kept for now. */
static void give_up_next(struct kept_log *kept)
{
    if (kept->next == NULL)
        return;
    if (kept->copying)
        kept->ls->transfer_pages = NULL;
    kept->copying = false;
    state_set(kept->next, PART_RETIRED);
    kept->next = NULL;
}

static void append_times(struct kept_log *kept);

static void end_current(struct kept_log *kept)
{
    append_times(kept);
    if (kept->current != NULL)
        state_set(kept->current, PART_RETIRED);
    kept->current = NULL;
    COUNT_SET(kept->recording, false);
}

static void give_up_for_good(struct kept_log *kept)
{
    if (!COUNT_GET(kept->ended))
        report_warning("the log is kept no more: what was written before is in '%s'", kept->options.directory);
    give_up_next(kept);
    end_current(kept);
    atomic_store_explicit(&kept->ended, true, memory_order_release); /* K3 pairs K3 in writer_run: the parts' states */
}

static void lose_current(struct kept_log *kept, const char *why)
{
    report_warning("the kept log breaks off at position %llu: %s; a new part begins as soon as it can",
                   (unsigned long long)kept->ls->machine.position, why);
    end_current(kept);
    COUNT_ADD(kept->breaks, 1);
    kept->look_ns = clock_now_ns() + RETRY_NS;
}

/* A record for a part; NULL: it cannot be had, -errno in *error. */
static void *open_record(struct part *part, enum event_kind kind, uint64_t position, size_t bytes, int *error)
{
    void *payload;

    *error = channel_reserve(part->channel, (uint16_t)kind, position, bytes, &payload);
    return *error == 0 ? payload : NULL;
}

/* Both of a record's two pieces, one of them perhaps empty. */
static void append(struct kept_log *kept, const struct channel_record *record, const void *head, size_t head_bytes,
                   const void *rest, size_t rest_bytes)
{
    int error;
    uint8_t *payload = open_record(kept->current, (enum event_kind)record->kind, record->position, head_bytes + rest_bytes,
                                   &error);

    if (payload == NULL && error == -EAGAIN) {
        lose_current(kept, "the disk that it is written to is too slow");
        return;
    }
    if (payload == NULL) { /* the disk has failed, which the link has said */
        give_up_for_good(kept);
        return;
    }
    memcpy(payload, head, head_bytes);
    if (rest_bytes != 0)
        memcpy(payload + head_bytes, rest, rest_bytes);
    channel_commit(kept->current->channel);
}

/* The looks that were gathered, as one record. */
static void append_times(struct kept_log *kept)
{
    const struct channel_record record = { .kind = EVENT_TIME, .position = kept->times.first_position };
    size_t bytes = kept->times.bytes;

    if (kept->times.count == 0)
        return;
    time_pack_clear(&kept->times); /* before what may end the part */
    if (kept->current != NULL)
        append(kept, &record, kept->times.payload, bytes, NULL, 0);
}

static void gather_time(struct kept_log *kept, const struct channel_record *record)
{
    uint64_t time_ns = ((const struct event_time *)record->payload)->time_ns;

    if (time_pack_add(&kept->times, record->position, time_ns))
        return;
    append_times(kept);
    (void)time_pack_add(&kept->times, record->position, time_ns);
}

/* A disk's answer, with the data that were read: who replays this has no copy of the disk as it was. */
static void append_disk(struct kept_log *kept, const struct channel_record *record)
{
    struct event_disk disk = *(const struct event_disk *)record->payload;
    const struct virtio_blk_request *request =
        &kept->ls->machine.blk.state.requests[disk.number % VIRTIO_BLK_REQUESTS_MAX];

    disk.bytes = request->operation == VIRTIO_BLK_READ && disk.status == VIRTIO_BLK_OK ? request->bytes : 0;
    append(kept, record, &disk, sizeof(disk), disk_data(kept->ls->disk, disk.number), disk.bytes);
}

static void append_start(struct kept_log *kept, const struct channel_record *record)
{
    if (record->bytes > sizeof(kept->start))
        return; /* event_check has seen to that */
    memcpy(&kept->start, record->payload, record->bytes);
    kept->start.start.kept = 1;
    append(kept, record, &kept->start, record->bytes, NULL, 0);
    if (kept->current != NULL && !kept->start.start.transfer)
        part_based(kept->current, 0);
}

void kept_log_record(struct kept_log *kept, const struct channel_record *record)
{
    if (kept == NULL || kept->current == NULL)
        return;
    if (record->kind == EVENT_TIME) {
        gather_time(kept, record);
        return;
    }
    append_times(kept);
    if (kept->current == NULL)
        return;
    if (record->kind == EVENT_START)
        append_start(kept, record);
    else if (record->kind == EVENT_DISK)
        append_disk(kept, record);
    else if (record->kind != EVENT_SECTORS) /* nobody reads them: what the guest reads is in its DISK records */
        append(kept, record, record->payload, record->bytes, NULL, 0);
    if (record->kind == EVENT_MACHINE && kept->current != NULL)
        part_based(kept->current, record->position);
}

/* ---- the machine thread: bases ---- */

static uint64_t pages_left(const struct kept_log *kept)
{
    uint64_t left = 0;

    for (uint64_t i = 0; i < pages_words(&kept->ls->machine.memory); i++)
        left += (uint64_t)__builtin_popcountll(kept->pages[i]);
    return left;
}

/* Room in the next part's buffer, in pages. */
static uint64_t room_pages(const struct kept_log *kept)
{
    struct channel_lag lag;

    channel_get_lag(kept->next->channel, &lag);
    return (kept->buffer_bytes - lag.bytes) / (GUEST_PAGE_BYTES + 64);
}

/* The base's START: of this guest, wherever it began. 0 or -errno. */
static int base_begin(struct kept_log *kept)
{
    struct guest_memory *memory = &kept->ls->machine.memory;
    uint64_t pages = memory->bytes / GUEST_PAGE_BYTES;
    struct event_start *start = &kept->start.start;
    size_t bytes = sizeof(*start) + start->cpuid_entries * sizeof(struct kvm_cpuid_entry2);
    struct event_start *payload;
    int error;

    payload = open_record(kept->next, EVENT_START, 0, bytes, &error);
    if (payload == NULL)
        return error;
    memcpy(payload, &kept->start, bytes);
    payload->transfer = EVENT_TRANSFER_DONE;
    channel_commit(kept->next->channel);
    for (uint64_t page = 0; page < pages; page++)
        kept->pages[page / 64] |= UINT64_C(1) << (page % 64);
    kept->page = 0;
    kept->rounds = 0;
    kept->few_left = false;
    kept->copying = true;
    kept->ls->transfer_pages = kept->pages;
    return 0;
}

/* The next batch of pages. 1; 0: none is left in this round; -errno. */
static int copy_batch(struct kept_log *kept)
{
    const struct guest_memory *memory = &kept->ls->machine.memory;
    struct pages_batch batch;
    uint8_t *payload;
    int error;

    if (!pages_take(&batch, memory, NULL, kept->pages, &kept->page))
        return 0;
    payload = open_record(kept->next, EVENT_PAGES, 0, batch.bytes, &error);
    if (payload == NULL)
        return error;
    pages_write(&batch, memory, NULL, payload);
    channel_commit(kept->next->channel);
    COUNT_ADD(kept->base_pages, batch.count);
    return 1;
}

/* A while of copying. 0; -ENOSPC: the guest writes faster than this can copy; -errno. */
static int copy_some(struct kept_log *kept, uint64_t now_ns)
{
    uint64_t began_ns = clock_now_ns(), left;
    int rc = 1;

    if (now_ns < kept->copy_ns)
        return 0;
    while (rc > 0 && room_pages(kept) > kept->buffer_bytes / GUEST_PAGE_BYTES / 2 && clock_now_ns() < began_ns + COPY_NS)
        rc = copy_batch(kept);
    if (rc == 0) {
        rc = dirty_collect(kept->ls);
        left = pages_left(kept);
        kept->page = 0;
        kept->rounds++;
        kept->few_left = left <= FEW_PAGES || (kept->rounds > PATIENT_ROUNDS && left <= room_pages(kept) / 2);
        if (rc == 0 && !kept->few_left && kept->rounds > MOST_ROUNDS)
            rc = -ENOSPC;
    }
    now_ns = clock_now_ns();
    kept->copy_ns = now_ns + COPY_REST * (now_ns - began_ns);
    return rc < 0 ? rc : 0;
}

/* Nothing is on its way into the guest: what is saved here is all there is. */
static bool is_quiet(const struct lockstep *ls)
{
    const struct machine *machine = &ls->machine;

    return !machine->vcpu.exit_waits && !pic_output(&machine->pic) && ls->staged == NULL &&
           machine->blk.state.completed == machine->blk.state.submitted;
}

/* The pages that are left, and the machine: the part begins here. 0, also where it cannot be done yet; -errno. */
static int base_finish(struct kept_log *kept)
{
    static struct event_machine event; /* large; the machine thread's own */
    struct lockstep *ls = kept->ls;
    void *payload;
    int rc, error;

    if (!is_quiet(ls))
        return 0;
    rc = vcpu_complete(&ls->machine.vcpu);
    if (rc < 0 || ls->machine.vcpu.exit_waits)
        return rc;
    rc = machine_state_save(&ls->machine, &event.machine);
    if (rc == 0)
        rc = dirty_collect(ls);
    if (rc < 0)
        return rc;
    if (event.machine.vcpu.events.interrupt.injected || event.machine.vcpu.events.exception.injected ||
        event.machine.vcpu.events.interrupt.shadow)
        return 0;
    kept->few_left = pages_left(kept) + sizeof(event) / GUEST_PAGE_BYTES + PAGES_PER_RECORD < room_pages(kept);
    if (!kept->few_left)
        return 0;
    kept->page = 0;
    while ((rc = copy_batch(kept)) > 0)
        ;
    event.frames_built = ls->frames_built;
    event.output_digest = ls->output_digest;
    event.register_chain = ls->register_chain;
    payload = rc == 0 ? open_record(kept->next, EVENT_MACHINE, event.machine.position, sizeof(event), &error) : NULL;
    if (payload == NULL)
        return rc < 0 ? rc : error;
    memcpy(payload, &event, sizeof(event));
    channel_commit(kept->next->channel);
    part_based(kept->next, event.machine.position);
    ls->transfer_pages = NULL;
    kept->copying = false;
    end_current(kept);
    kept->current = kept->next;
    kept->next = NULL;
    COUNT_SET(kept->recording, true);
    return 0;
}

static bool part_is_due(struct kept_log *kept, uint64_t now_ns)
{
    struct channel_statistics statistics;

    if (kept->current == NULL)
        return true;
    channel_get_statistics(kept->current->channel, &statistics);
    COUNT_SET(kept->part_bytes, statistics.record_bytes);
    if (statistics.record_bytes > kept->options.bytes) {
        lose_current(kept, "it has grown to its size, and no new part could be begun");
        return false;
    }
    return now_ns > kept->current->began_ns + kept->options.span_ns ||
           statistics.record_bytes > kept->options.bytes / 2;
}

int kept_log_stand(struct kept_log *kept)
{
    uint64_t now_ns;
    int rc = 0;

    if (kept == NULL || COUNT_GET(kept->ended))
        return 0;
    now_ns = COUNT_GET(kept->ls->beat_ns);
    if (now_ns >= kept->look_ns) {
        kept->look_ns = now_ns + LOOK_NS;
        if (part_is_due(kept, now_ns) && kept->next == NULL) {
            kept->next = part_begin(kept, now_ns);
            if (kept->next != NULL)
                state_set(kept->next, PART_WANTED);
        }
    }
    if (kept->next == NULL)
        return 0;
    switch (state_of(kept->next)) {
    case PART_FAILED:
        give_up_for_good(kept);
        return 0;
    case PART_OPEN:
        rc = !kept->copying ? base_begin(kept) : kept->few_left ? base_finish(kept) : copy_some(kept, now_ns);
        break;
    case PART_FREE:
    case PART_WANTED:
    case PART_RETIRED:
        return 0;
    }
    if (rc == -EPIPE) {
        give_up_for_good(kept);
        rc = 0;
    } else if (rc == -ENOSPC || rc == -EAGAIN) {
        report_warning("a new part of the kept log does not begin: the guest writes faster than '%s' takes it",
                       kept->options.directory);
        give_up_next(kept);
        kept->look_ns = now_ns + RETRY_NS;
        rc = 0;
    }
    return rc;
}

void kept_log_break(struct kept_log *kept, const char *why)
{
    if (kept == NULL || COUNT_GET(kept->ended))
        return;
    give_up_next(kept); /* what it has of the machine's pages is another machine's */
    if (kept->current != NULL)
        lose_current(kept, why);
}

void kept_log_end(struct kept_log *kept)
{
    if (kept == NULL || COUNT_GET(kept->ended))
        return;
    if (kept->current != NULL)
        report_info("the log is kept in '%s' up to position %llu", kept->options.directory,
                    (unsigned long long)kept->ls->machine.position);
    give_up_next(kept);
    end_current(kept);
    atomic_store_explicit(&kept->ended, true, memory_order_release); /* K3 */
}

/* ---- set-up, and what others ask ---- */

static int find_run(struct kept_log *kept)
{
    const char *directory = kept->options.directory;
    struct kept_file *files;
    struct kept_file newest;
    size_t count;
    int rc;

    if (mkdir(directory, 0700) < 0 && errno != EEXIST) {
        int error = errno;

        report_error("the directory '%s' for the log cannot be made: %s", directory, strerror(error));
        return -error;
    }
    rc = kept_files_list(directory, &files, &count);
    if (rc < 0)
        return rc;
    kept->run = count != 0 ? files[count - 1].run + 1 : 1;
    free(files);
    newest = (struct kept_file){ .run = kept->run };
    delete_old(kept, &newest);
    return 0;
}

/* Signals are the main thread's. */
static int start_writer(struct kept_log *kept)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = -pthread_create(&kept->thread, NULL, writer_run, kept);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    kept->started = rc == 0;
    if (rc < 0)
        report_error("the thread that keeps the log does not start: %s", strerror(-rc));
    return rc;
}

int kept_log_open(struct kept_log **out, struct lockstep *ls, const struct kept_log_options *options,
                  const struct channel_hello *hello)
{
    struct kept_log *kept = calloc(1, sizeof(*kept));
    int rc;

    *out = NULL;
    if (kept == NULL)
        return -ENOMEM;
    kept->ls = ls;
    kept->options = *options;
    kept->hello = *hello;
    kept->buffer_bytes = BUFFER_BYTES_MIN;
    while (kept->buffer_bytes < BUFFER_BYTES_MAX && kept->buffer_bytes * 2 <= options->bytes / 24)
        kept->buffer_bytes *= 2;
    kept->pages = calloc(pages_words(&ls->machine.memory), sizeof(uint64_t));
    rc = kept->pages != NULL ? find_run(kept) : -ENOMEM;
    if (rc == 0) {
        kept->current = part_begin(kept, clock_now_ns());
        rc = part_open(kept, kept->current);
    }
    if (rc == 0) {
        state_set(kept->current, PART_OPEN);
        COUNT_SET(kept->recording, true);
        rc = start_writer(kept);
    }
    if (rc < 0) {
        kept_log_close(kept);
        return rc;
    }
    *out = kept;
    return 0;
}

void kept_log_close(struct kept_log *kept)
{
    if (kept == NULL)
        return;
    if (!COUNT_GET(kept->ended)) {
        give_up_next(kept);
        end_current(kept);
    }
    COUNT_SET(kept->closing, true);
    if (kept->started)
        pthread_join(kept->thread, NULL);
    for (unsigned i = 0; i < 2; i++)
        channel_close(kept->parts[i].channel);
    free(kept->pages);
    free(kept);
}

void kept_log_get_status(const struct kept_log *kept, struct kept_log_status *out)
{
    *out = (struct kept_log_status){
        .recording = COUNT_GET(kept->recording),
        .ended = COUNT_GET(kept->ended),
        .parts = COUNT_GET(kept->begun),
        .breaks = COUNT_GET(kept->breaks),
        .base_pages = COUNT_GET(kept->base_pages),
        .part_bytes = COUNT_GET(kept->part_bytes),
    };
}
