/*
 * The battery clock: an MC146818 at ports 0x70 and 0x71 with 128 bytes of CMOS RAM, on PIC input 8. The date
 * follows virtual time from a given start. Periodic, alarm and update-ended interrupts work; the square wave
 * and daylight saving do not exist (their bits can be written and read).
 * Source: Motorola MC146818 data sheet; ISA century byte 0x32 as in PC/AT firmware.
 */
#ifndef FTVMM_VMM_RTC_H
#define FTVMM_VMM_RTC_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/pic.h"

#define RTC_INDEX_PORT 0x70u
#define RTC_DATA_PORT  0x71u
#define RTC_IRQ        8u
#define RTC_CMOS_BYTES 128u

/* All state; copy it to transfer it. */
struct rtc {
    int64_t offset_seconds;       /* Unix time shown = this + whole seconds of virtual time */
    uint64_t now_ns;              /* time of the last call */
    uint8_t index;                /* port 0x70, without the NMI bit */
    uint8_t cmos[RTC_CMOS_BYTES]; /* RAM, status registers, alarm; time registers only while SET holds them */
};

/* `start_unix_seconds` is the date (UTC) at virtual time 0; any value, shown modulo 400 years. `now_ns` is
 * virtual time as in pit.h. 24-hour BCD, no interrupts, RAM zero, power good. */
void rtc_init(struct rtc *rtc, int64_t start_unix_seconds, uint64_t now_ns);

/* Brings the clock to `now_ns`: sets the flags of register C that fell due, and PIC input 8. */
void rtc_advance(struct rtc *rtc, uint64_t now_ns, struct pic *pic);

/* Next virtual time at which rtc_advance would raise PIC input 8; UINT64_MAX if none, in particular while the
 * line is still up because the guest has not read register C. As of the last call with a time. */
uint64_t rtc_deadline_ns(const struct rtc *rtc);

/* Port access, `bytes` 1, 2 or 4 (split into byte accesses; 0x70 reads 0xFF). Both advance first. */
uint32_t rtc_read(struct rtc *rtc, uint16_t port, unsigned bytes, uint64_t now_ns, struct pic *pic);
void rtc_write(struct rtc *rtc, uint16_t port, unsigned bytes, uint32_t value, uint64_t now_ns, struct pic *pic);

/* Could a guest have brought the clock into this state by `now_ns`? For a state that came from elsewhere. */
bool rtc_fits(const struct rtc *rtc, uint64_t now_ns);

#endif
