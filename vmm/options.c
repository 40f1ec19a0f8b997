/* The command line: commands, options, their defaults and their checks. */
#include "vmm/options.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/report.h"
#include "fleet/spare.h"

static const char help[] =
    "usage: ftvmm COMMAND [OPTIONS]\n"
    "\n"
    "commands\n"
    "  run                  run a guest without protection\n"
    "  primary              run a guest and log its inputs to a backup (--backup ADDRESS)\n"
    "  backup               follow a primary, and take over when it dies (--listen ADDRESS)\n"
    "  record FILE          run a guest and log its inputs to a file\n"
    "  replay FILE          run a recorded guest again, and compare how it ends; or from the DIR of --keep-log\n"
    "  log FILE             print what a recording holds, a line a record, and a summary\n"
    "  check                say whether this host can do its part, and what is missing\n"
    "\n"
    "guest (the same on both hosts of a pair)\n"
    "  --kernel PATH        a Debian bzImage (required)\n"
    "  --initrd PATH        its initial RAM disk\n"
    "  --append TEXT        added to the kernel's command line\n"
    "  --memory MIB         RAM, 64 to 3072; default 256\n"
    "  --name VM            name of the virtual machine; default vm\n"
    "  --mac ADDRESS        of its network card; default: made from the name\n"
    "  --disk PATH[,mode=mirrored|shared][,readonly][,format=raw]\n"
    "                       its disk, a raw image: each host has a copy of its own, equal at the start (mirrored,\n"
    "                       the default), or both reach the same one (shared)\n"
    "  --net PORT           its cable: af_packet:IFACE, tap:NAME, memif:SOCKET, or any DPDK device string;\n"
    "                       default: no cable\n"
    "  --mtu BYTES          the largest packet that its network carries, 576 to 9000; default 1500\n"
    "  --console WHERE      stdio, none, or a file that is appended to; default stdio for run, none otherwise\n"
    "\n"
    "pair\n"
    "  --backup ADDRESS     primary: where the backup listens: verbs:HOST:PORT, tcp:HOST:PORT, shm:NAME\n"
    "  --listen ADDRESS     backup: where to listen\n"
    "  --key FILE           a key that both hosts share, 32 to 256 random bytes that nobody else can read:\n"
    "                       only who holds it may join\n"
    "  --ack placed|seen    primary: output leaves when the log is in the backup's memory (default), or when\n"
    "                       the backup's CPU has also found it whole\n"
    "  --arbiter WHERE      who decides which host goes on alone (required for a pair): dir:PATH, a directory on\n"
    "                       storage that both hosts share; etcd:https://HOST:PORT[,...], an etcd cluster; or\n"
    "                       rdma:HOST:PORT, a witness (ftwitness). check tries it, too\n"
    "  --arbiter-auth DIR   etcd: a directory with ca.pem, cert.pem and key.pem, user (NAME:PASSWORD), as needed;\n"
    "                       rdma: with key, the VM's at the witness (required)\n"
    "  --join-timeout S     how long to wait for the other host; default 60; 0: for ever\n"
    "  --heartbeat MS       between signs of life; default 50\n"
    "  --peer-timeout MS    silence after which the arbiter is asked; default 1000\n"
    "  --ring MIB           size of the log's ring, a power of two, the same on both hosts; default 16\n"
    "  --verify             primary, record: log every register and page digest, to name the first difference\n"
    "  --segment MS         guest time between digests of RAM; default 1000\n"
    "  --spare ADDRESS      a guest that runs without a backup gets a new one here, without being stopped; default of a\n"
    "                       primary: its --backup; none. fleet:[NAME]: where an agent (ftagent) has room, says etcd;\n"
    "                       NAME: this host's there, default its host name\n"
    "  --fleet URL[,...]    etcd's members, where agents register; default: those of --arbiter etcd:\n"
    "  --fleet-auth DIR     as --arbiter-auth, for --fleet; default: that of --arbiter etcd:\n"
    "  --max-pause MS       then: the guest stands still no longer than about this; default 50\n"
    "  --transfer-rate MIB  then: send so much a second at most while the guest runs; default 0: as fast as can be\n"
    "  --keep-log DIR[,minutes=N][,size=MIB]\n"
    "                       backup: write what it replays there, so that the last N minutes of a primary that died can\n"
    "                       be replayed; default 10 minutes, at most 4096 MiB\n"
    "  --max-lag MS         primary: slow the guest rather than let the backup lag more; default 1000; 0: never\n"
    "\n"
    "replay and log\n"
    "  --until POSITION     replay: stop there, and say the registers\n"
    "  --dump DIR           replay: write RAM, vCPU and devices at the end, or at --until, into a new directory\n"
    "  --gdb ADDR:PORT|unix:PATH\n"
    "                       replay: stop at the start, or at --until, and wait there for gdb; a loopback address\n"
    "  --json               log: one JSON object a line\n"
    "  --kind NAME,...      log: only records of these kinds; default all\n"
    "  --from, --to POSITION  log: only records from, up to that position\n"
    "  --summary            log: the summary alone: counts, bytes and shares by kind, rates\n"
    "\n"
    "running\n"
    "  --differences DIR    backup, replay: where what is found of a difference is saved; a backup's default: /var/lib/ftvmm\n"
    "  --max-input-delay US how long an input may wait for the guest before a forced sync; default 2000\n"
    "  --clock CLOCK        how a place between two exits is found on the other host: exits (not at all: a forced sync),\n"
    "                       pmu (by the CPU's counter of branches), step (by single steps; for tests); default auto:\n"
    "                       pmu where the counter is exact, else exits. check says which\n"
    "  --poll SPIN,SLEEP    idle threads look again at once for SPIN us, then sleep SLEEP us between looks;\n"
    "                       default 0,50 on up to 4 CPUs, else 100,20\n"
    "  --cpu VCPU,IO        the guest's thread runs on CPU VCPU only, the one that polls network and channel on IO;\n"
    "                       default: where the scheduler likes\n"
    "  --stop-after S       stop the guest after so many seconds\n"
    "  --status FILE        write the state as JSON there, twice a second and at the end\n"
    "  --control PATH       a socket for ftctl; default /run/ftvmm/VM.sock if that directory is ours; none\n"
    "  --metrics ADDR:PORT  serve metrics for Prometheus there; a loopback address (127.0.0.1:9101)\n"
    "  --help, --version\n"
    "\n"
    "exit status: 0 the guest ended or was stopped; 1 an error; 2 wrong use; 3 the other host has the guest;\n"
    "4 the two machines differ. SIGTERM and SIGINT stop the guest.\n";

