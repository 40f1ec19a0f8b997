/*
 * channel-probe: sends records over a channel link and checks them at the other end; measures commit -> ack.
 *
 *   channel-probe [options] receive ADDRESS   checks the content of each record
 *   channel-probe [options] send ADDRESS      prints latency percentiles
 *
 *   -n RECORDS  default 10000; 0: until stopped       -s BYTES  payload, default 24
 *   -w WINDOW   records not yet acked, default 1      -r MiB    ring, default 4
 *   -p US       pause between looks, default 20; 0: spin
 *   -t MS       silence after which the peer counts as lost, default 1500
 *   -f MS       receiver: fence this long after the first record
 *   -a FILE     sender: keeps the highest acked LSN in FILE, so that it outlives the sender (not on 9p, which
 *               cannot be mapped)
 *   -j MS       joining time-out, default 20000
 *   -k FILE     shared key
 *   -c          sender: goes on when the connection breaks, which is joined again
 */
#include "base/clock.h"
#include "base/histogram.h"
#include "base/report.h"
#include "channel/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEARTBEAT_NS   (5 * NS_PER_MS)
#define WINDOW_MAX     65536u

static bool stop;

static void on_signal(int number)
{
    (void)number;
    stop = true;
}

struct arguments {
    uint64_t records, bytes, window, pause_us, silence_ms, fence_ms, join_ms, ring_mib;
    const char *acked_path;
    bool goes_on;
    struct channel_options options;
};

static uint8_t content(uint64_t lsn, uint64_t i)
{
    return (uint8_t)(lsn * 131 + i * 7);
}

static void wait_a_little(const struct arguments *arguments)
{
    if (arguments->pause_us > 0)
        clock_sleep_ns(arguments->pause_us * NS_PER_US);
}

static void print_statistics(const struct channel *channel, const char *what, uint64_t elapsed_ns)
{
    struct channel_statistics statistics;

    channel_get_statistics(channel, &statistics);
    printf("%s records %llu bytes %llu writes %llu stalls %llu torn %llu elapsed_ms %llu\n", what,
           (unsigned long long)statistics.records, (unsigned long long)statistics.record_bytes,
           (unsigned long long)statistics.writes, (unsigned long long)statistics.stalls,
           (unsigned long long)statistics.torn, (unsigned long long)(elapsed_ns / NS_PER_MS));
}

