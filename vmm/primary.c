/*
 * The primary: at each position it takes the inputs that wait, logs each, applies each, and goes on. A machine
 * that runs alone does the same, and its log is nowhere. The mirror image is backup.c.
 */
#include "vmm/lockstep.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/report.h"

/* Virtual time is logged anew for a guest that looks at a clock if it is older than this. Finer than any
 * guest can tell through an exit, coarse enough to spare records in a burst of reads. */
#define TIME_GRANULARITY_NS (10 * NS_PER_US - TIME_STEP_NS)
/* Looks at the clock wait so long to be logged together: the backup lags by as much, unless something else is logged. */
#define TIMES_NS NS_PER_MS
/* A primary that logs nothing tells the backup this often how far it has come. */
#define PROGRESS_NS NS_PER_MS
/* A guest that computes so long, found out by a kick, is brought to a place if there is a clock for it: the backup does
 * not move before, and would lag by as much. */
#define PLACE_NS (50 * NS_PER_MS)
/* How long the last record may take to be acknowledged before the primary leaves without it. */
#define FINISH_NS (5 * NS_PER_S)
/* A rest is slept in steps, each of them a sign of life and a look whether to go on. */
#define REST_STEP_NS NS_PER_MS
/* How long a guest whose frames do not leave is made to wait for them. */
#define HOLD_PATIENCE_NS NS_PER_S

static uint64_t virtual_now_ns(const struct lockstep *ls)
{
    return (clock_now_ns() + (uint64_t)ls->clock_offset_ns) / TIME_STEP_NS * TIME_STEP_NS;
}

/* 0 where the later moment was read first. */
static uint64_t elapsed_ns(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? to_ns - from_ns : 0;
}

uint64_t primary_still_here(struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns();

    COUNT_SET(ls->beat_ns, now_ns);
    COUNT_SET(ls->arrived_ns, now_ns);
    return now_ns;
}

/* The record being built: `record` describes it for lockstep_apply, `nowhere` holds it when there is no log. */
static struct {
    struct channel_record record;
    bool in_ring;
    _Alignas(8) uint8_t nowhere[CHANNEL_PAYLOAD_MAX_BYTES];
} building; /* the machine thread's own */

void *primary_log_begin(struct lockstep *ls, enum event_kind kind, uint64_t position, size_t bytes)
{
    void *payload = building.nowhere;
    uint64_t blocked_ns = 0;
    bool full = false;

    if (kind != EVENT_TIME)
        primary_log_times_with_next(ls);
    building.in_ring = false;
    while (lockstep_role_now(ls) == ROLE_PRIMARY) {
        int rc = channel_reserve(ls->channel, (uint16_t)kind, position, bytes, &payload);

        if (rc == 0) {
            building.in_ring = true;
            break;
        }
        if (rc == -EMSGSIZE)
            report_bug("a %s record of %zu bytes does not fit the log", event_name((uint16_t)kind), bytes);
        /* Full: the backup lags. Broken: the I/O thread asks the arbiter, and then we are alone or lost. Either
         * way this thread lives, and says so. */
        payload = building.nowhere;
        if (rc == -EPIPE && ls->arbiter == NULL) {
            report_error("the log cannot be written any more; the recording ends here");
            ls->failure = -EIO;
        }
        if (blocked_ns == 0) {
            blocked_ns = clock_now_ns();
            full = rc == -EAGAIN;
        }
        if (COUNT_GET(ls->stop_requested) && clock_now_ns() > blocked_ns + FINISH_NS) {
            report_warning("stopped while the log takes nothing: the backup may go live");
            ls->failure = -ECANCELED;
        }
        if (COUNT_GET(ls->lost_arbitration) || ls->failure)
            break;
        clock_sleep_ns(50 * NS_PER_US);
        primary_still_here(ls);
    }
    if (blocked_ns != 0) {
        uint64_t now_ns = clock_now_ns();

        if (full) {
            COUNT_ADD(ls->ring_full_stalls, 1);
            COUNT_ADD(ls->ring_full_ns, now_ns - blocked_ns);
        }
        pace_rest_skip(&ls->rest, now_ns);
    }
    building.record = (struct channel_record){
        .position = position, .kind = (uint16_t)kind, .bytes = (uint32_t)bytes, .payload = payload
    };
    return payload;
}