enum option_id {
    OPT_KERNEL = 256, OPT_INITRD, OPT_APPEND, OPT_MEMORY, OPT_NAME, OPT_MAC, OPT_DISK, OPT_NET, OPT_MTU, OPT_CONSOLE,
    OPT_BACKUP, OPT_DIFFERENCES, OPT_LISTEN, OPT_KEY, OPT_ACK, OPT_SPARE, OPT_FLEET, OPT_FLEET_AUTH, OPT_MAX_PAUSE,
    OPT_TRANSFER_RATE, OPT_ARBITER,
    OPT_ARBITER_AUTH, OPT_JOIN_TIMEOUT, OPT_HEARTBEAT, OPT_PEER_TIMEOUT, OPT_RING,
    OPT_VERIFY, OPT_SEGMENT, OPT_MAX_LAG, OPT_KEEP_LOG, OPT_UNTIL, OPT_DUMP, OPT_GDB, OPT_JSON, OPT_KIND, OPT_FROM, OPT_TO, OPT_SUMMARY,
    OPT_MAX_INPUT_DELAY, OPT_CLOCK, OPT_POLL, OPT_CPU, OPT_STOP_AFTER, OPT_STATUS, OPT_CONTROL, OPT_METRICS, OPT_HELP, OPT_VERSION,
};

