/*
 * ftctl: asks a running ftvmm, over its control socket, how it is, and asks things of it. One request, its answer, and
 * for `events --follow` what comes behind; vmm/control.h has the protocol. What is read is shown by show.c.
 */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "ftctl/show.h"
#include "vmm/control.h"

static const char help[] =
    "usage: ftctl [--socket PATH | --name VM] COMMAND\n"
    "\n"
    "commands\n"
    "  status            role, protection, lag, latencies, log, exits, and how the last failover went\n"
    "  events [--follow] what has become of the pair, and when; --follow: and what comes\n"
    "  failover          primary: move the guest to the backup, now\n"
    "  protect [ADDRESS] alone: give the running guest a new backup, which listens there\n"
    "  unprotect         primary: go on alone; the backup ends. Alone: seek no new backup\n"
    "  stop              stop the guest in order, on both hosts\n"
    "\n"
    "options\n"
    "  --socket PATH     the control socket (ftvmm --control PATH)\n"
    "  --name VM         the same as --socket " CONTROL_DIRECTORY "/VM.sock; default vm\n"
    "  --json            print what ftvmm has answered: a line of JSON, with --follow several\n"
    "  --help, --version\n"
    "\n"
    "exit status: 0 done; 1 refused, failed, or nobody answers; 2 wrong use\n";

static const char *const commands[] = { "status", "events", "failover", "protect", "unprotect", "stop" };

struct asked {
    const char *command;
    const char *address; /* protect; NULL: none */
    char socket[108];
    bool follow, json;
};

static int wrong_use(const char *format, const char *what)
{
    fputs("ftctl: error: ", stderr);
    fprintf(stderr, format, what);
    fputs("; see 'ftctl --help'\n", stderr);
    return 2;
}

/* 0: go on; else *status is how to end. */
static int parse(struct asked *asked, int argc, char **argv, int *status)
{
    static const struct option options[] = {
        { "socket", required_argument, NULL, 's' }, { "name", required_argument, NULL, 'n' },
        { "follow", no_argument, NULL, 'f' },       { "json", no_argument, NULL, 'j' },
        { "help", no_argument, NULL, 'h' },         { "version", no_argument, NULL, 'v' },
        { NULL, 0, NULL, 0 },
    };
    const char *path = NULL, *name = NULL;
    int id, length;

    *asked = (struct asked){ 0 };
    *status = 2;
    opterr = 0;
    while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (id) {
        case 's': path = optarg; break;
        case 'n': name = optarg; break;
        case 'f': asked->follow = true; break;
        case 'j': asked->json = true; break;
        case 'h':
        case 'v':
            fputs(id == 'h' ? help : "ftctl " FTVMM_VERSION "\n", stdout);
            *status = 0;
            return -1;
        default: return wrong_use("%s", "an option is unknown or lacks its value");
        }
    }
    if (optind >= argc)
        return wrong_use("%s", "a command is missing");
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(argv[optind], commands[i]) == 0)
            asked->command = commands[i];
    if (asked->command == NULL)
        return wrong_use("there is no command '%s'", argv[optind]);
    optind++;
    if (strcmp(asked->command, "protect") == 0 && optind < argc)
        asked->address = argv[optind++];
    if (optind < argc)
        return wrong_use("'%s' is one word too many", argv[optind]);
    if (asked->follow && strcmp(asked->command, "events") != 0)
        return wrong_use("%s belongs to events", "--follow");
    if (path != NULL && name != NULL)
        return wrong_use("%s and --name say the same thing in two ways; give one", "--socket");
    if (path != NULL)
        length = snprintf(asked->socket, sizeof(asked->socket), "%s", path);
    else
        length = snprintf(asked->socket, sizeof(asked->socket), "%s/%s.sock", CONTROL_DIRECTORY,
                          name != NULL ? name : "vm");
    if (length >= (int)sizeof(asked->socket))
        return wrong_use("'%s' is too long for a socket", path != NULL ? path : name);
    return 0;
}

