/* Reads what perftest's programs print. */
#include "bench/channel_bench.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int perftest_parse(const char *text, bool latency, uint32_t bytes, double *value)
{
    /*  #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec] ...
     *  #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps] */
    const char *head = strstr(text, "#bytes"), *line = head != NULL ? strchr(head, '\n') : NULL;

    for (; line != NULL; line = strchr(line + 1, '\n')) {
        unsigned found;
        double first, second, third;
        int count = sscanf(line + 1, "%u %*u %lf %lf %lf", &found, &first, &second, &third);

        if (count < 3 || found != bytes)
            continue;
        if (latency && count < 4)
            break;
        *value = latency ? third : second;
        return *value > 0 ? 0 : -EPROTO;
    }
    return -EPROTO;
}