uint64_t primary_log_end(struct lockstep *ls)
{
    /* P4 pairs P3 in io_thread.c: what the wish is for has been read. */
    bool probed = building.in_ring && atomic_load_explicit(&ls->probe_wanted, memory_order_acquire);
    uint64_t probe_ns = probed ? clock_now_ns() : 0;

    if (building.in_ring)
        building.record.lsn = channel_commit(ls->channel);
    ls->logged_position = building.record.position;
    ls->logged_ns = clock_now_ns();
    if (probed) {
        COUNT_SET(ls->probe_wanted, false);
        COUNT_SET(ls->probe_ns, probe_ns);
        /* P1 pairs P2 in io_thread.c: the time before the LSN. */
        atomic_store_explicit(&ls->probe_lsn, building.record.lsn, memory_order_release);
    }
    return building.record.lsn;
}

/* One input: logged, then applied. */
static void primary_input(struct lockstep *ls, enum event_kind kind, const void *bytes, size_t count)
{
    void *payload = primary_log_begin(ls, kind, ls->machine.position, count);

    memcpy(payload, bytes, count);
    primary_log_end(ls);
    /* Applied from the caller's copy: the ring's may be gone once the backup has consumed it. */
    building.record.payload = bytes;
    if (lockstep_apply(ls, &building.record) < 0)
        ls->failure = -EIO;
}

static void log_times(struct lockstep *ls, bool with_next)
{
    struct time_pack *times = &ls->times;
    void *payload;

    if (times->count == 0)
        return;
    if (lockstep_role_now(ls) == ROLE_PRIMARY) {
        payload = primary_log_begin(ls, EVENT_TIME, times->first_position, times->bytes);
        memcpy(payload, times->payload, times->bytes);
        if (with_next && building.in_ring)
            (void)channel_commit_with_next(ls->channel);
        else
            primary_log_end(ls);
        ls->logged_position = times->last_position;
        COUNT_ADD(ls->time_records, 1);
        COUNT_ADD(ls->time_bytes, channel_frame_bytes((uint32_t)times->bytes));
    }
    time_pack_clear(times);
}

void primary_log_times(struct lockstep *ls)
{
    log_times(ls, false);
}

void primary_log_times_with_next(struct lockstep *ls)
{
    log_times(ls, true);
}

/* Applied at once, and logged a little later: nothing leaves this host that depends on it before it is in the log. */
static void input_time(struct lockstep *ls, uint64_t now_ns)
{
    const struct event_time time = { .time_ns = now_ns };
    const struct channel_record look = { .kind = EVENT_TIME, .bytes = sizeof(time), .payload = &time };
    struct time_pack *times = &ls->times;

    if (lockstep_role_now(ls) == ROLE_PRIMARY) {
        if (!time_pack_add(times, ls->machine.position, now_ns)) {
            primary_log_times(ls);
            (void)time_pack_add(times, ls->machine.position, now_ns);
        }
        if (now_ns >= times->first_ns + TIMES_NS)
            primary_log_times(ls);
    }
    if (lockstep_apply(ls, &look) < 0)
        ls->failure = -EIO;
}

/* The next frame that arrived, if there is one and the guest has room for it. */
static bool input_frame(struct lockstep *ls)
{
    static struct { /* the machine thread's own */
        struct event_frame head;
        uint8_t bytes[EVENT_FRAME_MAX_BYTES];
    } input;
    const void *frame;
    size_t bytes;
    bool checksum_right;

    frame = net_receive_peek(ls->net, &bytes, &checksum_right);
    if (frame == NULL || !machine_can_take_frame(&ls->machine, bytes))
        return false;
    ls->taken_ns = clock_now_ns();
    histogram_record(&ls->steps.input_wait_ns, elapsed_ns(net_receive_since_ns(ls->net), ls->taken_ns));
    input.head.flags = checksum_right ? EVENT_FRAME_CHECKSUM_RIGHT : 0;
    memcpy(input.bytes, frame, bytes);
    net_receive_pop(ls->net);
    primary_input(ls, EVENT_FRAME, &input, sizeof(input.head) + bytes);
    return true;
}

bool primary_all_has_left(const struct lockstep *ls)
{
    const struct virtio_blk_state *blk = &ls->machine.blk.state;

    return (ls->net == NULL || net_sent_count(ls->net) == net_held_count(ls->net)) && blk->completed == blk->submitted;
}

