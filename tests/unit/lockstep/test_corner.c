/*
 * A guest that attacks determinism (corner_guest.S) on a real /dev/kvm: recorded and replayed, and as a pair of two
 * processes, with timer, clock, serial line, network and disk interrupting it, kicks at random moments that are not the
 * same in any two runs, and forced syncs. Every register of every position and all RAM are compared by ftvmm itself
 * (--verify); the test compares what the guest prints, too.
 *
 *   test-lockstep-corner [ROUNDS [SEED]]  so many programs, of seeds from SEED on; says which one fails
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/lockstep/corner_host.h"
#include "vmm/kept_files.h"

#define ROUNDS     3u
#define FIRST_SEED 0x5eed2024u

static struct corner_outcome *outcomes; /* of primary and backup */
static char directory[64];

static void say(const char *how, const struct corner_plan *plan)
{
    const struct corner_outcome *a = &outcomes[0], *b = &outcomes[1];

    printf("%s, seed 0x%llx: %llu positions and %llu times all RAM compared; %llu steps, %llu interrupts, %llu faults, "
           "%llu traps, %llu page faults, %llu frames, %llu TSC reads of programs; %llu forced syncs that "
           "sent %llu pages as deltas, %llu and %llu kicks, %llu windows in a shadow\n", how, (unsigned long long)plan->seed,
           (unsigned long long)b->compared,
           (unsigned long long)b->segments, (unsigned long long)a->state[S_STEPS / 8],
           (unsigned long long)a->state[S_IRQS / 8], (unsigned long long)a->state[S_FAULTS / 8],
           (unsigned long long)a->state[S_TRAPS / 8], (unsigned long long)a->state[S_PAGE_FAULTS / 8],
           (unsigned long long)a->frames, (unsigned long long)a->user_tsc_reads, (unsigned long long)a->forced_syncs,
           (unsigned long long)a->forced_delta_pages, (unsigned long long)a->kicks, (unsigned long long)b->kicks,
           (unsigned long long)a->window_steps);
    fflush(stdout);
}

/* What an interrupt found where the two runs parted. */
static void show_difference(void)
{
    uint64_t steps = outcomes[0].state[S_STEPS / 8] < outcomes[1].state[S_STEPS / 8] ? outcomes[0].state[S_STEPS / 8]
                                                                                     : outcomes[1].state[S_STEPS / 8];
    static const char *const names[] = {
        "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "vector", "error", "rip", "cs", "rflags", "rsp", "ss",
    };
    const uint64_t irqs[] = { outcomes[0].state[S_IRQS / 8], outcomes[1].state[S_IRQS / 8] };
    uint64_t most = irqs[0] > irqs[1] ? irqs[0] : irqs[1], least = irqs[0] < irqs[1] ? irqs[0] : irqs[1];

    for (uint64_t i = 0; i < steps && i < CORNER_HISTORY_ROOM; i++) {
        const uint64_t *step = outcomes[0].program[i], *a = outcomes[0].history[i], *b = outcomes[1].history[i];

        if (memcmp(a, b, sizeof(outcomes[0].history[0])) == 0)
            continue;
        printf("step %llu, %s at CPL %u of 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx, left:\n", (unsigned long long)i,
               corner_gadget_names[(uint32_t)step[0]], step[0] >> 32 & STEP_AT_CPL0 ? 0 : 3,
               (unsigned long long)step[1], (unsigned long long)step[2], (unsigned long long)step[3],
               (unsigned long long)step[4], (unsigned long long)step[5], (unsigned long long)step[6]);
        for (unsigned k = 0; k < 16; k++)
            if (a[k] != b[k])
                printf("    word %u %16llx and %16llx\n", k, (unsigned long long)a[k], (unsigned long long)b[k]);
        break;
    }
    /* Older ones of the run that went on are overwritten. */
    for (uint64_t i = most > CORNER_FRAMES_ROOM ? most - CORNER_FRAMES_ROOM : 0; i < least; i++) {
        const uint64_t *a = outcomes[0].frames_seen[i % CORNER_FRAMES_ROOM];
        const uint64_t *b = outcomes[1].frames_seen[i % CORNER_FRAMES_ROOM];

        if (memcmp(a, b, sizeof(names) / sizeof(names[0]) * 8) == 0)
            continue;
        printf("interrupt %llu found:\n", (unsigned long long)i);
        for (unsigned k = 0; k < sizeof(names) / sizeof(names[0]); k++)
            printf("    %-6s %16llx%s\n", names[k], (unsigned long long)a[k], a[k] == b[k] ? "" : " and");
        for (unsigned k = 0; k < sizeof(names) / sizeof(names[0]); k++)
            if (a[k] != b[k])
                printf("    %-6s %16llx in the second run\n", names[k], (unsigned long long)b[k]);
        return;
    }
}