static int probe_send(const struct arguments *arguments)
{
    static struct histogram latency;
    uint64_t *committed_ns = calloc(WINDOW_MAX, sizeof(*committed_ns)), acked = 0, committed = 0, beat_ns = 0;
    _Atomic uint64_t *kept = NULL;
    struct channel *channel;
    uint64_t begin_ns, now_ns;
    int result = channel_open_sender(&channel, &arguments->options);
    const char *end = "done";

    if (result != 0)
        return 2;
    if (arguments->acked_path != NULL) {
        int fd = open(arguments->acked_path, O_RDWR | O_CREAT, 0600);

        if (fd < 0 || ftruncate(fd, 4096) != 0 ||
            (kept = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
            report_error("%s: %s", arguments->acked_path, strerror(errno));
            return 2;
        }
        *kept = 0;
    }
    report_info("joined");
    begin_ns = clock_now_ns();
    while (!stop && (arguments->records == 0 || acked < arguments->records)) {
        bool moved = false;
        uint64_t now_acked;

        while (committed - acked < arguments->window && (arguments->records == 0 || committed < arguments->records)) {
            void *payload;

            result = channel_reserve(channel, 1, committed + 1, arguments->bytes, &payload);
            if (result != 0)
                break;
            for (uint64_t i = 0; i < arguments->bytes; i++)
                ((uint8_t *)payload)[i] = content(committed + 1, i);
            committed_ns[(committed + 1) % WINDOW_MAX] = clock_now_ns();
            committed = channel_commit(channel);
            moved = true;
        }
        if ((channel_poll(channel) != 0 && !arguments->goes_on) || result == -EPIPE) {
            end = "link down";
            break;
        }
        now_acked = channel_acked_lsn(channel);
        now_ns = clock_now_ns();
        for (; acked < now_acked; acked++, moved = true)
            histogram_record(&latency, now_ns - committed_ns[(acked + 1) % WINDOW_MAX]);
        if (kept != NULL)
            *kept = acked;
        if (now_ns - beat_ns >= HEARTBEAT_NS) {
            channel_heartbeat(channel);
            beat_ns = now_ns;
            if (now_ns - channel_peer_seen_ns(channel) > arguments->silence_ms * NS_PER_MS &&
                channel_peer_seen_ns(channel) < now_ns) {
                end = "peer silent";
                break;
            }
        }
        if (!moved)
            wait_a_little(arguments);
    }
    now_ns = clock_now_ns();
    printf("end %s after_peer_seen_ms %llu\n", end,
           (unsigned long long)((now_ns - channel_peer_seen_ns(channel)) / NS_PER_MS));
    printf("committed %llu acked %llu consumed %llu\n", (unsigned long long)committed, (unsigned long long)acked,
           (unsigned long long)channel_consumed_lsn(channel));
    printf("commit_to_ack_us samples %llu p50 %.1f p90 %.1f p99 %.1f p99.9 %.1f max %.1f\n",
           (unsigned long long)latency.samples, (double)histogram_percentile(&latency, 50) / 1e3,
           (double)histogram_percentile(&latency, 90) / 1e3, (double)histogram_percentile(&latency, 99) / 1e3,
           (double)histogram_percentile(&latency, 99.9) / 1e3, (double)latency.max / 1e3);
    printf("rate_per_s %.0f\n", (double)acked * 1e9 / (double)(now_ns - begin_ns + 1));
    print_statistics(channel, "sender", now_ns - begin_ns);
    channel_close(channel);
    return strcmp(end, "done") == 0 ? 0 : 1;
}

static int probe_receive(const struct arguments *arguments)
{
    struct channel *channel;
    uint64_t beat_ns = 0, first_ns = 0, begin_ns, now_ns, lsn = 0;
    bool fence = false, fenced = false;
    const char *end = "done";
    int result = channel_open_receiver(&channel, &arguments->options);

    if (result != 0)
        return 2;
    report_info("joined");
    begin_ns = clock_now_ns();
    while (!stop && (arguments->records == 0 || lsn < arguments->records)) {
        struct channel_record record;

        result = channel_next(channel, &record);
        if (result == 0) {
            const uint8_t *payload = record.payload;

            if (record.lsn != lsn + 1 || record.position != record.lsn || record.kind != 1 ||
                record.bytes != arguments->bytes) {
                end = "WRONG RECORD";
                break;
            }
            for (uint64_t i = 0; i < record.bytes; i++) {
                if (payload[i] != content(record.lsn, i))
                    end = "WRONG CONTENT";
            }
            if (strcmp(end, "done") != 0)
                break;
            lsn = record.lsn;
            if (first_ns == 0)
                first_ns = clock_now_ns();
            channel_consume(channel);
        } else if (result != -EAGAIN) {
            end = result == -ENODATA ? "no more" : "DAMAGED";
            break;
        }
        now_ns = clock_now_ns();
        if (now_ns - beat_ns >= HEARTBEAT_NS) {
            channel_heartbeat(channel);
            beat_ns = now_ns;
            if (!fenced && channel_peer_seen_ns(channel) < now_ns &&
                now_ns - channel_peer_seen_ns(channel) > arguments->silence_ms * NS_PER_MS) {
                printf("peer silent for %llu ms: fence\n",
                       (unsigned long long)((now_ns - channel_peer_seen_ns(channel)) / NS_PER_MS));
                fence = true;
            } else if (!fenced && arguments->fence_ms != 0 && first_ns != 0 &&
                       now_ns - first_ns > arguments->fence_ms * NS_PER_MS) {
                printf("fence while the sender lives\n");
                fence = true;
            }
            if (fence && !fenced) {
                uint64_t fence_ns = clock_now_ns();

                int failed = channel_fence(channel);

                printf("fence result %d took_us %llu at_lsn %llu\n", failed,
                       (unsigned long long)((clock_now_ns() - fence_ns) / NS_PER_US), (unsigned long long)lsn);
                fenced = true;
            }
        }
        if (result == -EAGAIN)
            wait_a_little(arguments);
    }
    now_ns = clock_now_ns();
    if (strcmp(end, "done") == 0 && arguments->records != 0) /* so that the sender hears of the last credits */
        for (int i = 0; i < 40; i++) {
            channel_heartbeat(channel);
            clock_sleep_ns(HEARTBEAT_NS);
        }
    printf("end %s delivered %llu\n", end, (unsigned long long)lsn);
    print_statistics(channel, "receiver", now_ns - begin_ns);
    channel_close(channel);
    return end[0] >= 'A' && end[0] <= 'Z' ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct arguments arguments = { .records = 10000, .bytes = 24, .window = 1, .pause_us = 20, .silence_ms = 1500,
                                   .join_ms = 20000, .ring_mib = 4 };
    struct sigaction action = { .sa_handler = on_signal };
    static struct channel_secret secret;
    const char *key_path = NULL;
    int option;

    report_set_program("channel-probe");
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    while ((option = getopt(argc, argv, "n:s:w:r:p:t:f:a:j:k:c")) != -1) {
        uint64_t value = optarg != NULL ? strtoull(optarg, NULL, 0) : 0;

        if (option == 'n')
            arguments.records = value;
        else if (option == 's')
            arguments.bytes = value;
        else if (option == 'w')
            arguments.window = value < WINDOW_MAX ? value : WINDOW_MAX - 1;
        else if (option == 'r')
            arguments.ring_mib = value;
        else if (option == 'p')
            arguments.pause_us = value;
        else if (option == 't')
            arguments.silence_ms = value;
        else if (option == 'f')
            arguments.fence_ms = value;
        else if (option == 'j')
            arguments.join_ms = value;
        else if (option == 'a')
            arguments.acked_path = optarg;
        else if (option == 'c')
            arguments.goes_on = true;
        else if (option == 'k')
            key_path = optarg;
        else
            return 2;
    }
    if (argc - optind != 2 || (strcmp(argv[optind], "send") != 0 && strcmp(argv[optind], "receive") != 0)) {
        fprintf(stderr, "usage: channel-probe [options] send|receive ADDRESS (options: head of channel_probe.c)\n");
        return 2;
    }
    arguments.options = (struct channel_options){ .address = argv[optind + 1], .ring_bytes = arguments.ring_mib << 20,
                                                  .join_timeout_ns = arguments.join_ms * NS_PER_MS, .cancel = &stop,
                                                  .hello = { .vm = "probe", .generation = 1 },
                                                  .secret = key_path != NULL ? &secret : NULL };
    if (key_path != NULL && channel_secret_load(&secret, key_path) != 0)
        return 2;
    return strcmp(argv[optind], "send") == 0 ? probe_send(&arguments) : probe_receive(&arguments);
}
