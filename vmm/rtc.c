/* The MC146818: date arithmetic, the registers, and the three interrupt sources. */
#include "vmm/rtc.h"

#include <string.h>

#include "base/clock.h"
#include "vmm/state_check.h"


#define RTC_SECOND       0x00u
#define RTC_SECOND_ALARM 0x01u
#define RTC_MINUTE       0x02u
#define RTC_MINUTE_ALARM 0x03u
#define RTC_HOUR         0x04u
#define RTC_HOUR_ALARM   0x05u
#define RTC_WEEKDAY      0x06u
#define RTC_DAY          0x07u
#define RTC_MONTH        0x08u
#define RTC_YEAR         0x09u
#define RTC_A            0x0Au
#define RTC_B            0x0Bu
#define RTC_C            0x0Cu
#define RTC_D            0x0Du
#define RTC_CENTURY      0x32u

#define A_UPDATE_IN_PROGRESS 0x80u
#define A_INITIAL            0x26u /* 32,768 Hz time base; periodic rate 1,024 Hz, as PC firmware sets it */
#define B_SET                0x80u
#define B_BINARY             0x04u
#define B_24_HOURS           0x02u
#define FLAG_PERIODIC        0x40u /* these three have the same place in B (enable) and C (flag) */
#define FLAG_ALARM           0x20u
#define FLAG_UPDATE          0x10u
#define FLAGS_ENABLED(rtc)   ((rtc)->cmos[RTC_B] & (FLAG_PERIODIC | FLAG_ALARM | FLAG_UPDATE))
#define C_INTERRUPT          0x80u
#define D_POWER_GOOD         0x80u
#define HOUR_PM              0x80u
#define ALARM_ANY            0xC0u /* both bits set: matches always */

#define RTC_BASE_HZ       32768u
#define UPDATE_WARNING_NS 244000u /* UIP rises 244 us before the time changes; MC146818, table 6 */
#define DAY_SECONDS       86400
#define YEARS_400_DAYS    INT64_C(146097)
#define YEARS_400_SECONDS (YEARS_400_DAYS * DAY_SECONDS)
#define DAYS_TO_1970      INT64_C(719468) /* from 0000-03-01 */

__extension__ typedef unsigned __int128 wide;

struct date {
    int64_t year;
    unsigned month;   /* 1 to 12 */
    unsigned day;     /* 1 to 31 */
    unsigned weekday; /* 1 is Sunday */
    unsigned hour;
    unsigned minute;
    unsigned second;
};

static int64_t positive_remainder(int64_t value, int64_t modulus)
{
    int64_t remainder = value % modulus;

    return remainder < 0 ? remainder + modulus : remainder;
}

/* Civil calendar from days and back: years that begin in March put the leap day last (H. Hinnant,
 * "chrono-compatible low-level date algorithms"). `seconds` is in [0, 400 years). */
static struct date date_from_seconds(int64_t seconds)
{
    int64_t days = seconds / DAY_SECONDS;
    unsigned rest = (unsigned)(seconds % DAY_SECONDS);
    int64_t era = (days + DAYS_TO_1970) / YEARS_400_DAYS;
    int64_t day_of_era = (days + DAYS_TO_1970) % YEARS_400_DAYS;
    int64_t year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / (YEARS_400_DAYS - 1)) / 365;
    int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t march_month = (5 * day_of_year + 2) / 153;
    struct date date = {
        .day = (unsigned)(day_of_year - (153 * march_month + 2) / 5 + 1),
        .month = (unsigned)(march_month < 10 ? march_month + 3 : march_month - 9),
        .weekday = (unsigned)((days + 4) % 7 + 1), /* 1970-01-01 was a Thursday */
        .hour = rest / 3600,
        .minute = rest / 60 % 60,
        .second = rest % 60,
    };

    date.year = era * 400 + year_of_era + (date.month <= 2 ? 1 : 0);
    return date;
}