static const struct option long_options[] = {
    { "kernel", required_argument, NULL, OPT_KERNEL },
    { "initrd", required_argument, NULL, OPT_INITRD },
    { "append", required_argument, NULL, OPT_APPEND },
    { "memory", required_argument, NULL, OPT_MEMORY },
    { "name", required_argument, NULL, OPT_NAME },
    { "mac", required_argument, NULL, OPT_MAC },
    { "disk", required_argument, NULL, OPT_DISK },
    { "net", required_argument, NULL, OPT_NET },
    { "mtu", required_argument, NULL, OPT_MTU },
    { "console", required_argument, NULL, OPT_CONSOLE },
    { "backup", required_argument, NULL, OPT_BACKUP },
    { "listen", required_argument, NULL, OPT_LISTEN },
    { "key", required_argument, NULL, OPT_KEY },
    { "ack", required_argument, NULL, OPT_ACK },
    { "spare", required_argument, NULL, OPT_SPARE },
    { "fleet", required_argument, NULL, OPT_FLEET },
    { "fleet-auth", required_argument, NULL, OPT_FLEET_AUTH },
    { "differences", required_argument, NULL, OPT_DIFFERENCES },
    { "max-pause", required_argument, NULL, OPT_MAX_PAUSE },
    { "transfer-rate", required_argument, NULL, OPT_TRANSFER_RATE },
    { "arbiter", required_argument, NULL, OPT_ARBITER },
    { "arbiter-auth", required_argument, NULL, OPT_ARBITER_AUTH },
    { "join-timeout", required_argument, NULL, OPT_JOIN_TIMEOUT },
    { "heartbeat", required_argument, NULL, OPT_HEARTBEAT },
    { "peer-timeout", required_argument, NULL, OPT_PEER_TIMEOUT },
    { "ring", required_argument, NULL, OPT_RING },
    { "verify", no_argument, NULL, OPT_VERIFY },
    { "segment", required_argument, NULL, OPT_SEGMENT },
    { "max-lag", required_argument, NULL, OPT_MAX_LAG },
    { "keep-log", required_argument, NULL, OPT_KEEP_LOG },
    { "until", required_argument, NULL, OPT_UNTIL },
    { "dump", required_argument, NULL, OPT_DUMP },
    { "gdb", required_argument, NULL, OPT_GDB },
    { "json", no_argument, NULL, OPT_JSON },
    { "kind", required_argument, NULL, OPT_KIND },
    { "from", required_argument, NULL, OPT_FROM },
    { "to", required_argument, NULL, OPT_TO },
    { "summary", no_argument, NULL, OPT_SUMMARY },
    { "max-input-delay", required_argument, NULL, OPT_MAX_INPUT_DELAY },
    { "clock", required_argument, NULL, OPT_CLOCK },
    { "poll", required_argument, NULL, OPT_POLL },
    { "cpu", required_argument, NULL, OPT_CPU },
    { "stop-after", required_argument, NULL, OPT_STOP_AFTER },
    { "status", required_argument, NULL, OPT_STATUS },
    { "control", required_argument, NULL, OPT_CONTROL },
    { "metrics", required_argument, NULL, OPT_METRICS },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { NULL, 0, NULL, 0 },
};

static const struct {
    const char *name;
    enum command command;
    bool takes_file;
} commands[] = {
    { "run", COMMAND_RUN, false },       { "primary", COMMAND_PRIMARY, false }, { "backup", COMMAND_BACKUP, false },
    { "record", COMMAND_RECORD, true },  { "replay", COMMAND_REPLAY, true },    { "log", COMMAND_LOG, true },
    { "check", COMMAND_CHECK, false },
};

static int wrong_use(const char *format, const char *what)
{
    char sentence[512];

    snprintf(sentence, sizeof(sentence), format, what);
    report_error("%s; see 'ftvmm --help'", sentence);
    return -EINVAL;
}

static int parse_number(const char *name, const char *text, uint64_t least, uint64_t most, uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno == 0 && *text >= '0' && *text <= '9' && *end == '\0' && *out >= least && *out <= most)
        return 0;
    report_error("--%s takes a whole number from %llu to %llu, not '%s'", name, (unsigned long long)least,
                 (unsigned long long)most, text);
    return -EINVAL;
}