static FILE *connect_to(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    FILE *stream = NULL;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        stream = fdopen(fd, "r+");
    if (stream != NULL)
        return stream;
    switch (errno) {
    case ENOENT:
        fprintf(stderr, "ftctl: error: there is no control socket '%s': is ftvmm running, with --control PATH? Say "
                        "which with --socket PATH or --name VM\n", path);
        break;
    case ECONNREFUSED:
        fprintf(stderr, "ftctl: error: nobody listens at '%s': its ftvmm has died; see its last words\n", path);
        break;
    case EACCES:
        fprintf(stderr, "ftctl: error: '%s' belongs to another user: be that user, or root\n", path);
        break;
    default: fprintf(stderr, "ftctl: error: '%s' cannot be reached: %s\n", path, strerror(errno));
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}

/* Shows one answer. The exit status that it means. */
static int show(const struct asked *asked, const cJSON *answer)
{
    const cJSON *event = cJSON_GetObjectItem(answer, "event"), *status = cJSON_GetObjectItem(answer, "status");
    const char *error = cJSON_GetStringValue(cJSON_GetObjectItem(answer, "error"));

    if (event != NULL) {
        show_event(event);
        return 0;
    }
    if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok"))) {
        fprintf(stderr, "ftctl: error: %s\n", error != NULL ? error : "refused, without a word why");
        show_handover(cJSON_GetObjectItem(answer, "handover"));
        return 1;
    }
    if (status != NULL)
        show_status(status);
    cJSON_ArrayForEach(event, cJSON_GetObjectItem(answer, "events"))
        show_event(event);
    if (strcmp(asked->command, "failover") == 0) {
        puts("the backup has the guest; this host is done");
        show_handover(cJSON_GetObjectItem(answer, "handover"));
    } else if (strcmp(asked->command, "unprotect") == 0) {
        puts("the guest goes on here, without protection; the backup will end");
    } else if (strcmp(asked->command, "protect") == 0) {
        puts("the guest has a backup");
    } else if (strcmp(asked->command, "stop") == 0) {
        puts("the guest has ended");
    }
    return 0;
}

static char *request_of(const struct asked *asked)
{
    cJSON *request = cJSON_CreateObject();
    char *line;

    cJSON_AddStringToObject(request, "command", asked->command);
    if (asked->follow)
        cJSON_AddTrueToObject(request, "follow");
    if (asked->address != NULL)
        cJSON_AddStringToObject(request, "address", asked->address);
    line = cJSON_PrintUnformatted(request);
    cJSON_Delete(request);
    return line;
}

static int ask(const struct asked *asked)
{
    FILE *stream = connect_to(asked->socket);
    char *line = NULL, *request;
    size_t room = 0;
    ssize_t bytes;
    int rc = -1;

    if (stream == NULL)
        return 1;
    request = request_of(asked);
    fprintf(stream, "%s\n", request != NULL ? request : "");
    fflush(stream);
    free(request);
    while ((rc == -1 || asked->follow) && (bytes = getline(&line, &room, stream)) > 0) {
        cJSON *answer = cJSON_ParseWithLength(line, (size_t)bytes);
        bool refused = !cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")) && cJSON_GetObjectItem(answer, "event") == NULL;

        if (answer == NULL) {
            fprintf(stderr, "ftctl: error: '%s' answers what is no JSON; is it ftvmm's?\n", asked->socket);
            rc = 1;
        } else if (asked->json) {
            fputs(line, stdout);
            rc = refused;
        } else {
            rc = show(asked, answer);
        }
        fflush(stdout);
        cJSON_Delete(answer);
        if (rc != 0)
            break;
    }
    if (rc == -1) {
        fprintf(stderr, "ftctl: error: '%s' has closed without an answer\n", asked->socket);
        rc = 1;
    }
    free(line);
    fclose(stream);
    return rc;
}

int main(int argc, char **argv)
{
    struct asked asked;
    int status, rc = parse(&asked, argc, argv, &status);

    return rc != 0 ? status : ask(&asked);
}
