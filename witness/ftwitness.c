/* ftwitness: the third host's part in who goes on alone. Options, rights, signals; serve.c does the work. */
#include "base/report.h"
#include "witness/serve.h"
#include "witness/table.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

static const char usage[] =
    "usage: ftwitness --listen HOST:PORT --keys DIR --state DIR [--vms N] [--user NAME]\n"
    "\n"
    "Keeps one word of memory per VM and generation, which the RDMA cards of the pair's hosts swap: the first to do so\n"
    "goes on alone. Runs on a third host; the pair's say --arbiter rdma:HOST:PORT --arbiter-auth DIR.\n"
    "\n"
    "  --listen HOST:PORT   where to listen: an address of an RDMA device with atomic operations; [HOST]:PORT for IPv6\n"
    "  --keys DIR           a file per VM, named after it: the key that its hosts have in --arbiter-auth DIR as 'key';\n"
    "                       32 to 256 random bytes, mode 600. May be added to and taken from at any time\n"
    "  --state DIR          ours alone (mkdir -m 700); holds the generations that were begun. Must outlive restarts\n"
    "  --vms N              how many VMs it may know, 1 to 1024; default 64\n"
    "  --user NAME          become this user first; required when started as root, whose rights it does not need\n"
    "  --help, --version\n"
    "\n"
    "exit status  0: ended by SIGTERM or SIGINT; 1: an error; 2: wrong use\n";

static int wrong_use(const char *what, const char *value)
{
    report_error("%s%s; 'ftwitness --help' explains the options", what, value);
    return 2;
}

/* 0, or the exit status. */
static int become(const char *name)
{
    const struct passwd *user = name != NULL ? getpwnam(name) : NULL;

    /* No program that we could be made to start gets more, and no core file has keys in it. */
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (name != NULL && user == NULL) {
        report_error("there is no user '%s'; 'adduser --system %s' makes one", name, name);
        return 1;
    }
    if (geteuid() == 0 && (user == NULL || user->pw_uid == 0))
        return wrong_use("a witness needs no rights of root: give --user NAME, who can read --keys and write --state", "");
    if (user != NULL && user->pw_uid != geteuid() &&
        (setgroups(0, NULL) != 0 || setgid(user->pw_gid) != 0 || setuid(user->pw_uid) != 0)) {
        report_error("cannot become user '%s': %s; start it as that user, or as root", name, strerror(errno));
        return 1;
    }
    return 0;
}

/* Key files that others could read are refused one by one; a directory that others may write to, here. */
static int check_keys(const char *path)
{
    struct stat status;

    if (stat(path, &status) != 0 || !S_ISDIR(status.st_mode)) {
        report_error("--keys '%s' is no directory that we can look into: %s", path,
                     strerror(errno != 0 ? errno : ENOTDIR));
        return 1;
    }
    if ((status.st_mode & 022) != 0 || (status.st_uid != geteuid() && status.st_uid != 0)) {
        report_error("--keys '%s' must be ours or root's, and nobody else may write there: 'chmod 700 %s'", path, path);
        return 1;
    }
    return 0;
}

static int parse(struct witness_server_options *options, const char **user, int argc, char **argv)
{
    enum { OPT_LISTEN = 1, OPT_KEYS, OPT_STATE, OPT_VMS, OPT_USER, OPT_HELP, OPT_VERSION };
    static const struct option known[] = {
        { "listen", required_argument, NULL, OPT_LISTEN }, { "keys", required_argument, NULL, OPT_KEYS },
        { "state", required_argument, NULL, OPT_STATE },   { "vms", required_argument, NULL, OPT_VMS },
        { "user", required_argument, NULL, OPT_USER },     { "help", no_argument, NULL, OPT_HELP },
        { "version", no_argument, NULL, OPT_VERSION },     { NULL, 0, NULL, 0 },
    };
    int option;
    char *end;

    opterr = 0;
    while ((option = getopt_long(argc, argv, "+", known, NULL)) != -1) {
        switch (option) {
        case OPT_LISTEN: options->listen = optarg; break;
        case OPT_KEYS: options->keys = optarg; break;
        case OPT_STATE: options->state = optarg; break;
        case OPT_USER: *user = optarg; break;
        case OPT_VMS:
            options->vms = (unsigned)strtoul(optarg, &end, 10);
            if (*optarg < '0' || *optarg > '9' || *end != '\0' || options->vms < 1 || options->vms > WITNESS_VMS_MAX)
                return wrong_use("--vms takes a number from 1 to 1024, not ", optarg);
            break;
        case OPT_HELP: fputs(usage, stdout); return -1;
        case OPT_VERSION: puts("ftwitness " FTVMM_VERSION); return -1;
        default: return wrong_use("unknown option, or its value is missing: ", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return wrong_use("unknown argument ", argv[optind]);
    if (options->listen == NULL || options->keys == NULL || options->state == NULL)
        return wrong_use("--listen, --keys and --state are required", "");
    return 0;
}

int main(int argc, char **argv)
{
    struct witness_server_options options = { .vms = 64 };
    struct witness_server *server;
    const char *user = NULL;
    sigset_t stop;
    int status, stop_fd;

    report_set_program("ftwitness");
    status = parse(&options, &user, argc, argv);
    if (status != 0)
        return status < 0 ? 0 : status;
    status = become(user);
    if (status == 0)
        status = check_keys(options.keys);
    if (status != 0)
        return status;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    stop_fd = signalfd(-1, &stop, SFD_CLOEXEC);
    if (stop_fd < 0 || witness_server_open(&server, &options) != 0)
        return 1;
    report_info("witness at rdma:%s, for %u VMs at most", options.listen, options.vms);
    status = witness_server_run(server, stop_fd) == 0 ? 0 : 1;
    witness_server_close(server);
    close(stop_fd);
    return status;
}