static int parse_mac(const char *text, uint8_t mac[6])
{
    unsigned byte[6];
    char rest;

    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &byte[0], &byte[1], &byte[2], &byte[3], &byte[4], &byte[5],
               &rest) != 6)
        return wrong_use("'%s' is no MAC address (52:54:00:12:34:56)", text);
    if (byte[0] & 1)
        return wrong_use("'%s' is a multicast address, not one card's", text);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = (uint8_t)byte[i];
    return 0;
}

static int parse_disk(const char *text, struct options *options)
{
    char *rest, *word;

    if (options->disk_path != NULL)
        return wrong_use("%s can be given once: the guest has one disk", "--disk");
    rest = options->disk_path = strdup(text);
    if (rest == NULL)
        return -ENOMEM;
    options->disk.path = strsep(&rest, ",");
    while ((word = strsep(&rest, ",")) != NULL) {
        if (strcmp(word, "mode=mirrored") == 0)
            options->disk.mode = DISK_MIRRORED;
        else if (strcmp(word, "mode=shared") == 0)
            options->disk.mode = DISK_SHARED;
        else if (strcmp(word, "readonly") == 0)
            options->disk.readonly = true;
        else if (strcmp(word, "format=raw") == 0)
            options->disk.raw = true;
        else
            return wrong_use("--disk takes PATH[,mode=mirrored|shared][,readonly][,format=raw], not '%s'", text);
    }
    return *options->disk.path != '\0' ? 0 : wrong_use("--disk needs the name of an image, not '%s'", text);
}

/* A decimal number of them, as 0.5. */
static int parse_minutes(const char *text, uint64_t *span_ns)
{
    char *end;
    double minutes = strtod(text, &end);

    if (*text < '0' || *text > '9' || *end != '\0' || !(minutes >= 0.01 && minutes <= 10000))
        return wrong_use("--keep-log's minutes are a number from 0.01 to 10000, not '%s'", text);
    *span_ns = (uint64_t)(minutes * 60 * (double)NS_PER_S);
    return 0;
}

static int parse_keep_log(const char *text, struct options *options)
{
    char *rest, *word;
    int rc = 0;

    if (options->command != COMMAND_BACKUP)
        return wrong_use("%s belongs to backup: a primary's log is kept there", "--keep-log");
    if (options->keep_log_path != NULL)
        return wrong_use("%s can be given once", "--keep-log");
    rest = options->keep_log_path = strdup(text);
    if (rest == NULL)
        return -ENOMEM;
    options->keep_log.directory = strsep(&rest, ",");
    while (rc == 0 && (word = strsep(&rest, ",")) != NULL) {
        uint64_t mib = 0;

        if (strncmp(word, "minutes=", 8) == 0)
            rc = parse_minutes(word + 8, &options->keep_log.span_ns);
        else if (strncmp(word, "size=", 5) == 0)
            rc = parse_number("keep-log's size", word + 5, 1, 1u << 20, &mib);
        else
            return wrong_use("--keep-log takes DIR[,minutes=N][,size=MIB], not '%s'", text);
        if (mib != 0)
            options->keep_log.bytes = mib << 20;
    }
    return rc < 0 || *options->keep_log.directory != '\0' ? rc
               : wrong_use("--keep-log needs the name of a directory, not '%s'", text);
}

static int parse_poll(const char *text, struct idle_policy *policy)
{
    unsigned spin_us, sleep_us;
    char rest;

    if (sscanf(text, "%u,%u%c", &spin_us, &sleep_us, &rest) != 2 || spin_us > 1000000 || sleep_us > 100000)
        return wrong_use("--poll takes SPIN,SLEEP in microseconds (100,20), not '%s'", text);
    policy->spin_ns = spin_us * NS_PER_US;
    policy->sleep_ns = sleep_us * NS_PER_US;
    return 0;
}

