/* The 8254: counters as functions of the tick at which they were loaded, and the programming interface. */
#include "vmm/pit.h"

#include <string.h>

#include "base/clock.h"
#include "vmm/state_check.h"


#define PIT_NEVER             INT64_MAX
#define PIT_MODE_PORT         (PIT_PORT + 3)
#define PIT_ACCESS_LATCH      0u
#define PIT_ACCESS_LOW        1u
#define PIT_ACCESS_HIGH       2u
#define PIT_ACCESS_BOTH       3u
#define PIT_READ_BACK         3u /* "channel" 3 of a control word */
#define PIT_STATUS_OUTPUT     0x80u
#define PIT_STATUS_NULL_COUNT 0x40u
#define PIT_SPEAKER_CHANNEL   2u
#define CONTROL_GATE2         0x01u
#define CONTROL_WRITABLE      0x0Fu
#define CONTROL_REFRESH       0x10u
#define CONTROL_OUTPUT2       0x20u
#define PIT_REFRESH_TICKS     18 /* a PC's memory refresh: about every 15 us; AT technical reference */

__extension__ typedef unsigned __int128 wide;

static int64_t tick_from_ns(uint64_t now_ns)
{
    return (int64_t)((wide)now_ns * PIT_HZ / NS_PER_S); /* below 2^55 for any now_ns */
}

