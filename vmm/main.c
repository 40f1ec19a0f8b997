/* ftvmm: a virtual machine that survives its host. */
#include "base/report.h"
#include "vmm/check.h"
#include "vmm/options.h"
#include "vmm/session.h"

int main(int argc, char **argv)
{
    struct options options;
    int status;

    report_set_program("ftvmm");
    if (options_parse(&options, argc, argv, &status) == 0)
        status = options.command == COMMAND_CHECK ? check_run(&options) : session_run(&options);
    options_free(&options);
    return status;
}