static int parse_cpus(const char *text, struct options *options)
{
    unsigned cpus[2];
    cpu_set_t allowed;
    char rest;

    if (sscanf(text, "%u,%u%c", &cpus[0], &cpus[1], &rest) != 2)
        return wrong_use("--cpu takes VCPU,IO, two numbers of CPUs (2,3), not '%s'", text);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return -errno;
    for (unsigned i = 0; i < 2; i++)
        if (cpus[i] >= CPU_SETSIZE || !CPU_ISSET(cpus[i], &allowed))
            return wrong_use("--cpu '%s' has a CPU that this process may not use; `taskset -cp $$` lists those it may",
                             text);
    options->cpus_given = true;
    options->vcpu_cpu = cpus[0];
    options->io_cpu = cpus[1];
    return 0;
}

static int parse_kinds(const char *text, uint64_t *kinds)
{
    for (const char *end; *text != '\0'; text = *end == ',' ? end + 1 : end) {
        uint16_t kind;

        end = strchrnul(text, ',');
        kind = event_kind_named(text, (size_t)(end - text));
        if (kind == 0)
            return wrong_use("--kind '%s': the kinds are start, time, frame, console, output, progress, pages, sync, "
                             "verify, segment-pages, segment, end, handover, disk, sectors, machine, link, place, stretch", text);
        *kinds |= UINT64_C(1) << kind;
    }
    return *kinds != 0 ? 0 : wrong_use("--kind takes names of kinds, not '%s'", text);
}

static int parse_log_option(struct options *options, int id, const char *text)
{
    struct log_options *log = &options->log;

    if (options->command != COMMAND_LOG)
        return wrong_use("%s", "--json, --kind, --from, --to and --summary belong to log");
    switch (id) {
    case OPT_JSON: log->json = true; return 0;
    case OPT_KIND: return parse_kinds(text, &log->kinds);
    case OPT_FROM: return parse_number("from", text, 0, UINT64_MAX, &log->from);
    case OPT_TO: return parse_number("to", text, 0, UINT64_MAX, &log->to);
    default: log->summary = true; return 0;
    }
}

static void set_defaults(struct options *options)
{
    bool many_cpus = sysconf(_SC_NPROCESSORS_ONLN) > 4;

    *options = (struct options){
        .vm = "vm",
        .machine = { .memory_bytes = UINT64_C(256) << 20, .mtu = NET_MTU_DEFAULT },
        .ring_bytes = UINT64_C(16) << 20,
        .join_timeout_ns = 60 * NS_PER_S,
        .max_pause_ns = 50 * NS_PER_MS,
        .log = { .to = UINT64_MAX },
        .keep_log = { .span_ns = 600 * NS_PER_S, .bytes = UINT64_C(4096) << 20 },
        .lockstep = {
            .heartbeat_ns = 50 * NS_PER_MS,
            .peer_timeout_ns = 1000 * NS_PER_MS,
            .max_input_delay_ns = 2 * NS_PER_MS,
            .max_lag_ns = 1000 * NS_PER_MS,
            .clock = GUEST_CLOCK_AUTO,
            .segment_ns = 1000 * NS_PER_MS,
            .idle = { .spin_ns = many_cpus ? 100 * NS_PER_US : 0, .sleep_ns = (many_cpus ? 20 : 50) * NS_PER_US },
        },
    };
}

/* Of a pair, or alone and then of a pair. */
static bool can_be_primary(const struct options *options)
{
    return options->command == COMMAND_RUN || options->command == COMMAND_PRIMARY ||
           options->command == COMMAND_BACKUP;
}

