/*
 * A pair of processes with a disk, one of which is killed: the real positions, link, arbiter, I/O thread, device and
 * disk of both roles. Only the guest's CPU is missing: a driver in C takes its place, which sees nothing but guest
 * memory and the card, and so does the same on both sides. It checks what it reads; what it has flushed it reports to
 * the outside, and the outside hears it when the log that led to it is acked. Whatever was heard must be on the
 * survivor's disk.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "tests/unit/cmocka_prelude.h"
#include "vmm/io_thread.h"

#define SECTORS     512u
#define RAM_BYTES   (1u << 20)
#define SLOTS       16u
#define DATA_BYTES  4096u
#define WRITES_MAX  200000u
#define REPORTS_MAX 4096u
#define LIMIT_NS    (60 * NS_PER_S)
#define KILL_AFTER  400u /* reports heard */
#define GO_ON       400u /* further ones, of the survivor */

/* In a child: cmocka's assertions belong to the parent. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, role_name(lockstep_role_now(ls)),           \
                    #condition);                                                                                       \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* What the world sees; all processes share it. */
struct outside {
    _Atomic uint64_t heard;     /* highest number of a write known to be durable */
    _Atomic uint64_t reports;   /* how many came through */
    struct {
        uint16_t sector, count;
    } writes[WRITES_MAX];       /* by number; the survivor writes it down at the end */
};

struct request {
    bool busy;
    uint32_t type;
    uint16_t sector, count;
    uint64_t number;            /* write: what its sectors hold; flush: highest write complete before it */
    uint64_t least[DATA_BYTES / 512]; /* read: what each sector held when it was asked */
};

struct guest {
    uint64_t random;
    uint16_t available, used;
    uint64_t written, complete, durable; /* highest write asked for, ended, flushed */
    uint64_t holds[SECTORS];
    struct request requests[SLOTS];
    bool draining;
    struct {
        uint16_t sector, count;
    } writes[WRITES_MAX];
};

/* Reports that wait for their LSN; the survivor's need none. */
struct report {
    uint64_t number, lsn;
};

static struct lockstep *ls;
static struct guest *guest;
static struct outside *outside;
static struct report reports[REPORTS_MAX];
static uint64_t reports_made, reports_heard;
static char directory[64], arbiter_address[80], shm_address[64], images[2][96];

/* ---- the guest ---- */

static uint8_t *ram(uint64_t gpa)
{
    return ls->machine.memory.base + gpa;
}

static void card_put(unsigned offset, unsigned bytes, uint32_t value)
{
    virtio_pci_io_write(&ls->machine.blk.card, (uint16_t)offset, bytes, value);
}

