/* ftagent: a host's part in the fleet. Options and signals; agent.c does the work, listing.c shows it. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/report.h"
#include "fleet/agent.h"
#include "fleet/listing.h"

static const char usage[] =
    "usage: ftagent run --fleet URL[,URL...] --memory MIB [OPTIONS]\n"
    "       ftagent status --fleet URL[,URL...] [--fleet-auth DIR] [--json]\n"
    "       ftagent check [--vms DIR]\n"
    "\n"
    "  run                  keep this host in the fleet: primaries whose guest runs alone find it in etcd, and get a\n"
    "                       backup started here, as DIR/VM.json says how\n"
    "  status               all hosts of the fleet: what is free there, and who has it\n"
    "  check                read the descriptions of VMs, and say what is wrong with them\n"
    "\n"
    "  --fleet URL[,...]    the members of an etcd cluster: https://HOST:PORT\n"
    "  --fleet-auth DIR     a directory with ca.pem, cert.pem and key.pem, user (NAME:PASSWORD), as needed\n"
    "  --memory MIB         how much of this host's memory guests may take that are started here\n"
    "  --guests N           how many such guests; default: as many as there are CPUs\n"
    "  --name HOST          of this host in the fleet; default: its host name\n"
    "  --vms DIR            descriptions of VMs; default /etc/ftvmm/vms\n"
    "  --run DIR            ours alone; default /run/ftagent\n"
    "  --ftvmm PROGRAM      default ftvmm\n"
    "  --lease S            a host whose agent is not heard of for so long is no spare, 2 to 20; default 10\n"
    "  --join-timeout S     a backup that nobody joins for so long ends, 1 to 3600; default 60\n"
    "  --json               status: for machines\n"
    "  --help, --version\n"
    "\n"
    "exit status  0: ended by SIGTERM or SIGINT, or done; 1: an error; 2: wrong use. Guests outlive the agent.\n";

static atomic_bool stop;

static void on_signal(int signal_number)
{
    (void)signal_number;
    atomic_store(&stop, true);
}

static int wrong_use(const char *what, const char *value)
{
    report_error("%s%s; 'ftagent --help' explains the options", what, value);
    return 2;
}

static bool take_number(const char *text, uint64_t least, uint64_t most, uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == '\0' && *out >= least && *out <= most;
}

struct asked {
    const char *command;
    struct agent_options agent;
    bool json;
};

/* 0: go on; -1: done; else the exit status. */
static int parse(struct asked *asked, int argc, char **argv)
{
    enum { OPT_FLEET = 1, OPT_AUTH, OPT_MEMORY, OPT_GUESTS, OPT_NAME, OPT_VMS, OPT_RUN, OPT_FTVMM, OPT_LEASE,
           OPT_JOIN_TIMEOUT, OPT_JSON, OPT_HELP, OPT_VERSION };
    static const struct option known[] = {
        { "fleet", required_argument, NULL, OPT_FLEET },   { "fleet-auth", required_argument, NULL, OPT_AUTH },
        { "memory", required_argument, NULL, OPT_MEMORY }, { "guests", required_argument, NULL, OPT_GUESTS },
        { "name", required_argument, NULL, OPT_NAME },     { "vms", required_argument, NULL, OPT_VMS },
        { "run", required_argument, NULL, OPT_RUN },       { "ftvmm", required_argument, NULL, OPT_FTVMM },
        { "lease", required_argument, NULL, OPT_LEASE },   { "json", no_argument, NULL, OPT_JSON },
        { "help", no_argument, NULL, OPT_HELP },           { "version", no_argument, NULL, OPT_VERSION },
        { "join-timeout", required_argument, NULL, OPT_JOIN_TIMEOUT }, { NULL, 0, NULL, 0 },
    };
    struct agent_options *agent = &asked->agent;
    uint64_t number;
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case OPT_FLEET: agent->owner.urls = optarg; break;
        case OPT_AUTH: agent->owner.auth_dir = optarg; break;
        case OPT_NAME: agent->owner.host = optarg; break;
        case OPT_VMS: agent->vms_dir = optarg; break;
        case OPT_RUN: agent->owner.run_dir = optarg; break;
        case OPT_FTVMM: agent->owner.ftvmm = optarg; break;
        case OPT_JSON: asked->json = true; break;
        case OPT_MEMORY:
            if (!take_number(optarg, 64, UINT32_MAX, &number))
                return wrong_use("--memory takes MiB, 64 or more, not ", optarg);
            agent->memory_mib = (uint32_t)number;
            break;
        case OPT_GUESTS:
            if (!take_number(optarg, 1, FLEET_CLAIMS_MAX, &number))
                return wrong_use("--guests takes a number from 1 to 64, not ", optarg);
            agent->guests = (uint32_t)number;
            break;
        case OPT_LEASE:
            if (!take_number(optarg, AGENT_LEASE_MIN_S, AGENT_LEASE_MAX_S, &number))
                return wrong_use("--lease takes seconds from 2 to 20, not ", optarg);
            agent->lease_s = (unsigned)number;
            break;
        case OPT_JOIN_TIMEOUT:
            if (!take_number(optarg, 1, 3600, &number))
                return wrong_use("--join-timeout takes seconds from 1 to 3600, not ", optarg);
            agent->owner.join_timeout_s = (unsigned)number;
            break;
        case OPT_HELP: fputs(usage, stdout); return -1;
        case OPT_VERSION: puts("ftagent " FTVMM_VERSION); return -1;
        default: return wrong_use("unknown option, or its value is missing: ", argv[optind - 1]);
        }
    }
    if (optind >= argc)
        return wrong_use("a command is missing: run, status or check", "");
    asked->command = argv[optind++];
    if (optind < argc)
        return wrong_use("one word too many: ", argv[optind]);
    return 0;
}

