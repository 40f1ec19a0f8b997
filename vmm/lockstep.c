/* The one loop that both roles run, and the one function by which a record acts on the machine. */
#include "vmm/lockstep.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/report.h"
#include "vmm/ram_digest.h"

/* The most that a forced sync puts off the next one: one of all RAM may take a second. */
#define FORCED_REST_MOST_NS (50 * NS_PER_MS)

const char *role_name(enum lockstep_role role)
{
    switch (role) {
    case ROLE_ALONE: return "alone";
    case ROLE_PRIMARY: return "primary";
    case ROLE_BACKUP: return "backup";
    }
    return "unknown";
}

static bool is_backup(const struct lockstep *ls)
{
    return lockstep_role_now(ls) == ROLE_BACKUP;
}

void lockstep_wake(struct lockstep *ls)
{
    doorbell_ring(&ls->input_bell);
}

/* A host that is slow at forced syncs would do nothing else for a guest that needs them: it gets as long as they take. */
static uint64_t undisturbed_ns(const struct lockstep *ls)
{
    uint64_t took_ns = COUNT_GET(ls->forced_took_ns);

    if (took_ns > FORCED_REST_MOST_NS)
        took_ns = FORCED_REST_MOST_NS;
    return took_ns > ls->options.max_input_delay_ns ? took_ns : ls->options.max_input_delay_ns;
}

bool lockstep_input_overdue(const struct lockstep *ls, uint64_t now_ns)
{
    uint64_t delay_ns = ls->options.max_input_delay_ns;
    uint64_t deadline_ns = COUNT_GET(ls->deadline_ns);

    if (now_ns < COUNT_GET(ls->arrived_ns) + undisturbed_ns(ls))
        return false;
    if (deadline_ns != UINT64_MAX && now_ns > deadline_ns + delay_ns)
        return true;
    if (COUNT_GET(ls->stop_requested) || !byte_ring_empty(ls->console_in) ||
        handover_state_now(&ls->handover) == HANDOVER_ASKED)
        return true;
    if (ls->disk != NULL && disk_result_waiting(ls->disk))
        return true;
    return ls->net != NULL && COUNT_GET(ls->taking_frames) && net_receive_waiting(ls->net);
}

uint64_t lockstep_hold_output(struct lockstep *ls)
{
    if (!ls->output_pending) {
        ls->output_pending = true;
        primary_log_times_with_next(ls); /* they take an LSN */
        ls->output_lsn = lockstep_role_now(ls) == ROLE_PRIMARY ? channel_committed_lsn(ls->channel) + 1 : 0;
    }
    return ls->output_lsn;
}

uint64_t lockstep_frames_sent(const struct lockstep *ls)
{
    return ls->frames_before + (ls->net != NULL ? net_sent_count(ls->net) : 0);
}

void lockstep_chain_registers(struct lockstep *ls)
{
    if (ls->registers != NULL)
        register_ring_put(ls->registers, ls->machine.position, vcpu_regs(&ls->machine.vcpu));
    ls->register_chain = XXH3_64bits_withSeed(vcpu_regs(&ls->machine.vcpu), sizeof(struct kvm_regs), ls->register_chain);
}

bool lockstep_is_protected(const struct lockstep *ls)
{
    return lockstep_role_now(ls) == ROLE_PRIMARY && ls->arbiter != NULL && COUNT_GET(ls->followed) &&
           !COUNT_GET(ls->peer_lost) && !COUNT_GET(ls->lost_arbitration);
}

void lockstep_frame_out(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
    struct lockstep *ls = ctx;
    uint64_t lsn = lockstep_hold_output(ls), now_ns = clock_now_ns();

    if (ls->output_ns == 0)
        ls->output_ns = now_ns;
    ls->frames_built++;
    ls->output_digest = XXH3_64bits_withSeed(frame, bytes, ls->output_digest);
    ls->output_digest = XXH3_64bits_withSeed(offload, sizeof(*offload), ls->output_digest);
    if (ls->net != NULL)
        (void)net_hold(ls->net, frame, bytes, offload, lsn, now_ns); /* full: a lost frame, counted there */
}

void lockstep_filter_out(void *ctx, const struct net_filter *filter)
{
    struct lockstep *ls = ctx;

    if (ls->net != NULL) /* not open yet, the first time: then it has the card's own address, as this filter */
        net_set_filter(ls->net, filter);
}

void lockstep_console_out(void *ctx, uint8_t byte)
{
    struct lockstep *ls = ctx;

    if (!is_backup(ls))
        (void)byte_ring_put(ls->console_out, byte); /* full: nobody reads the console */
}

int lockstep_apply(struct lockstep *ls, const struct channel_record *record)
{
    const struct event_time *time = record->payload;
    const struct event_frame *frame = record->payload;

    switch ((enum event_kind)record->kind) {
    case EVENT_TIME:
        machine_apply_time(&ls->machine, time->time_ns);
        COUNT_ADD(ls->time_inputs, 1);
        COUNT_SET(ls->virtual_ns, time->time_ns);
        return 0;
    case EVENT_FRAME:
        machine_apply_frame(&ls->machine, (const uint8_t *)(frame + 1), record->bytes - sizeof(*frame),
                            frame->flags & EVENT_FRAME_CHECKSUM_RIGHT);
        COUNT_ADD(ls->frame_records, 1);
        return 0;
    case EVENT_LINK:
        machine_apply_link(&ls->machine, ((const struct event_link *)record->payload)->up);
        return 0;
    case EVENT_CONSOLE:
        machine_apply_console(&ls->machine, record->payload, record->bytes);
        return 0;
    case EVENT_DISK:
        COUNT_ADD(ls->disk_records, 1);
        return lockstep_disk_apply(ls, record);
    case EVENT_VERIFY:
    case EVENT_SEGMENT_PAGES:
    case EVENT_SEGMENT:
        return verify_compare(ls->verify, ls, record);
    case EVENT_START:
    case EVENT_OUTPUT:
    case EVENT_PROGRESS:
    case EVENT_PAGES:
    case EVENT_SYNC:
    case EVENT_END:
    case EVENT_HANDOVER:
    case EVENT_SECTORS:
    case EVENT_MACHINE:
    case EVENT_PLACE:
    case EVENT_STRETCH:
        break;
    }
    report_bug("a %s record is not applied but followed", event_name(record->kind));
}