/* The two runs are one. */
static bool alike(const struct corner_plan *plan)
{
    const struct corner_outcome *a = &outcomes[0], *b = &outcomes[1];

    if (a->lost_interrupt)
        puts("an interrupt was lost");
    return a->ended && b->ended && !a->lost_interrupt && !b->lost_interrupt && a->positions == b->positions &&
           a->ram_digest == b->ram_digest &&
           a->forced_syncs == b->forced_syncs && a->frames == b->frames && strcmp(a->said, b->said) == 0 &&
           memcmp(a->state, b->state, sizeof(a->state)) == 0 && a->state[S_FINISHED / 8] == 1 &&
           a->state[S_TSC_BACK / 8] == 0 && a->state[S_STEPS / 8] >= plan->steps && b->compared == b->positions;
}

/* The backup has kept its log, and begun it anew again and again: from its last base the guest comes to the same end,
 * without a copy of the disk. */
static bool replay_kept(const struct corner_plan *plan, const char *keep)
{
    const struct corner_outcome *a = &outcomes[0], *b = &outcomes[1];
    char path[KEPT_PATH_BYTES], address[KEPT_PATH_BYTES + 8];
    struct corner_run run = { .role = ROLE_BACKUP, .channel = address, .plan = *plan, .slowness = corner_slowness(),
                              .directory = directory, .verify = true, .peer_timeout_ns = 10 * NS_PER_S };
    uint64_t parts = outcomes[1].parts;
    char command[128];
    bool good = kept_files_find(keep, 0, path, &run.replays_kept) == 0 && run.replays_kept;

    snprintf(address, sizeof(address), "file:%s", path);
    good = good && corner_finish(corner_start(&run, &outcomes[1]));
    printf("kept log of %llu parts: %llu positions compared from the last one's beginning\n", (unsigned long long)parts,
           (unsigned long long)b->compared);
    snprintf(command, sizeof(command), "rm -rf '%s'", keep);
    return system(command) == 0 && good && parts > 1 && b->ended && a->positions == b->positions &&
           a->ram_digest == b->ram_digest && memcmp(a->state, b->state, sizeof(a->state)) == 0;
}

static bool run_twice(const struct corner_plan *plan, bool as_pair)
{
    char keep[80];
    const struct corner_run run = { .plan = *plan, .slowness = corner_slowness(), .directory = directory, .verify = true,
                                    .peer_timeout_ns = 10 * NS_PER_S, .keep = as_pair ? keep : NULL };
    bool good;

    snprintf(keep, sizeof(keep), "%s/kept", directory);
    good = as_pair ? corner_pair(run, outcomes) : corner_record_and_replay(run, outcomes);
    say(as_pair ? "pair" : "record and replay", plan);
    return good && alike(plan) && (!as_pair || replay_kept(plan, keep));
}

static struct corner_plan plan_of(uint64_t seed)
{
    uint64_t random = seed;
    const char *only = getenv("FTVMM_CORNER_ONLY");
    const char *steps = getenv("FTVMM_CORNER_STEPS");
    struct corner_plan plan = {
        .seed = seed, .steps = steps ? (unsigned)atoi(steps) : 200 + (unsigned)(corner_random(&random) % 600),
        .whole_cpu = corner_whole_cpu(),
        .timer_mask = (uint8_t)(1u << corner_random(&random) % 4) - 1 + (1u << 1),
    };

    for (unsigned i = 0; only != NULL && corner_gadget_names[i] != NULL; i++)
        if (strstr(only, corner_gadget_names[i]) != NULL)
            plan.only |= UINT64_C(1) << i;
    return plan;
}

int main(int argc, char **argv)
{
    const char *given = getenv("FTVMM_TEST_SEED");
    unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : ROUNDS;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 0) : given != NULL ? strtoull(given, NULL, 0) : FIRST_SEED;
    unsigned failed = 0;
    char command[96];

    if (corner_host_check() != 0)
        return 77;
    strcpy(directory, "/tmp/ftvmm-corner-XXXXXX");
    outcomes = corner_shared(2 * sizeof(*outcomes));
    if (mkdtemp(directory) == NULL)
        return 1;
    for (unsigned i = 0; i < rounds; i++) {
        struct corner_plan plan = plan_of(first + i);

        if (run_twice(&plan, i % 3 == 2))
            continue;
        show_difference();
        printf("FAIL: repeat it with: %s %u 0x%llx\n", argv[0], i % 3 + 1, (unsigned long long)(first + i - i % 3));
        failed++;
    }
    printf("%u of %u failed\n", failed, rounds);
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command) != 0 || failed != 0;
}