static int parse_option(struct options *options, int id, const char *text, const char **append, bool *have_mac)
{
    struct lockstep_options *lockstep = &options->lockstep;
    uint64_t number = 0;
    int rc = 0;

    switch (id) {
    case OPT_KERNEL: options->machine.kernel_path = text; break;
    case OPT_INITRD: options->machine.initrd_path = text; break;
    case OPT_APPEND: *append = text; break;
    case OPT_MEMORY:
        rc = parse_number("memory", text, 64, 3072, &number);
        options->machine.memory_bytes = number << 20;
        break;
    case OPT_NAME: options->vm = text; break;
    case OPT_MAC:
        *have_mac = true;
        rc = parse_mac(text, options->machine.mac);
        break;
    case OPT_DISK: rc = parse_disk(text, options); break;
    case OPT_NET: options->net_port = text; break;
    case OPT_MTU:
        rc = parse_number("mtu", text, NET_MTU_MIN, NET_MTU_MAX, &number);
        options->machine.mtu = (uint16_t)number;
        break;
    case OPT_CONSOLE: options->console = text; break;
    case OPT_BACKUP:
    case OPT_LISTEN:
        if ((id == OPT_BACKUP) != (options->command == COMMAND_PRIMARY) ||
            (id == OPT_LISTEN) != (options->command == COMMAND_BACKUP))
            return wrong_use("--%s does not belong to this command: a primary has --backup, a backup has --listen",
                             id == OPT_BACKUP ? "backup" : "listen");
        options->peer = text;
        break;
    case OPT_KEY: options->key_path = text; break;
    case OPT_ACK:
        if (!can_be_primary(options))
            return wrong_use("%s belongs to a host that can be the primary, whose output waits", "--ack");
        if (strcmp(text, "placed") != 0 && strcmp(text, "seen") != 0)
            return wrong_use("--ack takes placed or seen, not '%s'", text);
        options->ack = text[0] == 's' ? CHANNEL_ACK_SEEN : CHANNEL_ACK_PLACED;
        break;
    case OPT_SPARE:
        if (!can_be_primary(options))
            return wrong_use("%s belongs to run, primary and backup", "--spare");
        options->spare = text;
        break;
    case OPT_FLEET: options->fleet = text; break;
    case OPT_FLEET_AUTH: options->fleet_auth = text; break;
    case OPT_DIFFERENCES:
        if (options->command != COMMAND_BACKUP && options->command != COMMAND_REPLAY)
            return wrong_use("%s is for backup and replay: they find the difference", "--differences");
        lockstep->differences_path = text;
        break;
    case OPT_MAX_PAUSE:
        rc = parse_number("max-pause", text, 1, 600000, &number);
        options->max_pause_ns = number * NS_PER_MS;
        break;
    case OPT_TRANSFER_RATE:
        rc = parse_number("transfer-rate", text, 0, 1000000, &number);
        options->transfer_bytes_per_s = number << 20;
        break;
    case OPT_ARBITER: options->arbiter = text; break;
    case OPT_ARBITER_AUTH: options->arbiter_auth = text; break;
    case OPT_JOIN_TIMEOUT:
        rc = parse_number("join-timeout", text, 0, 1000000, &number);
        options->join_timeout_ns = number == 0 ? UINT64_MAX : number * NS_PER_S;
        break;
    case OPT_HEARTBEAT:
        rc = parse_number("heartbeat", text, 1, 10000, &number);
        lockstep->heartbeat_ns = number * NS_PER_MS;
        break;
    case OPT_PEER_TIMEOUT:
        rc = parse_number("peer-timeout", text, 5, 600000, &number);
        lockstep->peer_timeout_ns = number * NS_PER_MS;
        break;
    case OPT_RING:
        rc = parse_number("ring", text, 1, 4096, &number);
        if (rc == 0 && (number & (number - 1)) != 0)
            return wrong_use("--ring takes a power of two, not '%s'", text);
        options->ring_bytes = number << 20;
        break;
    case OPT_VERIFY: options->verify = true; break;
    case OPT_SEGMENT:
        rc = parse_number("segment", text, 1, 1000000, &number);
        lockstep->segment_ns = number * NS_PER_MS;
        break;
    case OPT_MAX_LAG:
        rc = parse_number("max-lag", text, 0, 600000, &number);
        lockstep->max_lag_ns = number * NS_PER_MS;
        break;
    case OPT_KEEP_LOG: rc = parse_keep_log(text, options); break;
    case OPT_UNTIL:
    case OPT_DUMP:
    case OPT_GDB:
        if (options->command != COMMAND_REPLAY)
            return wrong_use("%s", "--until, --dump and --gdb belong to replay");
        if (id == OPT_UNTIL)
            return parse_number("until", text, 1, UINT64_MAX, &lockstep->until_position);
        *(id == OPT_GDB ? &options->gdb : &options->dump_path) = text;
        break;
    case OPT_JSON:
    case OPT_KIND:
    case OPT_FROM:
    case OPT_TO:
    case OPT_SUMMARY: return parse_log_option(options, id, text);
    case OPT_MAX_INPUT_DELAY:
        rc = parse_number("max-input-delay", text, 100, 10000000, &number);
        lockstep->max_input_delay_ns = number * NS_PER_US;
        break;
    case OPT_CLOCK:
        if (!guest_clock_named(text, &lockstep->clock))
            return wrong_use("--clock takes auto, exits, pmu or step, not '%s'", text);
        break;
    case OPT_POLL: rc = parse_poll(text, &lockstep->idle); break;
    case OPT_CPU: rc = parse_cpus(text, options); break;
    case OPT_STOP_AFTER:
        rc = parse_number("stop-after", text, 1, 1000000, &number);
        lockstep->stop_after_ns = number * NS_PER_S;
        break;
    case OPT_STATUS: options->status_path = text; break;
    case OPT_CONTROL: options->control_path = text; break;
    case OPT_METRICS: options->metrics = text; break;
    default: return wrong_use("%s", "an option is wrong");
    }
    return rc;
}