/* What the disk has answered; its data travel only if the backup cannot read them for itself. */
static void input_disk(struct lockstep *ls, const struct disk_result *result)
{
    struct event_disk disk = {
        .number = result->number,
        .digest = result->digest,
        .status = result->status,
        .bytes = disk_mode_of(ls->disk) == DISK_SHARED ? result->read_bytes : 0,
    };
    uint8_t *payload = primary_log_begin(ls, EVENT_DISK, ls->machine.position, sizeof(disk) + disk.bytes);

    memcpy(payload, &disk, sizeof(disk));
    memcpy(payload + sizeof(disk), disk_data(ls->disk, result->number), disk.bytes);
    primary_log_end(ls);
    building.record.payload = &disk; /* as in primary_input; the data are in the disk's buffer */
    if (lockstep_apply(ls, &building.record) < 0)
        ls->failure = -EIO;
}

void primary_log_time(struct lockstep *ls)
{
    input_time(ls, virtual_now_ns(ls));
}

bool primary_take_inputs(struct lockstep *ls)
{
    struct machine *machine = &ls->machine;
    uint64_t now_ns = virtual_now_ns(ls);
    struct disk_result answer;
    bool any = false;

    if (now_ns >= machine_deadline_ns(machine) ||
        (machine_reads_time(machine) && now_ns > machine->time_ns + TIME_GRANULARITY_NS)) {
        input_time(ls, now_ns);
        any = true;
    }
    if (ls->net != NULL && net_link_up(ls->net) != machine->net.state.link_up) {
        struct event_link link = { .up = net_link_up(ls->net) };

        primary_input(ls, EVENT_LINK, &link, sizeof(link));
        any = true;
    }
    while (ls->net != NULL && input_frame(ls))
        any = true;
    while (ls->disk != NULL && !ls->failure && disk_result(ls->disk, &answer)) {
        input_disk(ls, &answer);
        any = true;
    }
    if (!byte_ring_empty(ls->console_in) && machine_console_room(machine) > 0) {
        uint8_t typed[16];
        size_t room = machine_console_room(machine);
        size_t count = byte_ring_take(ls->console_in, typed, room < sizeof(typed) ? room : sizeof(typed));

        if (count > 0) {
            primary_input(ls, EVENT_CONSOLE, typed, count);
            any = true;
        }
    }
    return any;
}

static void publish(struct lockstep *ls)
{
    uint64_t deadline_ns = machine_deadline_ns(&ls->machine);
    size_t bytes = VIRTIO_NET_FRAME_BYTES_MIN; /* of the frame that waits, or of one that may come */
    bool ignored;

    if (ls->net != NULL)
        (void)net_receive_peek(ls->net, &bytes, &ignored);
    COUNT_SET(ls->deadline_ns, deadline_ns == UINT64_MAX ? UINT64_MAX : deadline_ns - (uint64_t)ls->clock_offset_ns);
    COUNT_SET(ls->taking_frames, ls->net != NULL && machine_can_take_frame(&ls->machine, bytes));
    COUNT_SET(ls->card_sent_dropped, ls->machine.net.state.sent_dropped_frames);
    COUNT_SET(ls->card_received_dropped, ls->machine.net.state.received_dropped_frames);
}

static void log_progress(struct lockstep *ls)
{
    struct event_progress *progress =
        primary_log_begin(ls, EVENT_PROGRESS, ls->machine.position, sizeof(*progress));

    progress->frames_sent = lockstep_frames_sent(ls);
    progress->register_chain = ls->register_chain;
    primary_log_end(ls);
}

/* Rests in proportion to what the guest just ran, so that a lagging backup catches up (pace.h), or a transfer gets ahead
 * of what the guest writes. Nothing of it is
 * seen by the log: the inputs of this position are taken, and their time read, when the rest is over. */
static void rest(struct lockstep *ls)
{
    unsigned permille = COUNT_GET(ls->pace_permille);
    uint64_t began_ns, now_ns, due_ns;

    if (permille == 0) {
        ls->rest = (struct pace_rest){ 0 };
        return;
    }
    began_ns = now_ns = clock_now_ns();
    due_ns = pace_rest_due(&ls->rest, permille, began_ns);
    if (due_ns == 0)
        return;
    primary_log_times(ls);
    while (now_ns < began_ns + due_ns && !COUNT_GET(ls->stop_requested) && !COUNT_GET(ls->lost_arbitration) &&
           COUNT_GET(ls->pace_permille) != 0) {
        uint64_t left_ns = began_ns + due_ns - now_ns;

        clock_sleep_ns(left_ns < REST_STEP_NS ? left_ns : REST_STEP_NS);
        now_ns = primary_still_here(ls);
    }
    pace_rest_done(&ls->rest, began_ns, now_ns);
    COUNT_ADD(ls->rested_ns, now_ns - began_ns);
}

