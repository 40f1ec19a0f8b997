/* Makes, checks and takes control blocks. Per event: allocates nothing, takes no lock, makes no system call. */
#include "channel/control.h"

#include <stddef.h>

static void seal(struct control_block *block, uint64_t key)
{
    block->crc = crc32c_keyed(key, block, offsetof(struct control_block, crc));
}

struct control_block control_of_sender(uint64_t counter, uint64_t key, uint64_t lsn, uint64_t bytes)
{
    struct control_block block = { .counter = counter, .lsn = lsn, .bytes = bytes };

    seal(&block, key);
    return block;
}

struct control_block control_of_receiver(const struct channel *channel, uint64_t counter, uint64_t key)
{
    struct control_block block = { .counter = counter };

    /* Acquire, LSN first: the receiving thread writes bytes, then LSN, so these bytes cover that LSN; and
     * its reads of the frames come before our telling that they may be overwritten. */
    block.lsn = atomic_load_explicit(&channel->credit->lsn, memory_order_acquire);
    block.bytes = link_free_bytes(channel);
    block.seen_lsn = atomic_load_explicit(&channel->ahead_credit.lsn, memory_order_acquire);
    block.word = channel_told(channel);
    seal(&block, key);
    return block;
}

bool control_fits(const struct control_block *block, uint64_t key)
{
    return block->crc == crc32c_keyed(key, block, offsetof(struct control_block, crc));
}

bool control_take(struct channel *channel, const struct control_block *block, uint64_t limit_bytes)
{
    struct ring_credit *credit = channel->credit;
    /* Acquire, the index before the LSN as send_ring_commit writes them the other way round: committed comes before
     * sent, and sent before what the peer can have read. */
    uint64_t committed = atomic_load_explicit(&channel->send.committed, memory_order_acquire);
    uint64_t committed_lsn = atomic_load_explicit(&channel->send.committed_lsn, memory_order_acquire);
    uint64_t bytes = block->bytes < limit_bytes ? block->bytes : limit_bytes;

    channel_tell(channel, block->word);
    if (block->bytes > committed || block->lsn > committed_lsn || block->seen_lsn > committed_lsn)
        return false;
    /* Relaxed reads: our own thread's words. */
    if (bytes > atomic_load_explicit(&credit->bytes, memory_order_relaxed))
        /* V3 release, pairs with S1 in send_ring.c: nothing reads those bytes any more. */
        atomic_store_explicit(&credit->bytes, bytes, memory_order_release);
    if (block->lsn > atomic_load_explicit(&credit->lsn, memory_order_relaxed))
        atomic_store_explicit(&credit->lsn, block->lsn, memory_order_release);
    if (channel->ack == CHANNEL_ACK_SEEN &&
        block->seen_lsn > atomic_load_explicit(&channel->acked_lsn, memory_order_relaxed))
        atomic_store_explicit(&channel->acked_lsn, block->seen_lsn, memory_order_release); /* A1 */
    return true;
}