/* Where the fleet is, and this host's name in it. */
static int settle_fleet(struct options *options)
{
    bool wanted = options->spare != NULL && strncmp(options->spare, FLEET_SPARE_PREFIX, strlen(FLEET_SPARE_PREFIX)) == 0;

    if (options->fleet != NULL && !can_be_primary(options))
        return wrong_use("%s belongs to run, primary and backup", "--fleet");
    if (options->fleet_auth != NULL && options->fleet == NULL)
        return wrong_use("%s belongs to --fleet", "--fleet-auth");
    if (options->fleet == NULL && can_be_primary(options) && options->arbiter != NULL &&
        strncmp(options->arbiter, "etcd:", 5) == 0) {
        options->fleet = options->arbiter + 5;
        options->fleet_auth = options->arbiter_auth;
    }
    if (!wanted)
        return 0;
    options->fleet_host = options->spare + strlen(FLEET_SPARE_PREFIX);
    if (options->fleet == NULL)
        return wrong_use("--spare %s needs --fleet URL[,...], or --arbiter etcd:", options->spare);
    return *options->fleet_host == '\0' || fleet_name_is_valid(options->fleet_host)
               ? 0
               : wrong_use("--spare %s: behind 'fleet:' stands this host's name: " FLEET_NAME_RULE, options->spare);
}

static int check_pair(struct options *options)
{
    const struct lockstep_options *lockstep = &options->lockstep;

    if (options->command == COMMAND_RUN && options->spare != NULL && options->arbiter == NULL)
        return wrong_use("%s needs --arbiter WHERE: without one both hosts could go live after a network failure",
                         "--spare");
    if (options->keep_log.directory != NULL && options->keep_log.bytes < 3 * options->machine.memory_bytes)
        return wrong_use("%s must be at least three times --memory: each of two parts begins with all of it",
                         "--keep-log's size");
    if (options->command != COMMAND_PRIMARY && options->command != COMMAND_BACKUP)
        return 0;
    if (options->command == COMMAND_BACKUP && lockstep->differences_path == NULL)
        options->lockstep.differences_path = "/var/lib/ftvmm";
    if (options->peer == NULL)
        return wrong_use("%s is missing", options->command == COMMAND_PRIMARY ? "--backup ADDRESS" : "--listen ADDRESS");
    if (options->arbiter == NULL)
        return wrong_use("%s is missing: without an arbiter both hosts could go live after a network failure",
                         "--arbiter WHERE");
    if (lockstep->peer_timeout_ns < 4 * lockstep->heartbeat_ns)
        return wrong_use("%s must be at least four times --heartbeat", "--peer-timeout");
    if (options->command == COMMAND_PRIMARY && lockstep->max_lag_ns != 0 &&
        lockstep->max_lag_ns < 4 * lockstep->heartbeat_ns) /* heartbeats tell how far the backup is */
        return wrong_use("%s must be 0, or at least four times --heartbeat", "--max-lag");
    return 0;
}