/*
 * Waits while more than half of the hold queue is full: what this position sends shall have room, and so shall it on
 * the backup, which learns later than we what has gone. The guest sees a position that took long, no lost frame. But
 * where nothing has left for HOLD_PATIENCE_NS (no ack comes, or the port has lost its link) the guest goes on, and what
 * then has no room is lost, until something leaves again.
 */
static void wait_for_hold(struct lockstep *ls)
{
    uint64_t began_ns, now_ns, moved_ns, sent_count;

    if (ls->net == NULL || !net_hold_crowded(ls->net) || net_sent_count(ls->net) + 1 == ls->stuck_sent_count)
        return;
    began_ns = now_ns = moved_ns = clock_now_ns();
    sent_count = net_sent_count(ls->net);
    while (net_hold_crowded(ls->net) && !COUNT_GET(ls->stop_requested) && !COUNT_GET(ls->lost_arbitration)) {
        if (net_sent_count(ls->net) != sent_count) {
            sent_count = net_sent_count(ls->net);
            moved_ns = now_ns;
        } else if (now_ns > moved_ns + HOLD_PATIENCE_NS) {
            ls->stuck_sent_count = sent_count + 1;
            break;
        }
        clock_sleep_ns(50 * NS_PER_US);
        now_ns = primary_still_here(ls);
    }
    COUNT_ADD(ls->hold_full_stalls, 1);
    COUNT_ADD(ls->hold_full_ns, now_ns - began_ns);
    pace_rest_skip(&ls->rest, now_ns);
}

/* Who is alone may be about to get a backup; who has one may have to send it the machine again. */
static enum lockstep_step serve_protector(struct lockstep *ls)
{
    int rc = 0;

    if (lockstep_role_now(ls) == ROLE_PRIMARY) {
        rc = heal_serve(ls);
    } else if (ls->protector != NULL) {
        heal_drop(ls);
        rc = protect_serve(ls->protector);
    }
    if (rc >= 0)
        return rc > 0 ? STEP_SYNCED : STEP_RUN;
    ls->failure = rc;
    return STEP_END;
}

enum lockstep_step primary_before_run(struct lockstep *ls)
{
    publish(ls);
    if (COUNT_GET(ls->lost_arbitration)) {
        ls->failure = -ECANCELED;
        return STEP_END;
    }
    return serve_protector(ls);
}

enum lockstep_step primary_interrupted(struct lockstep *ls)
{
    enum lockstep_step step = serve_protector(ls);
    uint64_t now_ns = clock_now_ns();
    bool overdue;
    int rc;

    if (step != STEP_RUN)
        return step;
    overdue = lockstep_input_overdue(ls, now_ns);
    if (!overdue && (ls->counter == NULL || now_ns < COUNT_GET(ls->arrived_ns) + PLACE_NS))
        return STEP_RUN;
    rc = place_log(ls);
    if (rc == -EBUSY || (rc == -EAGAIN && !overdue))
        return STEP_RUN; /* the next kick may find it elsewhere */
    if (rc == -EAGAIN)
        rc = forced_sync_log(ls);
    if (rc < 0) /* not before it is over: with a failure set, nothing waits for room in the log */
        ls->failure = rc;
    return ls->failure ? STEP_END : STEP_SYNCED;
}

void primary_arrive(struct lockstep *ls)
{
    bool any;

    if (ls->verify != NULL && lockstep_role_now(ls) == ROLE_PRIMARY)
        ls->failure = verify_log(ls->verify, ls);
    if (ls->failure || ls->position_closed) /* closed: went live in the midst of this position */
        return;
    if (ls->failure == 0)
        ls->failure = forced_sync_forget(ls);
    rest(ls);
    wait_for_hold(ls);
    any = primary_take_inputs(ls);
    if (COUNT_GET(ls->stop_requested) && !ls->machine.ended)
        ls->machine.ended = EVENT_END_STOPPED;
    if (handover_state_now(&ls->handover) == HANDOVER_ASKED && !ls->failure) {
        handover_give(ls);
        return;
    }
    if (!any && lockstep_role_now(ls) == ROLE_PRIMARY && clock_now_ns() > ls->logged_ns + PROGRESS_NS)
        log_progress(ls);
}