static int run(struct agent_options *agent)
{
    static char host_name[256];
    struct sigaction action = { .sa_handler = on_signal };
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    if (agent->owner.urls == NULL || agent->memory_mib == 0)
        return wrong_use("run needs --fleet and --memory", "");
    if (agent->owner.host == NULL) {
        (void)gethostname(host_name, sizeof(host_name) - 1);
        agent->owner.host = host_name;
    }
    if (!fleet_name_is_valid(agent->owner.host))
        return wrong_use("a host's name, given with --name, has " FLEET_NAME_RULE ", and is not ", agent->owner.host);
    if (agent->guests == 0)
        agent->guests = cpus < 1 ? 1 : cpus > (long)FLEET_CLAIMS_MAX ? FLEET_CLAIMS_MAX : (uint32_t)cpus;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    return agent_run(agent) == 0 ? 0 : 1;
}

static int status(const struct asked *asked)
{
    char why[FLEET_WHY_BYTES];
    struct fleet *fleet;
    int rc;

    if (asked->agent.owner.urls == NULL)
        return wrong_use("status needs --fleet", "");
    if (fleet_open(&fleet, asked->agent.owner.urls, asked->agent.owner.auth_dir, "--fleet-auth", &stop) < 0)
        return 1;
    rc = listing_print(fleet, asked->json, why);
    if (rc < 0)
        report_error("etcd does not tell of the fleet: %s", why);
    fleet_close(fleet);
    return rc == 0 ? 0 : 1;
}

static int check(const struct agent_options *agent)
{
    struct descriptions *all = calloc(1, sizeof(*all));
    int rc = all != NULL ? descriptions_read(all, agent->vms_dir, true) : -ENOMEM;
    bool good = rc == 0 && all->bad == 0;

    for (unsigned i = 0; rc == 0 && i < all->count; i++)
        printf("%-16s %u MiB, would listen at %s\n", all->of[i].vm.name, all->of[i].vm.memory_mib,
               all->of[i].vm.address);
    if (all != NULL)
        descriptions_free(all);
    free(all);
    return good ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct asked asked = {
        .agent = { .owner = { .run_dir = "/run/ftagent", .ftvmm = "ftvmm", .join_timeout_s = 60 },
                   .vms_dir = "/etc/ftvmm/vms", .lease_s = 10, .stop = &stop },
    };
    int rc;

    report_set_program("ftagent");
    rc = parse(&asked, argc, argv);
    if (rc != 0)
        return rc < 0 ? 0 : rc;
    if (strcmp(asked.command, "run") == 0)
        return run(&asked.agent);
    if (strcmp(asked.command, "status") == 0)
        return status(&asked);
    if (strcmp(asked.command, "check") == 0)
        return check(&asked.agent);
    return wrong_use("there is no command ", asked.command);
}