/* First nanosecond that belongs to `tick`. */
static uint64_t tick_to_ns(int64_t tick)
{
    wide ns = ((wide)(uint64_t)tick * NS_PER_S + PIT_HZ - 1) / PIT_HZ;

    return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

static bool channel_is_periodic(const struct pit_channel *channel)
{
    return channel->mode == 2 || channel->mode == 3;
}

/* Modes in which a rising gate starts the count and a low one does not stop it. */
static bool channel_is_triggered(const struct pit_channel *channel)
{
    return channel->mode == 1 || channel->mode == 5;
}

/* Ticks counted since the load; negative: not loaded yet. */
static int64_t channel_elapsed(const struct pit_channel *channel, int64_t tick)
{
    return channel->held ? channel->start_tick : tick - channel->start_tick;
}

/* Mode 3 is high for the longer half of an odd count; 82C54, mode 3. */
static int64_t square_high_ticks(uint32_t count)
{
    return (count + 1) / 2;
}

/* Level of OUT. In modes 2 and 3 the channel must be settled at `tick`. */
static bool channel_output(const struct pit_channel *channel, int64_t tick)
{
    int64_t elapsed = channel_elapsed(channel, tick);

    if (!channel->armed)
        return channel->mode != 0;
    switch (channel->mode) {
    case 0:
        return elapsed >= channel->count;
    case 1:
        return elapsed < 0 || elapsed >= channel->count;
    case 2:
        return channel->held || elapsed < 0 || elapsed % channel->count != channel->count - 1;
    case 3:
        return channel->held || elapsed < 0 || elapsed % channel->count < square_high_ticks(channel->count);
    default:
        return elapsed != channel->count;
    }
}

/* First tick after `after` at which OUT rises without anybody's doing, or PIT_NEVER. */
static int64_t channel_next_rise(const struct pit_channel *channel, int64_t after)
{
    int64_t elapsed = channel_elapsed(channel, after);
    int64_t rise;

    if (!channel->armed || channel->held)
        return PIT_NEVER;
    if (!channel_is_periodic(channel)) {
        rise = channel->start_tick + channel->count + (channel->mode >= 4 ? 1 : 0);
        return rise > after ? rise : PIT_NEVER;
    }
    rise = channel->start_tick + (elapsed < 0 ? 1 : elapsed / channel->count + 1) * (int64_t)channel->count;
    if (channel->next_count == 0 || rise <= channel->reload_tick)
        return rise;
    /* A new count takes over at the falling edge of mode 3 and then stays low for its own lower half. */
    return channel->reload_tick + channel->next_count / 2;
}

/* Moves a periodic channel's start to the period that holds `tick`, taking a waiting count over when due. */
static void channel_settle(struct pit_channel *channel, int64_t tick)
{
    int64_t elapsed;

    if (!channel_is_periodic(channel) || !channel->armed || channel->held)
        return;
    if (channel->next_count != 0 && tick >= channel->reload_tick) {
        bool at_fall = channel->reload_tick < channel->start_tick + channel->count;

        channel->count = channel->next_count;
        channel->next_count = 0;
        channel->start_tick = channel->reload_tick - (at_fall ? square_high_ticks(channel->count) : 0);
    }
    elapsed = tick - channel->start_tick;
    /* While a count waits, the period that it ends is the one to stay in. */
    if (elapsed > 0 && channel->next_count == 0)
        channel->start_tick += elapsed - elapsed % channel->count;
}

/* The counting element as a program reads it. */
static uint16_t channel_value(const struct pit_channel *channel, int64_t tick)
{
    int64_t elapsed = channel_elapsed(channel, tick);
    int64_t modulus = channel->bcd ? 10000 : 65536;
    int64_t count = channel->count;
    int64_t value = count;

    if (channel->armed && elapsed > 0) {
        if (channel->mode == 2) {
            value = count - elapsed % count;
        } else if (channel->mode == 3) {
            /* Counts by two through each half, an odd count from one less; 82C54, mode 3. */
            int64_t phase = elapsed % count;
            int64_t high = square_high_ticks(channel->count);

            value = (count & ~INT64_C(1)) - 2 * (phase < high ? phase : phase - high);
        } else {
            value = count - elapsed % modulus + modulus;
        }
    } else if (channel->armed && channel->mode == 3) {
        value = count & ~INT64_C(1);
    }
    value %= modulus;
    if (!channel->bcd)
        return (uint16_t)value;
    return (uint16_t)(value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10);
}

static uint8_t channel_status(const struct pit_channel *channel, int64_t tick)
{
    uint8_t status = (uint8_t)(channel->access << 4 | channel->mode << 1 | (channel->bcd ? 1 : 0));

    if (channel_output(channel, tick))
        status |= PIT_STATUS_OUTPUT;
    if (!channel->armed || channel->next_count != 0 || channel_elapsed(channel, tick) < 0)
        status |= PIT_STATUS_NULL_COUNT;
    return status;
}

/* Loads `count` at the next clock. */
static void channel_load(struct pit_channel *channel, uint32_t count, int64_t tick)
{
    channel->count = count;
    channel->next_count = 0;
    channel->armed = true;
    channel->held = !channel->gate && !channel_is_triggered(channel);
    channel->start_tick = channel->held ? 0 : tick + 1;
}

/* A whole count has been written. */
static void channel_set_count(struct pit_channel *channel, uint16_t written, int64_t tick)
{
    uint32_t count = written;

    if (channel->bcd)
        count = (written >> 12) * 1000u + (written >> 8 & 15u) * 100u + (written >> 4 & 15u) * 10u + (written & 15u);
    if (count == 0)
        count = channel->bcd ? 10000 : 65536;
    if (channel_is_periodic(channel) && count == 1)
        count = 2; /* 1 is illegal there; this keeps the output moving */
    if (channel_is_triggered(channel)) {
        channel->next_count = count;
    } else if (channel_is_periodic(channel) && channel->armed && !channel->held && tick >= channel->start_tick) {
        int64_t high = square_high_ticks(channel->count);

        channel->next_count = count;
        channel->reload_tick = channel->start_tick + channel->count;
        if (channel->mode == 3 && tick < channel->start_tick + high)
            channel->reload_tick = channel->start_tick + high;
    } else {
        channel_load(channel, count, tick);
    }
}

static void channel_write(struct pit_channel *channel, uint8_t value, int64_t tick)
{
    switch (channel->access) {
    case PIT_ACCESS_LOW:
        channel_set_count(channel, value, tick);
        break;
    case PIT_ACCESS_HIGH:
        channel_set_count(channel, (uint16_t)(value << 8), tick);
        break;
    default:
        if (channel->write_high) {
            channel_set_count(channel, (uint16_t)(value << 8 | channel->write_low), tick);
        } else {
            channel->write_low = value;
            if (channel->mode == 0)
                channel->armed = false; /* the first byte stops it and drops OUT; 82C54, mode 0 */
        }
        channel->write_high = !channel->write_high;
        break;
    }
}

static void channel_set_gate(struct pit_channel *channel, bool gate, int64_t tick)
{
    bool rises = gate && !channel->gate;
    bool falls = !gate && channel->gate;

    channel->gate = gate;
    if (rises && channel_is_triggered(channel)) {
        uint32_t count = channel->next_count != 0 ? channel->next_count : channel->count;

        if (count != 0)
            channel_load(channel, count, tick);
    } else if (rises && channel->held) {
        if (channel_is_periodic(channel)) {
            channel_load(channel, channel->next_count != 0 ? channel->next_count : channel->count, tick);
        } else {
            channel->start_tick = tick - channel->start_tick;
            channel->held = false;
        }
    } else if (falls && channel->armed && !channel_is_triggered(channel)) {
        int64_t elapsed = tick - channel->start_tick;

        channel->held = true;
        channel->start_tick = elapsed < 0 ? 0 : elapsed;
    }
}

static void channel_latch_count(struct pit_channel *channel, int64_t tick)
{
    if (channel->latched_bytes != 0)
        return; /* the first latch stays until it is read */
    channel->latched = channel_value(channel, tick);
    channel->latched_bytes = channel->access == PIT_ACCESS_BOTH ? 2 : 1;
    channel->read_high = false;
}

static uint8_t channel_read(struct pit_channel *channel, int64_t tick)
{
    uint16_t value;
    bool high = channel->access == PIT_ACCESS_HIGH;

    if (channel->status_latched) {
        channel->status_latched = false;
        return channel->status;
    }
    if (channel->access == PIT_ACCESS_BOTH) {
        high = channel->read_high;
        channel->read_high = !channel->read_high;
    }
    if (channel->latched_bytes != 0) {
        channel->latched_bytes--;
        value = channel->latched;
    } else {
        value = channel_value(channel, tick);
    }
    return (uint8_t)(high ? value >> 8 : value);
}

static void pit_write_mode(struct pit *pit, uint8_t value)
{
    unsigned select = value >> 6;
    uint8_t access = value >> 4 & 3;
    struct pit_channel *channel;

    if (select == PIT_READ_BACK) {
        for (unsigned i = 0; i < PIT_CHANNELS; i++) {
            channel = &pit->channels[i];
            if (!(value & (2u << i)))
                continue;
            if (!(value & 0x20))
                channel_latch_count(channel, pit->tick);
            if (!(value & 0x10) && !channel->status_latched) {
                channel->status = channel_status(channel, pit->tick);
                channel->status_latched = true;
            }
        }
        return;
    }
    channel = &pit->channels[select];
    if (access == PIT_ACCESS_LATCH) {
        channel_latch_count(channel, pit->tick);
        return;
    }
    channel->mode = value >> 1 & 7;
    if (channel->mode > 5)
        channel->mode -= 4; /* 6 and 7 are 2 and 3 */
    channel->access = access;
    channel->bcd = value & 1;
    channel->armed = false;
    channel->held = false;
    channel->next_count = 0;
    channel->latched_bytes = 0;
    channel->status_latched = false;
    channel->write_high = false;
    channel->read_high = false;
}

void pit_init(struct pit *pit, uint64_t now_ns)
{
    memset(pit, 0, sizeof(*pit));
    pit->tick = tick_from_ns(now_ns);
    for (unsigned i = 0; i < PIT_CHANNELS; i++) {
        pit->channels[i].access = PIT_ACCESS_BOTH;
        pit->channels[i].gate = i != PIT_SPEAKER_CHANNEL;
    }
}

void pit_advance(struct pit *pit, uint64_t now_ns, struct pic *pic)
{
    struct pit_channel *timer = &pit->channels[0];
    int64_t tick = tick_from_ns(now_ns);

    if (tick < pit->tick)
        tick = pit->tick;
    if (channel_next_rise(timer, pit->tick) <= tick) {
        pic_set_line(pic, PIT_IRQ, false);
        pic_set_line(pic, PIT_IRQ, true);
    }
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        channel_settle(&pit->channels[i], tick);
    pit->tick = tick;
    pic_set_line(pic, PIT_IRQ, channel_output(timer, tick));
}

uint64_t pit_deadline_ns(const struct pit *pit)
{
    int64_t rise = channel_next_rise(&pit->channels[0], pit->tick);

    return rise == PIT_NEVER ? UINT64_MAX : tick_to_ns(rise);
}

static uint8_t pit_read_control(const struct pit *pit)
{
    uint8_t value = pit->control;

    if (pit->tick / PIT_REFRESH_TICKS % 2 != 0)
        value |= CONTROL_REFRESH;
    if (channel_output(&pit->channels[PIT_SPEAKER_CHANNEL], pit->tick))
        value |= CONTROL_OUTPUT2;
    return value;
}

static uint8_t pit_read_byte(struct pit *pit, uint32_t port)
{
    if (port >= PIT_PORT && port < PIT_MODE_PORT)
        return channel_read(&pit->channels[port - PIT_PORT], pit->tick);
    if (port == PIT_CONTROL_PORT)
        return pit_read_control(pit);
    return 0xFF; /* the mode register is write-only */
}

static void pit_write_byte(struct pit *pit, uint32_t port, uint8_t value)
{
    if (port >= PIT_PORT && port < PIT_MODE_PORT) {
        channel_write(&pit->channels[port - PIT_PORT], value, pit->tick);
    } else if (port == PIT_MODE_PORT) {
        pit_write_mode(pit, value);
    } else if (port == PIT_CONTROL_PORT) {
        pit->control = value & CONTROL_WRITABLE;
        channel_set_gate(&pit->channels[PIT_SPEAKER_CHANNEL], value & CONTROL_GATE2, pit->tick);
    }
}

uint32_t pit_read(struct pit *pit, uint16_t port, unsigned bytes, uint64_t now_ns, struct pic *pic)
{
    uint32_t value = 0;

    pit_advance(pit, now_ns, pic);
    for (unsigned i = 0; i < bytes && i < 4; i++)
        value |= (uint32_t)pit_read_byte(pit, (uint32_t)port + i) << (8 * i);
    return value;
}

void pit_write(struct pit *pit, uint16_t port, unsigned bytes, uint32_t value, uint64_t now_ns, struct pic *pic)
{
    pit_advance(pit, now_ns, pic);
    for (unsigned i = 0; i < bytes && i < 4; i++)
        pit_write_byte(pit, (uint32_t)port + i, (uint8_t)(value >> (8 * i)));
    pic_set_line(pic, PIT_IRQ, channel_output(&pit->channels[0], pit->tick));
}

static bool channel_fits(const struct pit_channel *channel)
{
    const int64_t limit = INT64_C(1) << 56; /* ticks; no virtual time reaches it, and no sum of such overflows */

    return channel->start_tick >= -limit && channel->start_tick <= limit &&
           (channel->reload_tick == PIT_NEVER || (channel->reload_tick >= -limit && channel->reload_tick <= limit)) &&
           channel->count <= 65536 && channel->next_count <= 65536 && (channel->count != 0 || !channel->armed) &&
           channel->latched_bytes <= 2 && channel->mode <= 5 && channel->access >= PIT_ACCESS_LOW &&
           channel->access <= PIT_ACCESS_BOTH && STATE_BOOL_FITS(channel->status_latched) &&
           STATE_BOOL_FITS(channel->bcd) && STATE_BOOL_FITS(channel->gate) && STATE_BOOL_FITS(channel->armed) &&
           STATE_BOOL_FITS(channel->held) && STATE_BOOL_FITS(channel->write_high) &&
           STATE_BOOL_FITS(channel->read_high);
}

bool pit_fits(const struct pit *pit, uint64_t now_ns)
{
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        if (!channel_fits(&pit->channels[i]))
            return false;
    return pit->tick >= 0 && pit->tick <= tick_from_ns(now_ns) && pit->control <= CONTROL_WRITABLE;
}