/* The guest has sent at this exit: how long it took for that, and we for the exit. */
static void measure_output(struct lockstep *ls)
{
    uint64_t arrived_ns = COUNT_GET(ls->arrived_ns);

    if (ls->taken_ns != 0)
        histogram_record(&ls->steps.guest_ns, elapsed_ns(ls->taken_ns, arrived_ns));
    ls->taken_ns = 0;
    histogram_record(&ls->steps.exit_ns, elapsed_ns(arrived_ns, ls->output_ns));
}

static void log_output(struct lockstep *ls)
{
    struct event_output *output = primary_log_begin(ls, EVENT_OUTPUT, ls->machine.position, sizeof(*output));

    output->frames_built = (uint32_t)ls->frames_built;
    output->frames_held = (uint32_t)(ls->frames_built - lockstep_frames_sent(ls));
    output->digest = ls->output_digest;
    output->register_chain = ls->register_chain;
    primary_log_end(ls);
    if (building.in_ring && building.record.lsn != ls->output_lsn)
        report_bug("output waits for LSN %llu but its marker has %llu", (unsigned long long)ls->output_lsn,
                   (unsigned long long)building.record.lsn);
    if (ls->output_ns != 0)
        histogram_record(&ls->steps.append_ns, elapsed_ns(ls->output_ns, ls->logged_ns));
    COUNT_ADD(ls->output_records, 1);
}

void primary_emulated(struct lockstep *ls)
{
    if (ls->output_ns != 0)
        measure_output(ls);
    if (ls->output_pending && lockstep_role_now(ls) == ROLE_PRIMARY)
        log_output(ls);
    if (ls->output_ns != 0)
        doorbell_ring(&ls->output_bell);
}

/* The guest has halted: waits for an input that wakes it. Each is logged at this position. */
void primary_sleep(struct lockstep *ls)
{
    primary_log_times(ls);
    if (lockstep_role_now(ls) == ROLE_PRIMARY && ls->logged_position < ls->machine.position)
        log_progress(ls); /* the backup can come here too, and be ready */
    while (!ls->failure && machine_sleeps(&ls->machine)) {
        uint32_t heard = doorbell_heard(&ls->input_bell);
        uint64_t deadline_ns, now_ns;

        COUNT_SET(ls->beat_ns, clock_now_ns());
        if (serve_protector(ls) == STEP_SYNCED) { /* halted as before, at another position */
            COUNT_SET(ls->positions, ls->machine.position);
            lockstep_chain_registers(ls);
        }
        if (primary_take_inputs(ls))
            continue;
        if (COUNT_GET(ls->lost_arbitration))
            ls->failure = -ECANCELED;
        if (COUNT_GET(ls->stop_requested))
            ls->machine.ended = EVENT_END_STOPPED;
        if (handover_state_now(&ls->handover) == HANDOVER_ASKED && !ls->failure)
            handover_give(ls);
        publish(ls);
        primary_log_times(ls);
        deadline_ns = machine_deadline_ns(&ls->machine);
        now_ns = virtual_now_ns(ls);
        if (!ls->failure && machine_sleeps(&ls->machine) && deadline_ns > now_ns) {
            uint64_t wait_ns = deadline_ns - now_ns;

            if (wait_ns > 20 * NS_PER_MS)
                wait_ns = 20 * NS_PER_MS; /* to beat, and to notice a stop */
            doorbell_sleep(&ls->input_bell, heard, wait_ns);
        }
    }
    pace_rest_skip(&ls->rest, primary_still_here(ls));
}

int primary_finish(struct lockstep *ls)
{
    struct event_end *end;
    struct vcpu_state state;
    uint64_t ram_digest = lockstep_ram_digest(ls);
    uint64_t give_up_ns = clock_now_ns() + FINISH_NS;
    uint64_t lsn;

    COUNT_SET(ls->end_ram_digest, ram_digest);
    if (lockstep_role_now(ls) != ROLE_PRIMARY)
        return 0;
    if (vcpu_save(&ls->machine.vcpu, &state) < 0)
        return -EIO;
    end = primary_log_begin(ls, EVENT_END, ls->machine.position, sizeof(*end));
    *end = (struct event_end){
        .ram_digest = ram_digest, .vcpu_digest = vcpu_state_digest(&state), .reason = ls->machine.ended
    };
    primary_log_end(ls);
    lsn = building.record.lsn;
    while (channel_acked_lsn(ls->channel) < lsn && lockstep_role_now(ls) == ROLE_PRIMARY &&
           clock_now_ns() < give_up_ns) {
        COUNT_SET(ls->beat_ns, clock_now_ns());
        clock_sleep_ns(NS_PER_MS);
    }
    return 0;
}