static void guest_start(void)
{
    card_put(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    card_put(VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    card_put(VIRTIO_PCI_COMMON_GF, 4, 1u << VIRTIO_BLK_F_FLUSH);
    card_put(VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    card_put(VIRTIO_PCI_COMMON_GF, 4, 1);
    card_put(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_FEATURES_OK);
    card_put(VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0x1000);
    card_put(VIRTIO_PCI_COMMON_Q_AVAILLO, 4, 0x2000);
    card_put(VIRTIO_PCI_COMMON_Q_USEDLO, 4, 0x3000);
    card_put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    card_put(VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_DRIVER_OK);
    CHECK(ls->machine.blk.card.state.status == 0x0F);
}

static void guest_ask(unsigned slot)
{
    struct request *request = &guest->requests[slot];
    uint64_t header_gpa = 0x10000 + slot * 256, data_gpa = 0x20000 + slot * DATA_BYTES;
    uint64_t kind = test_random(&guest->random) % 8, places = test_random(&guest->random);
    struct virtio_blk_outhdr header = { 0 };
    struct vring_desc desc[3];
    uint16_t head = (uint16_t)(3 * slot), data_flags = VRING_DESC_F_NEXT;

    *request = (struct request){ .busy = true, .sector = places % (SECTORS - 8), .count = 1 + (places >> 32) % 8 };
    request->type = kind < 3 ? VIRTIO_BLK_T_IN : kind < 6 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_FLUSH;
    if (kind % 2)
        request->sector %= 16; /* often the same ones, so that requests overlap */
    if (request->type == VIRTIO_BLK_T_IN)
        data_flags |= VRING_DESC_F_WRITE;
    if (request->type == VIRTIO_BLK_T_FLUSH)
        request->number = guest->complete;
    for (unsigned i = 0; i < request->count && request->type == VIRTIO_BLK_T_IN; i++)
        request->least[i] = guest->holds[request->sector + i];
    if (request->type == VIRTIO_BLK_T_OUT) {
        request->number = ++guest->written;
        CHECK(request->number < WRITES_MAX);
        guest->writes[request->number].sector = request->sector;
        guest->writes[request->number].count = request->count;
        for (unsigned i = 0; i < request->count; i++)
            guest->holds[request->sector + i] = request->number;
        for (unsigned i = 0; i < request->count * 512u; i += 8)
            memcpy(ram(data_gpa + i), &request->number, 8);
    }
    header.type = request->type;
    header.sector = request->type == VIRTIO_BLK_T_FLUSH ? 0 : request->sector;
    memcpy(ram(header_gpa), &header, sizeof(header));
    *ram(header_gpa + 128) = 0xEE;
    desc[0] = (struct vring_desc){ .addr = header_gpa, .len = 16, .flags = VRING_DESC_F_NEXT,
                                   .next = head + (request->type == VIRTIO_BLK_T_FLUSH ? 2 : 1) };
    desc[1] = (struct vring_desc){ .addr = data_gpa, .len = request->count * 512u, .next = head + 2,
                                   .flags = data_flags };
    desc[2] = (struct vring_desc){ .addr = header_gpa + 128, .len = 1, .flags = VRING_DESC_F_WRITE };
    memcpy(ram(0x1000 + 16 * head), desc, sizeof(desc));
    memcpy(ram(0x2004 + 2 * (guest->available++ % 64)), &head, 2);
    memcpy(ram(0x2002), &guest->available, 2);
}

/* What the guest sends: both sides compare all of it. */
static void guest_send(uint64_t number, uint64_t data)
{
    uint64_t frame[3] = { number, data, guest->written };

    lockstep_frame_out(ls, (const uint8_t *)frame, sizeof(frame), &(struct net_offload){ 0 });
}

static void guest_ended(unsigned slot)
{
    struct request *request = &guest->requests[slot];
    uint64_t sum = 0;

    CHECK(request->busy && *ram(0x10000 + slot * 256 + 128) == VIRTIO_BLK_S_OK);
    request->busy = false;
    switch (request->type) {
    case VIRTIO_BLK_T_OUT:
        guest->complete = request->number;
        break;
    case VIRTIO_BLK_T_IN:
        for (unsigned i = 0; i < request->count * 512u; i += 8) {
            uint64_t found;

            /* Not older than what was there when it was asked; newer only by what has been asked meanwhile. */
            memcpy(&found, ram(0x20000 + slot * DATA_BYTES + i), 8);
            CHECK(found >= request->least[i / 512] && found <= guest->holds[request->sector + i / 512]);
            sum = sum * 31 + found;
        }
        guest_send(0, sum);
        break;
    default:
        if (request->number <= guest->durable)
            break;
        guest->durable = request->number;
        guest_send(guest->durable, 0);
        CHECK(reports_made - reports_heard < REPORTS_MAX);
        reports[reports_made++ % REPORTS_MAX] = (struct report){ guest->durable, ls->output_lsn };
        break;
    }
}

/* What a guest does between two exits and at the second of them. */
static void guest_step(void)
{
    uint16_t used;

    virtio_blk_continue(&ls->machine.blk);
    (void)virtio_pci_io_read(&ls->machine.blk.card, 0x40, 1);
    for (memcpy(&used, ram(0x3002), 2); guest->used != used; guest->used++) {
        uint32_t head;

        memcpy(&head, ram(0x3004 + 8 * (guest->used % 64)), 4);
        guest_ended(head / 3);
    }
    for (unsigned slot = 0; slot < SLOTS && !guest->draining; slot++)
        if (!guest->requests[slot].busy && test_random(&guest->random) % 8 == 0)
            guest_ask(slot);
    card_put(0x44, 2, 0);
}

static bool guest_idle(void)
{
    for (unsigned slot = 0; slot < SLOTS; slot++)
        if (guest->requests[slot].busy)
            return false;
    return true;
}

/* ---- a host ---- */

static void outside_hears(void)
{
    enum lockstep_role role = lockstep_role_now(ls);

    while (reports_heard < reports_made && role != ROLE_BACKUP &&
           (role == ROLE_ALONE || reports[reports_heard % REPORTS_MAX].lsn <= channel_acked_lsn(ls->channel))) {
        uint64_t number = reports[reports_heard++ % REPORTS_MAX].number;

        if (number <= atomic_load(&outside->heard)) /* sent again after a failover */
            continue;
        atomic_store(&outside->heard, number);
        atomic_fetch_add(&outside->reports, 1);
    }
}

static void host_step(void)
{
    uint64_t now_ns;

    if (lockstep_role_now(ls) == ROLE_BACKUP)
        (void)backup_before_run(ls);
    if (lockstep_role_now(ls) != ROLE_BACKUP) {
        (void)primary_before_run(ls);
        clock_sleep_ns(100 * NS_PER_US);
    }
    CHECK(!ls->failure);
    ls->machine.position++;
    now_ns = clock_now_ns();
    COUNT_SET(ls->arrived_ns, now_ns);
    COUNT_SET(ls->beat_ns, now_ns);
    ls->position_closed = ls->output_pending = false;
    if (lockstep_role_now(ls) == ROLE_BACKUP)
        backup_arrive(ls);
    if (lockstep_role_now(ls) != ROLE_BACKUP && !ls->failure)
        primary_arrive(ls);
    CHECK(!ls->failure);
    guest_step();
    if (lockstep_role_now(ls) == ROLE_BACKUP)
        backup_emulated(ls);
    else
        primary_emulated(ls);
    CHECK(!ls->failure);
    outside_hears();
}

static void host_open(enum lockstep_role role, enum disk_mode mode, uint64_t seed)
{
    const struct disk_options disk = {
        .path = images[mode == DISK_MIRRORED && role == ROLE_BACKUP], .mode = mode,
        .passive = mode == DISK_SHARED && role == ROLE_BACKUP,
    };
    const struct disk_owner owner = {
        .ctx = ls, .finished = lockstep_disk_finished, .may_write = lockstep_disk_may_write
    };
    const struct virtio_blk_file file = { .ctx = ls, .data = lockstep_disk_data, .submit = lockstep_disk_submit };
    struct channel_options options = { .address = shm_address, .ring_bytes = 1 << 20,
                                       .join_timeout_ns = 20 * NS_PER_S, .hello = { .vm = "disk" } };
    struct machine *machine = &ls->machine;
    uint64_t generation;
    pthread_t io_thread;

    ls->options = (struct lockstep_options){
        .heartbeat_ns = 5 * NS_PER_MS, .peer_timeout_ns = 1500 * NS_PER_MS, .max_input_delay_ns = NS_PER_S,
        .max_lag_ns = NS_PER_S, .idle = { .sleep_ns = 50 * NS_PER_US },
    };
    COUNT_SET(ls->role, role);
    ls->console_in = calloc(1, sizeof(*ls->console_in));
    machine->vcpu.run = calloc(1, sizeof(struct kvm_run));
    machine->exit = VCPU_EXIT_FORCED;
    machine->memory = (struct guest_memory){ .base = calloc(1, RAM_BYTES), .bytes = RAM_BYTES };
    pic_init(&machine->pic);
    pit_init(&machine->pit, 0);
    rtc_init(&machine->rtc, 0, 0);
    pci_init(&machine->pci, &machine->pic);
    CHECK(virtio_blk_init(&machine->blk, &machine->pci, 2, 0xC080, SECTORS, false, &machine->memory, &file) == 0);
    CHECK(disk_open(&ls->disk, &disk, &owner) == 0);
    CHECK(arbiter_open(&ls->arbiter, &(struct arbiter_options){ .address = arbiter_address, .vm = "disk" }) == 0);
    if (role == ROLE_PRIMARY) {
        CHECK(arbiter_begin(ls->arbiter, &generation) == 0);
        COUNT_SET(ls->generation, generation);
        options.hello.generation = ls->generation;
        CHECK(channel_open_sender(&ls->channel, &options) == 0);
    } else {
        CHECK(channel_open_receiver(&ls->channel, &options) == 0);
        ls->generation = channel_peer(ls->channel)->generation;
        CHECK(arbiter_check(ls->arbiter, ls->generation) == 0);
    }
    CHECK(vcpu_enter_thread(&machine->vcpu) == 0);
    ls->clock_offset_ns = -(int64_t)clock_now_ns();
    COUNT_SET(ls->beat_ns, clock_now_ns());
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->deadline_ns, UINT64_MAX);
    COUNT_SET(ls->running, true);
    guest->random = seed;
    guest_start();
    CHECK(pthread_create(&io_thread, NULL, io_thread_run, ls) == 0);
}

/* Runs until it is killed, or until it has survived long enough: then it ends in order. */
static void host_main(enum lockstep_role role, enum disk_mode mode, uint64_t seed)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS, goal = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    host_open(role, mode, seed);
    for (;;) {
        host_step();
        CHECK(clock_now_ns() < limit_ns);
        if (lockstep_role_now(ls) != ROLE_ALONE)
            continue;
        if (goal == 0) {
            goal = atomic_load(&outside->reports) + GO_ON;
            CHECK(guest->durable + 1000 > atomic_load(&outside->heard)); /* it is where the outside believes it to be */
        }
        if (atomic_load(&outside->reports) >= goal)
            guest->draining = true;
        if (guest->draining && guest_idle())
            break;
    }
    disk_close(ls->disk, false);
    CHECK(guest->durable >= atomic_load(&outside->heard));
    memcpy(outside->writes, guest->writes, sizeof(outside->writes));
    int fd = open(images[mode == DISK_MIRRORED && role == ROLE_BACKUP], O_RDONLY);
    for (uint64_t at = 0; at < SECTORS * 512; at += 8) {
        uint64_t found;

        CHECK(pread(fd, &found, 8, (off_t)at) == 8);
        CHECK(found == guest->holds[at / 512]);
    }
    printf("survivor: %llu positions, %llu writes, %llu heard in %llu reports, %llu disk records\n",
           (unsigned long long)ls->machine.position, (unsigned long long)guest->written,
           (unsigned long long)atomic_load(&outside->heard), (unsigned long long)atomic_load(&outside->reports),
           (unsigned long long)COUNT_GET(ls->disk_records));
    fflush(stdout);
    _exit(0);
}

/* ---- the tests ---- */

static int set_up(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/ftvmm-pair-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(arbiter_address, sizeof(arbiter_address), "dir:%s", directory);
    for (unsigned i = 0; i < 2; i++) {
        int fd;

        snprintf(images[i], sizeof(images[i]), "%s/image%u", directory, i);
        fd = open(images[i], O_CREAT | O_RDWR, 0600);
        if (fd < 0 || ftruncate(fd, SECTORS * 512) < 0)
            return -1;
        close(fd);
    }
    outside = mmap(NULL, sizeof(*outside), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ls = calloc(1, sizeof(*ls)); /* the children's */
    guest = calloc(1, sizeof(*guest));
    return outside == MAP_FAILED ? -1 : 0;
}

static int tear_down(void **state)
{
    char command[96];

    (void)state;
    munmap(outside, sizeof(*outside));
    free(ls);
    free(guest);
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command);
}

/* Every write that was known to be durable is there, or a later one of the same sector. */
static void assert_holds_what_was_heard(const char *image, uint64_t heard)
{
    uint64_t least[SECTORS] = { 0 }, found;
    int fd = open(image, O_RDONLY);

    for (uint64_t number = 1; number <= heard; number++)
        for (unsigned i = 0; i < outside->writes[number].count; i++)
            least[outside->writes[number].sector + i] = number;
    for (unsigned sector = 0; sector < SECTORS; sector++) {
        assert_int_equal(pread(fd, &found, 8, sector * 512), 8);
        assert_true(found >= least[sector]);
    }
    close(fd);
}

static void lose(enum lockstep_role lost, enum disk_mode mode)
{
    static unsigned count;
    uint64_t seed = test_seed(role_name(lost)), heard, limit_ns = clock_now_ns() + LIMIT_NS;
    pid_t primary, backup, lost_pid, survivor_pid;
    int status;

    snprintf(shm_address, sizeof(shm_address), "shm:disk-%d-%u", (int)getpid(), ++count);
    fflush(stdout);
    backup = fork();
    assert_true(backup >= 0);
    if (backup == 0)
        host_main(ROLE_BACKUP, mode, seed);
    primary = fork();
    assert_true(primary >= 0);
    if (primary == 0)
        host_main(ROLE_PRIMARY, mode, seed);
    while (atomic_load(&outside->reports) < KILL_AFTER && waitpid(-1, &status, WNOHANG) == 0 &&
           clock_now_ns() < limit_ns)
        clock_sleep_ns(100 * NS_PER_US);
    lost_pid = lost == ROLE_PRIMARY ? primary : backup;
    survivor_pid = lost == ROLE_PRIMARY ? backup : primary;
    kill(lost_pid, SIGKILL);
    waitpid(lost_pid, NULL, 0);
    heard = atomic_load(&outside->heard);
    assert_true(atomic_load(&outside->reports) >= KILL_AFTER);
    assert_int_equal(waitpid(survivor_pid, &status, 0), survivor_pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_holds_what_was_heard(images[0], heard); /* the first primary's, however it ended */
    assert_holds_what_was_heard(images[mode == DISK_MIRRORED && lost == ROLE_PRIMARY], atomic_load(&outside->heard));
}

static void a_mirrored_disk_outlives_the_primary(void **state)
{
    (void)state;
    lose(ROLE_PRIMARY, DISK_MIRRORED);
}

static void a_mirrored_disk_outlives_the_backup(void **state)
{
    (void)state;
    lose(ROLE_BACKUP, DISK_MIRRORED);
}

static void a_shared_disk_outlives_the_primary(void **state)
{
    (void)state;
    lose(ROLE_PRIMARY, DISK_SHARED);
}

static void a_shared_disk_outlives_the_backup(void **state)
{
    (void)state;
    lose(ROLE_BACKUP, DISK_SHARED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_mirrored_disk_outlives_the_primary, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_mirrored_disk_outlives_the_backup, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shared_disk_outlives_the_primary, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shared_disk_outlives_the_backup, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
