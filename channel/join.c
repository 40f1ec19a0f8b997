/* Compares the ends and says in words what does not fit. */
#include "channel/join.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/record.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct join_side join_side_of(const struct channel_options *options)
{
    return (struct join_side){ .version = WIRE_VERSION,
                               .features = JOIN_FEATURE_RESUME | (options->secret != NULL ? JOIN_FEATURE_KEY : 0),
                               .ring_bytes = options->ring_bytes, .ack = (uint8_t)options->ack,
                               .hello = options->hello };
}

enum join_refusal join_compare(const struct join_side *sender, const struct join_side *receiver)
{
    if (sender->version != receiver->version)
        return JOIN_VERSION;
    if (((sender->features ^ receiver->features) & JOIN_FEATURES_EQUAL) != 0)
        return JOIN_FEATURE;
    if (sender->ring_bytes != receiver->ring_bytes)
        return JOIN_RING_BYTES;
    if (memcmp(sender->hello.vm, receiver->hello.vm, sizeof(sender->hello.vm)) != 0)
        return JOIN_VM;
    if (receiver->hello.generation != 0 && sender->hello.generation != receiver->hello.generation)
        return JOIN_GENERATION;
    if (memcmp(sender->hello.digest, receiver->hello.digest, sizeof(sender->hello.digest)) != 0)
        return JOIN_DIGEST;
    return JOIN_ACCEPTED;
}

const char *join_printable(const char vm[32], char text[33])
{
    for (size_t i = 0; i < 32; i++)
        text[i] = (uint8_t)vm[i] < 0x20 || (uint8_t)vm[i] > 0x7e ? (vm[i] == '\0' ? '\0' : '?') : vm[i];
    text[32] = '\0';
    return text;
}

static void digest_text(const uint8_t digest[16], char text[33])
{
    for (size_t i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

void join_report_refusal(enum join_refusal refusal, const char *peer, const struct join_side *ours,
                         const struct join_side *theirs, bool ours_is_receiver)
{
    const char *who = ours_is_receiver ? "sender refused" : "receiver refuses us";
    char our_text[33], their_text[33];

    switch (refusal) {
    case JOIN_ACCEPTED:
        return;
    case JOIN_NOT_FTVMM:
        report_error("%s: %s: it does not speak this channel's protocol; is another program using the address?",
                     peer, who);
        return;
    case JOIN_VERSION:
        report_error("%s: %s: it speaks version %u of the channel, we speak %u; install the same ftvmm on both hosts",
                     peer, who, theirs->version, ours->version);
        return;
    case JOIN_FEATURE:
        if (((theirs->features ^ ours->features) & JOIN_FEATURE_KEY) != 0)
            report_error("%s: %s: %s has a shared key, %s has none; give both ends the same key file, or neither", peer,
                         who, (ours->features & JOIN_FEATURE_KEY) != 0 ? "this end" : "the other end",
                         (ours->features & JOIN_FEATURE_KEY) != 0 ? "the other" : "this");
        else
            report_error("%s: %s: its features are 0x%x, ours 0x%x; install the same ftvmm on both hosts and give "
                         "both the same options", peer, who, theirs->features, ours->features);
        return;
    case JOIN_RING_BYTES:
        report_error("%s: %s: its ring has %llu bytes, ours %llu; give both ends the same ring size", peer, who,
                     (unsigned long long)theirs->ring_bytes, (unsigned long long)ours->ring_bytes);
        return;
    case JOIN_VM:
        report_error("%s: %s: it is for virtual machine '%s', we are for '%s'; give both ends the same name, or "
                     "another address", peer, who, join_printable(theirs->hello.vm, their_text),
                     join_printable(ours->hello.vm, our_text));
        return;
    case JOIN_GENERATION:
        report_error("%s: %s: it is of generation %llu, we are of %llu; one of the two is left over from before a "
                     "go-live and has to be stopped", peer, who, (unsigned long long)theirs->hello.generation,
                     (unsigned long long)ours->hello.generation);
        return;
    case JOIN_DIGEST:
        digest_text(theirs->hello.digest, their_text);
        digest_text(ours->hello.digest, our_text);
        report_error("%s: %s: the digest of its configuration and images is %s, ours %s; both hosts need the same "
                     "kernel, initramfs, command line, memory size and disk", peer, who, their_text, our_text);
        return;
    case JOIN_KEY:
        report_error("%s: %s: it does not hold the same key as this end (or somebody changed what was said on the "
                     "way); copy one key file to both hosts", peer, who);
        return;
    case JOIN_USER:
        report_error("%s: %s: the two processes belong to different users; run both ends as one", peer, who);
        return;
    case JOIN_SESSION:
        report_error("%s: %s: the broken connection that was to be resumed is not one of %s; was the receiver started "
                     "anew, or the address given to another?", peer, who, ours_is_receiver ? "ours" : "its");
        return;
    case JOIN_FENCED:
        report_error("%s: %s: the receiver has fenced this sender off, or met damage, and takes nothing more", peer,
                     who);
        return;
    case JOIN_BUSY:
        report_error("%s: %s: the receiver has another sender", peer, who);
        return;
    }
    report_error("%s: %s for a reason unknown to us (%u); install the same ftvmm on both hosts", peer, who,
                 (unsigned)refusal);
}

struct join_deadline join_deadline_of(const struct channel_options *options)
{
    uint64_t now_ns = clock_now_ns();
    struct join_deadline deadline = { .at_ns = UINT64_MAX, .cancel = options->cancel };

    if (options->join_timeout_ns < UINT64_MAX - now_ns)
        deadline.at_ns = now_ns + options->join_timeout_ns;
    return deadline;
}

int join_deadline_check(const struct join_deadline *deadline)
{
    /* A signal handler or another thread sets *cancel and nothing is read on the strength of it: relaxed. */
    if (deadline->cancel != NULL && __atomic_load_n(deadline->cancel, __ATOMIC_RELAXED))
        return -ECANCELED;
    return clock_now_ns() >= deadline->at_ns ? -ETIMEDOUT : 0;
}