uint64_t lockstep_ram_digest(struct lockstep *ls)
{
    const struct guest_memory *memory = &ls->machine.memory;
    uint64_t sum = 0;

    for (uint64_t page = 0; page < memory->bytes / GUEST_PAGE_BYTES; page++) {
        if (page % 256 == 0)
            COUNT_SET(ls->beat_ns, clock_now_ns());
        sum += page_digest(memory->base + page * GUEST_PAGE_BYTES, page);
    }
    return sum;
}

static enum lockstep_step before_run(struct lockstep *ls)
{
    if (is_backup(ls)) {
        enum lockstep_step step = backup_before_run(ls);

        if (step != STEP_RUN || is_backup(ls))
            return step;
    } /* not else: it may just have gone live */
    return primary_before_run(ls);
}

static enum lockstep_step run(struct lockstep *ls)
{
    for (;;) {
        uint64_t entered_ns = clock_now_ns(), left_ns;
        enum vcpu_exit exit = machine_run(&ls->machine);

        left_ns = clock_now_ns();
        COUNT_SET(ls->beat_ns, left_ns);
        COUNT_SET(ls->run_ns, COUNT_GET(ls->run_ns) + left_ns - entered_ns); /* one writer: no locked instruction */
        if (exit == VCPU_EXIT_FAILED) {
            ls->failure = -EIO;
            return STEP_END;
        }
        if (exit != VCPU_EXIT_INTERRUPTED)
            return STEP_RUN;
        if (ls->gdb != NULL && ls->machine.vcpu.at_breakpoint && !gdb_stub_break(ls->gdb, ls))
            return STEP_END;
        if (COUNT_GET(ls->lost_arbitration)) {
            ls->failure = -ECANCELED;
            return STEP_END;
        }
        /* A backup is on its way to a position that the primary has reached: nothing can be due before it. */
        if (!is_backup(ls)) {
            enum lockstep_step step = primary_interrupted(ls);
            if (step != STEP_RUN)
                return step;
        }
    }
}

static void arrive(struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns();

    COUNT_SET(ls->arrived_ns, now_ns);
    COUNT_SET(ls->beat_ns, now_ns);
    COUNT_SET(ls->positions, ls->machine.position);
    if (machine_reads_time(&ls->machine))
        COUNT_ADD(ls->clock_reads, 1);
    ls->position_closed = false;
    ls->position_open = true;
    ls->output_pending = false;
    lockstep_chain_registers(ls);
    ls->output_ns = 0;
    if (ls->counter != NULL)
        place_arrived(ls);
    if (ls->failure)
        return;
    if (is_backup(ls))
        backup_arrive(ls);
    if (!is_backup(ls) && !ls->failure) /* also when the backup has just gone live here */
        primary_arrive(ls);
}

static void emulated(struct lockstep *ls)
{
    if (is_backup(ls))
        backup_emulated(ls);
    else
        primary_emulated(ls);
}

static void sleep_at_position(struct lockstep *ls)
{
    if (!is_backup(ls)) {
        primary_sleep(ls);
        return;
    }
    report_error("the machines differ: at position %llu the guest sleeps here, and was woken at the primary",
                 (unsigned long long)ls->machine.position);
    ls->failure = -EILSEQ;
}

/* --until: the position is done, and what follows would be the next one. */
static bool stops_here(struct lockstep *ls)
{
    if (ls->gdb != NULL)
        return !gdb_stub_go_on(ls->gdb, ls);
    return ls->options.until_position != 0 && ls->machine.position >= ls->options.until_position;
}

/* From position to position, until the guest ends or something stops it. */
static void run_on(struct lockstep *ls)
{
    struct machine *machine = &ls->machine;

    while (!ls->failure && !stops_here(ls)) {
        enum lockstep_step step = ls->stands_at_position ? STEP_SYNCED : before_run(ls);

        ls->stands_at_position = false;
        if (step == STEP_RUN)
            step = run(ls);
        if (step == STEP_END)
            break;
        arrive(ls);
        if (!ls->failure && !machine->ended)
            ls->failure = machine_emulate(machine);
        if (ls->failure)
            break;
        emulated(ls);
        if (!ls->failure && machine_sleeps(machine))
            sleep_at_position(ls);
        if (ls->failure)
            break;
        if (machine->ended) {
            ls->failure = is_backup(ls) ? backup_finish(ls) : primary_finish(ls);
            COUNT_SET(ls->ended, machine->ended);
            break;
        }
        if (machine_resume(machine) < 0)
            ls->failure = -EIO;
        ls->position_open = false;
    }
}

int lockstep_run(struct lockstep *ls)
{
    COUNT_SET(ls->running, true);
    do
        run_on(ls);
    while (ls->failure == -EILSEQ && !COUNT_GET(ls->lost_arbitration) && is_backup(ls) &&
           (ls->failure = heal_follow(ls)) == 0);
    if (COUNT_GET(ls->lost_arbitration))
        ls->failure = -ECANCELED;
    if (ls->gdb != NULL)
        gdb_stub_end(ls->gdb, ls);
    atomic_store_explicit(&ls->finished, true, memory_order_release);
    return ls->failure;
}