/* Any field may be out of range (a guest wrote it): the excess carries over. */
static int64_t date_to_seconds(const struct date *date)
{
    int64_t month = (date->month + 11) % 12 + 1;
    int64_t year = date->year - (month <= 2 ? 1 : 0);
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t year_of_era = year - era * 400;
    int64_t day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + date->day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    int64_t days = era * YEARS_400_DAYS + day_of_era - DAYS_TO_1970;

    return days * DAY_SECONDS + date->hour * 3600 + date->minute * 60 + date->second;
}

static int64_t shown_seconds(const struct rtc *rtc, uint64_t now_ns)
{
    return (rtc->offset_seconds + (int64_t)(now_ns / NS_PER_S)) % YEARS_400_SECONDS;
}

static uint8_t field_encode(const struct rtc *rtc, unsigned value)
{
    return (uint8_t)(rtc->cmos[RTC_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static unsigned field_decode(const struct rtc *rtc, uint8_t raw)
{
    return rtc->cmos[RTC_B] & B_BINARY ? raw : (raw >> 4) * 10u + (raw & 15u);
}

static uint8_t hour_encode(const struct rtc *rtc, unsigned hour)
{
    uint8_t raw;

    if (rtc->cmos[RTC_B] & B_24_HOURS)
        return field_encode(rtc, hour);
    raw = field_encode(rtc, hour % 12 == 0 ? 12 : hour % 12);
    return hour >= 12 ? raw | HOUR_PM : raw;
}

static unsigned hour_decode(const struct rtc *rtc, uint8_t raw)
{
    if (rtc->cmos[RTC_B] & B_24_HOURS)
        return field_decode(rtc, raw);
    return field_decode(rtc, raw & (uint8_t)~HOUR_PM) % 12 + (raw & HOUR_PM ? 12 : 0);
}

/* Writes the running time into the time registers. */
static void rtc_freeze(struct rtc *rtc)
{
    struct date date = date_from_seconds(shown_seconds(rtc, rtc->now_ns));

    rtc->cmos[RTC_SECOND] = field_encode(rtc, date.second);
    rtc->cmos[RTC_MINUTE] = field_encode(rtc, date.minute);
    rtc->cmos[RTC_HOUR] = hour_encode(rtc, date.hour);
    rtc->cmos[RTC_WEEKDAY] = field_encode(rtc, date.weekday);
    rtc->cmos[RTC_DAY] = field_encode(rtc, date.day);
    rtc->cmos[RTC_MONTH] = field_encode(rtc, date.month);
    rtc->cmos[RTC_YEAR] = field_encode(rtc, (unsigned)(date.year % 100));
    rtc->cmos[RTC_CENTURY] = field_encode(rtc, (unsigned)(date.year / 100 % 100));
}

/* Lets time run on from the time registers. The weekday follows from the date, whatever was written. */
static void rtc_release(struct rtc *rtc)
{
    struct date date = {
        .year = field_decode(rtc, rtc->cmos[RTC_CENTURY]) * 100 + field_decode(rtc, rtc->cmos[RTC_YEAR]),
        .month = field_decode(rtc, rtc->cmos[RTC_MONTH]),
        .day = field_decode(rtc, rtc->cmos[RTC_DAY]),
        .hour = hour_decode(rtc, rtc->cmos[RTC_HOUR]),
        .minute = field_decode(rtc, rtc->cmos[RTC_MINUTE]),
        .second = field_decode(rtc, rtc->cmos[RTC_SECOND]),
    };

    rtc->offset_seconds =
        positive_remainder(date_to_seconds(&date) - (int64_t)(rtc->now_ns / NS_PER_S), YEARS_400_SECONDS);
}

static bool rtc_is_time_register(unsigned index)
{
    return index == RTC_SECOND || index == RTC_MINUTE || index == RTC_HOUR || index == RTC_CENTURY ||
           (index >= RTC_WEEKDAY && index <= RTC_YEAR);
}

static bool alarm_matches(const struct rtc *rtc, unsigned alarm_register, unsigned value)
{
    uint8_t raw = rtc->cmos[alarm_register];

    if ((raw & ALARM_ANY) == ALARM_ANY)
        return true;
    return (alarm_register == RTC_HOUR_ALARM ? hour_decode(rtc, raw) : field_decode(rtc, raw)) == value;
}

/* Seconds from `now` (shown time) to the next alarm, 1 to 86400; 0 if the alarm matches no time of day. Skips
 * whole hours and minutes that do not match, so the loop is short. */
static int64_t alarm_distance(const struct rtc *rtc, int64_t now)
{
    int64_t first = now % DAY_SECONDS + 1;
    int64_t candidate = first;

    while (candidate < first + DAY_SECONDS) {
        unsigned second_of_day = (unsigned)(candidate % DAY_SECONDS);

        if (!alarm_matches(rtc, RTC_HOUR_ALARM, second_of_day / 3600))
            candidate += 3600 - candidate % 3600;
        else if (!alarm_matches(rtc, RTC_MINUTE_ALARM, second_of_day / 60 % 60))
            candidate += 60 - candidate % 60;
        else if (!alarm_matches(rtc, RTC_SECOND_ALARM, second_of_day % 60))
            candidate++;
        else
            return candidate - first + 1;
    }
    return 0;
}

/* Length of the periodic interrupt in ticks of the 32,768 Hz base, 0 if off; MC146818, table 5. */
static unsigned periodic_ticks(const struct rtc *rtc)
{
    unsigned rate = rtc->cmos[RTC_A] & 15u;

    if (rate == 0)
        return 0;
    return rate < 3 ? 64u << rate : 1u << (rate - 1);
}

static uint64_t base_ticks(uint64_t now_ns)
{
    return (uint64_t)((wide)now_ns * RTC_BASE_HZ / NS_PER_S);
}

static void rtc_update_line(struct rtc *rtc, struct pic *pic)
{
    bool raised = rtc->cmos[RTC_C] & FLAGS_ENABLED(rtc);

    if (raised)
        rtc->cmos[RTC_C] |= C_INTERRUPT;
    else
        rtc->cmos[RTC_C] &= (uint8_t)~C_INTERRUPT;
    pic_set_line(pic, RTC_IRQ, raised);
}

void rtc_advance(struct rtc *rtc, uint64_t now_ns, struct pic *pic)
{
    uint64_t before_ns = rtc->now_ns;
    uint64_t seconds;
    unsigned ticks = periodic_ticks(rtc);

    if (now_ns < before_ns)
        now_ns = before_ns;
    rtc->now_ns = now_ns;
    if (ticks != 0 && base_ticks(now_ns) / ticks != base_ticks(before_ns) / ticks)
        rtc->cmos[RTC_C] |= FLAG_PERIODIC;
    seconds = now_ns / NS_PER_S - before_ns / NS_PER_S;
    if (seconds != 0 && !(rtc->cmos[RTC_B] & B_SET)) {
        int64_t distance = alarm_distance(rtc, shown_seconds(rtc, before_ns));

        rtc->cmos[RTC_C] |= FLAG_UPDATE;
        if (distance != 0 && (uint64_t)distance <= seconds)
            rtc->cmos[RTC_C] |= FLAG_ALARM;
    }
    rtc_update_line(rtc, pic);
}

/* First nanosecond of tick `tick` of a clock with `hz`. */
static uint64_t ns_at_tick(uint64_t tick, uint64_t hz)
{
    wide ns = ((wide)tick * NS_PER_S + hz - 1) / hz;

    return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

uint64_t rtc_deadline_ns(const struct rtc *rtc)
{
    uint64_t deadline_ns = UINT64_MAX;
    uint64_t second = rtc->now_ns / NS_PER_S;
    unsigned enabled = FLAGS_ENABLED(rtc);
    unsigned ticks = periodic_ticks(rtc);

    if (rtc->cmos[RTC_C] & C_INTERRUPT)
        return UINT64_MAX;
    if ((enabled & FLAG_PERIODIC) && ticks != 0)
        deadline_ns = ns_at_tick((base_ticks(rtc->now_ns) / ticks + 1) * ticks, RTC_BASE_HZ);
    if (rtc->cmos[RTC_B] & B_SET)
        return deadline_ns;
    if (enabled & FLAG_UPDATE) {
        uint64_t update_ns = ns_at_tick(second + 1, 1);

        deadline_ns = update_ns < deadline_ns ? update_ns : deadline_ns;
    }
    if (enabled & FLAG_ALARM) {
        int64_t distance = alarm_distance(rtc, shown_seconds(rtc, rtc->now_ns));
        uint64_t alarm_ns = distance != 0 ? ns_at_tick(second + (uint64_t)distance, 1) : UINT64_MAX;

        deadline_ns = alarm_ns < deadline_ns ? alarm_ns : deadline_ns;
    }
    return deadline_ns;
}

void rtc_init(struct rtc *rtc, int64_t start_unix_seconds, uint64_t now_ns)
{
    memset(rtc, 0, sizeof(*rtc));
    rtc->now_ns = now_ns;
    rtc->offset_seconds = positive_remainder(start_unix_seconds, YEARS_400_SECONDS);
    rtc->cmos[RTC_A] = A_INITIAL;
    rtc->cmos[RTC_B] = B_24_HOURS;
    rtc->cmos[RTC_D] = D_POWER_GOOD;
}

static bool rtc_update_in_progress(const struct rtc *rtc)
{
    return !(rtc->cmos[RTC_B] & B_SET) && rtc->now_ns % NS_PER_S >= NS_PER_S - UPDATE_WARNING_NS;
}

static uint8_t rtc_read_data(struct rtc *rtc)
{
    uint8_t value;

    if (rtc_is_time_register(rtc->index) && !(rtc->cmos[RTC_B] & B_SET))
        rtc_freeze(rtc);
    value = rtc->cmos[rtc->index];
    if (rtc->index == RTC_A && rtc_update_in_progress(rtc))
        value |= A_UPDATE_IN_PROGRESS;
    if (rtc->index == RTC_C)
        rtc->cmos[RTC_C] = 0; /* reading acknowledges */
    return value;
}

static void rtc_write_data(struct rtc *rtc, uint8_t value)
{
    bool running = !(rtc->cmos[RTC_B] & B_SET);

    if (rtc_is_time_register(rtc->index)) {
        if (running)
            rtc_freeze(rtc);
        rtc->cmos[rtc->index] = value;
        if (running)
            rtc_release(rtc);
        return;
    }
    switch (rtc->index) {
    case RTC_A:
        rtc->cmos[RTC_A] = value & (uint8_t)~A_UPDATE_IN_PROGRESS;
        break;
    case RTC_B:
        /* The new format (BCD, 12 hours) applies to what is frozen now, and to what runs on from here. */
        rtc->cmos[RTC_B] = value;
        if (running && (value & B_SET))
            rtc_freeze(rtc);
        else if (!running && !(value & B_SET))
            rtc_release(rtc);
        break;
    case RTC_C:
    case RTC_D:
        break; /* read-only */
    default:
        rtc->cmos[rtc->index] = value;
        break;
    }
}

uint32_t rtc_read(struct rtc *rtc, uint16_t port, unsigned bytes, uint64_t now_ns, struct pic *pic)
{
    uint32_t value = 0;

    rtc_advance(rtc, now_ns, pic);
    for (unsigned i = 0; i < bytes && i < 4; i++)
        value |= (uint32_t)(port + i == RTC_DATA_PORT ? rtc_read_data(rtc) : 0xFF) << (8 * i);
    rtc_update_line(rtc, pic);
    return value;
}

void rtc_write(struct rtc *rtc, uint16_t port, unsigned bytes, uint32_t value, uint64_t now_ns, struct pic *pic)
{
    rtc_advance(rtc, now_ns, pic);
    for (unsigned i = 0; i < bytes && i < 4; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));

        if (port + i == RTC_INDEX_PORT)
            rtc->index = byte & (RTC_CMOS_BYTES - 1); /* bit 7 masks the NMI, which nothing here raises */
        else if (port + i == RTC_DATA_PORT)
            rtc_write_data(rtc, byte);
    }
    rtc_update_line(rtc, pic);
}

bool rtc_fits(const struct rtc *rtc, uint64_t now_ns)
{
    const int64_t limit = INT64_C(1) << 60; /* so that adding a virtual time does not overflow */

    return rtc->now_ns <= now_ns && rtc->index < RTC_CMOS_BYTES && rtc->offset_seconds >= -limit &&
           rtc->offset_seconds <= limit;
}
