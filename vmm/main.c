/* ftvmm: a virtual machine that survives its host. */
#include "base/report.h"
#include "vmm/check.h"
#include "vmm/log.h"
#include "vmm/options.h"
#include "vmm/session.h"

static int run(const struct options *options)
{
    if (options->command == COMMAND_CHECK)
        return check_run(options);
    if (options->command == COMMAND_LOG)
        return log_print(&options->log, stdout);
    return session_run(options);
}

int main(int argc, char **argv)
{
    struct options options;
    int status;

    report_set_program("ftvmm");
    if (options_parse(&options, argc, argv, &status) == 0)
        status = run(&options);
    options_free(&options);
    return status;
}