/* A MAC of our own making, the same wherever the VM has this name; 52:54:00 is the usual range of VMs. */
static void mac_from_name(const char *vm, uint8_t mac[6])
{
    uint64_t digest = XXH3_64bits(vm, strlen(vm));
    const uint8_t made[6] = { 0x52, 0x54, 0x00, (uint8_t)digest, (uint8_t)(digest >> 8), (uint8_t)(digest >> 16) };

    memcpy(mac, made, 6);
}

static int finish(struct options *options, const char *append, bool have_mac)
{
    if (options->log.from > options->log.to)
        return wrong_use("%s", "--from is behind --to");
    if (options->command != COMMAND_CHECK && options->command != COMMAND_LOG && options->machine.kernel_path == NULL)
        return wrong_use("%s is missing: name a Debian kernel, for example /boot/vmlinuz-...-cloud-amd64",
                         "--kernel PATH");
    if (!have_mac)
        mac_from_name(options->vm, options->machine.mac);
    if (asprintf(&options->command_line, "%s%s%s", BOOT_DEFAULT_COMMAND_LINE, *append ? " " : "", append) < 0) {
        options->command_line = NULL;
        return -ENOMEM;
    }
    options->machine.command_line = options->command_line;
    options->machine.log_dirty = options->command != COMMAND_RUN || options->arbiter != NULL;
    if (options->spare == NULL && options->command == COMMAND_PRIMARY)
        options->spare = options->peer; /* where the backup was it may be again */
    if (options->spare != NULL && strcmp(options->spare, "none") == 0)
        options->spare = NULL;
    if (options->console == NULL)
        options->console = options->command == COMMAND_RUN ? "stdio" : "none";
    if (settle_fleet(options) < 0)
        return -EINVAL;
    return check_pair(options);
}

int options_parse(struct options *options, int argc, char **argv, int *exit_status)
{
    const char *append = "";
    bool have_mac = false, known = false, takes_file = false;
    int id;

    set_defaults(options);
    *exit_status = 2;
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0)) {
        fputs(help, stdout);
        *exit_status = 0;
        return -ECANCELED;
    }
    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        puts("ftvmm " FTVMM_VERSION);
        *exit_status = 0;
        return -ECANCELED;
    }
    if (argc < 2)
        return wrong_use("%s", "a command is missing");
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]) && !known; i++)
        if (strcmp(argv[1], commands[i].name) == 0) {
            known = true;
            options->command = commands[i].command;
            takes_file = commands[i].takes_file;
        }
    if (!known)
        return wrong_use("there is no command '%s'", argv[1]);
    argc--;
    argv++;
    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (id == '?')
            return wrong_use("%s", "an option is unknown or lacks its value");
        if (id == OPT_HELP || id == OPT_VERSION) {
            fputs(id == OPT_HELP ? help : "ftvmm " FTVMM_VERSION "\n", stdout);
            *exit_status = 0;
            return -ECANCELED;
        }
        if (parse_option(options, id, optarg, &append, &have_mac) < 0)
            return -EINVAL;
    }
    if (takes_file) {
        static char address[4096];

        if (optind >= argc)
            return wrong_use("%s needs the name of a file", commands[options->command].name);
        options->log.path = argv[optind];
        snprintf(address, sizeof(address), "file:%s", argv[optind++]);
        options->peer = address;
    }
    if (optind < argc)
        return wrong_use("'%s' is one word too many", argv[optind]);
    return finish(options, append, have_mac);
}

void options_free(struct options *options)
{
    free(options->command_line);
    free(options->disk_path);
    free(options->keep_log_path);
    options->command_line = options->disk_path = options->keep_log_path = NULL;
}
