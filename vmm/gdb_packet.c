/* Framing, registers and packets of gdb's remote protocol; see gdb_packet.h. */
#include "vmm/gdb_packet.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/guest_walk.h"

#define READ_BYTES_MAX ((GDB_REPLY_BYTES - 1) / 2)

static const char hex_digits[] = "0123456789abcdef";

/* ---- framing ---- */

static int hex_value(char digit)
{
    const char *at = digit != '\0' ? strchr(hex_digits, digit >= 'A' && digit <= 'F' ? digit - 'A' + 'a' : digit) : NULL;

    return at != NULL ? (int)(at - hex_digits) : -1;
}

enum gdb_read gdb_read_byte(struct gdb_reader *reader, uint8_t byte)
{
    int value;

    if (byte == '$' && reader->state != GDB_SUM_HIGH && reader->state != GDB_SUM_LOW) {
        *reader = (struct gdb_reader){ .state = GDB_WITHIN };
        return GDB_READ_MORE;
    }
    switch (reader->state) {
    case GDB_BETWEEN:
        return byte == 0x03 ? GDB_READ_STOP : GDB_READ_MORE; /* + and - need no answer: a stream loses nothing */
    case GDB_WITHIN:
        if (byte == '#') {
            reader->state = GDB_SUM_HIGH;
            return GDB_READ_MORE;
        }
        reader->sum += byte;
        if (reader->bytes < sizeof(reader->packet) - 1)
            reader->packet[reader->bytes++] = (char)byte;
        else
            reader->too_long = true;
        return GDB_READ_MORE;
    case GDB_SUM_HIGH:
    case GDB_SUM_LOW:
        value = hex_value((char)byte);
        reader->told = (uint8_t)(reader->told << 4 | (value & 15));
        if (value < 0) {
            reader->state = GDB_BETWEEN;
            return GDB_READ_BAD;
        }
        if (reader->state == GDB_SUM_HIGH) {
            reader->state = GDB_SUM_LOW;
            return GDB_READ_MORE;
        }
        reader->state = GDB_BETWEEN;
        if (reader->told != reader->sum)
            return GDB_READ_BAD;
        if (reader->too_long)
            reader->bytes = 0; /* nothing that we know is so long: it is answered as what we do not know */
        reader->packet[reader->bytes] = '\0';
        return GDB_READ_PACKET;
    }
    return GDB_READ_MORE;
}

size_t gdb_frame(const char *payload, char *out, size_t room)
{
    size_t bytes = strlen(payload);
    uint8_t sum = 0;

    if (bytes + 5 > room)
        return 0;
    for (size_t i = 0; i < bytes; i++)
        sum += (uint8_t)payload[i];
    snprintf(out, room, "$%s#%c%c", payload, hex_digits[sum >> 4], hex_digits[sum & 15]);
    return bytes + 4;
}

static void to_hex(const void *bytes, size_t count, char *text)
{
    for (size_t i = 0; i < count; i++) {
        *text++ = hex_digits[((const uint8_t *)bytes)[i] >> 4];
        *text++ = hex_digits[((const uint8_t *)bytes)[i] & 15];
    }
    *text = '\0';
}

void gdb_console_text(const char *text, char reply[GDB_REPLY_BYTES])
{
    size_t bytes = strlen(text);

    reply[0] = 'O';
    to_hex(text, bytes < READ_BYTES_MAX ? bytes : READ_BYTES_MAX - 1, reply + 1);
}

/* ---- registers ---- */

enum feature { FEATURE_CORE, FEATURE_SSE, FEATURE_SEGMENTS, FEATURE_CONTROL };

static const char *const feature_names[] = {
    "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", "org.gnu.gdb.i386.segments", "org.ftvmm.control",
};

/* In the order of gdb's numbers. */
static const struct gdb_register {
    const char *name, *type;
    uint8_t bytes, feature;
} registers[] = {
#define GENERAL(name) { name, "int64", 8, FEATURE_CORE }
#define SELECTOR(name) { name, "int32", 4, FEATURE_CORE }
#define X87(name) { name, "i387_ext", 10, FEATURE_CORE }
#define XMM(name) { name, "uint128", 16, FEATURE_SSE }
#define CONTROL(name) { name, "int64", 8, FEATURE_CONTROL }
    GENERAL("rax"), GENERAL("rbx"), GENERAL("rcx"), GENERAL("rdx"), GENERAL("rsi"), GENERAL("rdi"),
    { "rbp", "data_ptr", 8, FEATURE_CORE }, { "rsp", "data_ptr", 8, FEATURE_CORE },
    GENERAL("r8"), GENERAL("r9"), GENERAL("r10"), GENERAL("r11"), GENERAL("r12"), GENERAL("r13"), GENERAL("r14"),
    GENERAL("r15"), { "rip", "code_ptr", 8, FEATURE_CORE }, { "eflags", "i386_eflags", 4, FEATURE_CORE },
    SELECTOR("cs"), SELECTOR("ss"), SELECTOR("ds"), SELECTOR("es"), SELECTOR("fs"), SELECTOR("gs"),
    X87("st0"), X87("st1"), X87("st2"), X87("st3"), X87("st4"), X87("st5"), X87("st6"), X87("st7"),
    SELECTOR("fctrl"), SELECTOR("fstat"), SELECTOR("ftag"), SELECTOR("fiseg"), SELECTOR("fioff"), SELECTOR("foseg"),
    SELECTOR("fooff"), SELECTOR("fop"),
    XMM("xmm0"), XMM("xmm1"), XMM("xmm2"), XMM("xmm3"), XMM("xmm4"), XMM("xmm5"), XMM("xmm6"), XMM("xmm7"),
    XMM("xmm8"), XMM("xmm9"), XMM("xmm10"), XMM("xmm11"), XMM("xmm12"), XMM("xmm13"), XMM("xmm14"), XMM("xmm15"),
    { "mxcsr", "int32", 4, FEATURE_SSE },
    { "fs_base", "int64", 8, FEATURE_SEGMENTS }, { "gs_base", "int64", 8, FEATURE_SEGMENTS },
    CONTROL("cr0"), CONTROL("cr2"), CONTROL("cr3"), CONTROL("cr4"), CONTROL("efer"),
};
#define REGISTERS (sizeof(registers) / sizeof(registers[0]))
#define REGISTERS_BYTES_MAX 1024u

static void put(uint8_t **at, const void *value, size_t bytes)
{
    memcpy(*at, value, bytes);
    *at += bytes;
}

static void put_32(uint8_t **at, uint32_t value)
{
    put(at, &value, sizeof(value));
}

/* FXSAVE says of each register only whether it is empty (SDM 1, 10.5.1.1); gdb asks for two bits each. */
static uint32_t tag_word(uint8_t not_empty)
{
    uint32_t tags = 0;

    for (unsigned i = 0; i < 8; i++)
        if (!(not_empty >> i & 1))
            tags |= UINT32_C(3) << (2 * i);
    return tags;
}

/* All registers in the order of the table; returns their bytes. Offsets: SDM 1, 10.5.1, FXSAVE in 64-bit mode. */
static size_t registers_fill(const struct vcpu_state *vcpu, uint8_t *image)
{
    const struct kvm_regs *regs = &vcpu->regs;
    const struct kvm_sregs *sregs = &vcpu->sregs;
    const uint64_t general[] = { regs->rax, regs->rbx, regs->rcx, regs->rdx, regs->rsi, regs->rdi, regs->rbp, regs->rsp,
                                 regs->r8, regs->r9, regs->r10, regs->r11, regs->r12, regs->r13, regs->r14, regs->r15,
                                 regs->rip };
    const uint64_t control[] = { sregs->fs.base, sregs->gs.base, sregs->cr0, sregs->cr2, sregs->cr3, sregs->cr4,
                                 sregs->efer };
    const uint8_t *fxsave = (const uint8_t *)vcpu->xsave.region;
    uint16_t fctrl, fstat, fop;
    uint32_t fioff, fooff, mxcsr;
    uint8_t *at = image;

    memcpy(&fctrl, fxsave, 2);
    memcpy(&fstat, fxsave + 2, 2);
    memcpy(&fop, fxsave + 6, 2);
    memcpy(&fioff, fxsave + 8, 4);
    memcpy(&fooff, fxsave + 16, 4);
    memcpy(&mxcsr, fxsave + 24, 4);
    put(&at, general, sizeof(general));
    put_32(&at, (uint32_t)regs->rflags);
    put_32(&at, sregs->cs.selector);
    put_32(&at, sregs->ss.selector);
    put_32(&at, sregs->ds.selector);
    put_32(&at, sregs->es.selector);
    put_32(&at, sregs->fs.selector);
    put_32(&at, sregs->gs.selector);
    for (unsigned i = 0; i < 8; i++)
        put(&at, fxsave + 32 + 16 * i, 10);
    put_32(&at, fctrl);
    put_32(&at, fstat);
    put_32(&at, tag_word(fxsave[4]));
    put_32(&at, 0);
    put_32(&at, fioff);
    put_32(&at, 0);
    put_32(&at, fooff);
    put_32(&at, fop);
    put(&at, fxsave + 160, 16 * 16);
    put_32(&at, mxcsr);
    put(&at, control, sizeof(control));
    return (size_t)(at - image);
}

static void read_registers(const struct gdb_view *view, char *reply)
{
    uint8_t image[REGISTERS_BYTES_MAX];

    to_hex(image, registers_fill(view->vcpu, image), reply);
}

static void read_register(const struct gdb_view *view, unsigned long number, char *reply)
{
    uint8_t image[REGISTERS_BYTES_MAX];
    size_t at = 0;

    if (number >= REGISTERS) {
        strcpy(reply, "E01");
        return;
    }
    (void)registers_fill(view->vcpu, image);
    for (unsigned long i = 0; i < number; i++)
        at += registers[i].bytes;
    to_hex(image + at, registers[number].bytes, reply);
}

/* The description of the registers (gdb's manual, "Target Descriptions"); made once. */
static const char *target_xml(void)
{
    static char text[12288];
    size_t bytes;
    int feature = -1;

    if (text[0] != '\0')
        return text;
    bytes = (size_t)snprintf(text, sizeof(text), "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">"
                                                 "<target><architecture>i386:x86-64</architecture>");
    for (size_t i = 0; i < REGISTERS; i++) {
        const struct gdb_register *one = &registers[i];

        if (one->feature != feature)
            bytes += (size_t)snprintf(text + bytes, sizeof(text) - bytes, "%s<feature name=\"%s\">",
                                      feature < 0 ? "" : "</feature>", feature_names[one->feature]);
        if (feature < 0) {
            static const char *const flags[] = { "CF", "", "PF", "", "AF", "", "ZF", "SF", "TF", "IF", "DF", "OF", "", "",
                                                 "NT", "", "RF", "VM", "AC", "VIF", "VIP", "ID" };

            bytes += (size_t)snprintf(text + bytes, sizeof(text) - bytes, "<flags id=\"i386_eflags\" size=\"4\">");
            for (unsigned bit = 0; bit < sizeof(flags) / sizeof(flags[0]); bit++)
                if (*flags[bit] != '\0')
                    bytes += (size_t)snprintf(text + bytes, sizeof(text) - bytes,
                                              "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", flags[bit], bit, bit);
            bytes += (size_t)snprintf(text + bytes, sizeof(text) - bytes, "</flags>");
        }
        feature = one->feature;
        bytes += (size_t)snprintf(text + bytes, sizeof(text) - bytes, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\"/>",
                                  one->name, 8u * one->bytes, one->type);
    }
    snprintf(text + bytes, sizeof(text) - bytes, "</feature></target>");
    return text;
}

/* qXfer: "OFFSET,LENGTH" of it. */
static void read_target(const char *range, char *reply)
{
    const char *text = target_xml();
    unsigned long offset, length;
    size_t bytes = strlen(text);

    if (sscanf(range, "%lx,%lx", &offset, &length) != 2) {
        strcpy(reply, "E01");
        return;
    }
    if (offset > bytes)
        offset = bytes;
    if (length > GDB_REPLY_BYTES - 2)
        length = GDB_REPLY_BYTES - 2;
    if (length > bytes - offset)
        length = bytes - offset;
    reply[0] = offset + length < bytes ? 'm' : 'l';
    memcpy(reply + 1, text + offset, length); /* it has none of #, $, } and * */
    reply[1 + length] = '\0';
}

/* ---- memory ---- */

static bool is_paged(const struct gdb_view *view)
{
    return view->vcpu->sregs.cr0 >> 31 & 1;
}

/* m: "ADDRESS,LENGTH": as much of it as there is. */
static void read_memory(const struct gdb_view *view, const char *range, char *reply)
{
    static const struct guest_access any = { .set = GUEST_PTE_PRESENT };
    uint8_t bytes[READ_BYTES_MAX];
    unsigned long long address, length;
    size_t got = 0;

    if (sscanf(range, "%llx,%llx", &address, &length) != 2) {
        strcpy(reply, "E01");
        return;
    }
    if (length > sizeof(bytes))
        length = sizeof(bytes);
    if (is_paged(view)) {
        got = guest_read_virtual(view->memory, view->vcpu->sregs.cr3, address, any, bytes, length);
    } else {
        while (length > 0 && guest_memory_at(view->memory, address, length) == NULL)
            length--;
        got = length;
        if (got > 0)
            memcpy(bytes, guest_memory_at(view->memory, address, got), got);
    }
    if (got == 0 && length != 0)
        strcpy(reply, "E14"); /* EFAULT */
    else
        to_hex(bytes, got, reply);
}

/* ---- monitor ---- */

static enum gdb_action say(char *reply, const char *text)
{
    size_t bytes = strlen(text);

    to_hex(text, bytes < READ_BYTES_MAX ? bytes : READ_BYTES_MAX, reply);
    return GDB_STAY;
}

static enum gdb_action monitor(const struct gdb_view *view, const char *hex, char *reply, uint64_t *until)
{
    char words[256], text[512], rest, *end;
    size_t count = 0;

    for (; hex[0] != '\0' && hex[1] != '\0' && count < sizeof(words) - 1; hex += 2) {
        int high = hex_value(hex[0]), low = hex_value(hex[1]);

        if (high < 0 || low < 0)
            break;
        words[count++] = (char)(high << 4 | low);
    }
    words[count] = '\0';
    if (strcmp(words, "position") == 0) {
        snprintf(text, sizeof(text), "position %" PRIu64 ", exit %s, virtual time %" PRIu64 " ns%s\n", view->position,
                 view->exit, view->time_ns, view->ended ? "; the replay has come to its end" : "");
        return say(reply, text);
    }
    if (sscanf(words, "until %" SCNu64 " %c", until, &rest) == 1) {
        if (*until <= view->position) {
            snprintf(text, sizeof(text), "the guest stands at position %" PRIu64 " already; a replay does not go back\n",
                     view->position);
            return say(reply, text);
        }
        snprintf(text, sizeof(text), "continue stops at position %" PRIu64 "\n", *until);
        say(reply, text);
        return GDB_UNTIL;
    }
    if (strncmp(words, "break ", 6) == 0 && (*until = strtoull(words + 6, &end, 0), end != words + 6 && *end == '\0')) {
        if (view->breakpoints->count == sizeof(view->breakpoints->at) / sizeof(view->breakpoints->at[0]))
            return say(reply, "the CPU has no further breakpoint; monitor clear takes all away\n");
        snprintf(text, sizeof(text), "continue and step stop before the instruction at 0x%" PRIx64 "\n", *until);
        say(reply, text);
        return GDB_BREAK;
    }
    if (strcmp(words, "clear") == 0) {
        say(reply, "no breakpoints\n");
        return GDB_CLEAR;
    }
    return say(reply, "monitor position       where the guest stands\n"
                      "monitor until N        the next continue stops at position N\n"
                      "monitor break ADDRESS  stop there, too; at most four\n"
                      "monitor clear          nowhere any more\n"
                      "step goes on to the next position, continue to the end of the replay; nothing can be written\n");
}

/* ---- packets ---- */

static enum gdb_action ok(char *reply)
{
    strcpy(reply, "OK");
    return GDB_STAY;
}

static bool begins(const char *packet, const char *with)
{
    return strncmp(packet, with, strlen(with)) == 0;
}

static enum gdb_action answer_query(const struct gdb_view *view, const char *packet, char *reply, uint64_t *until)
{
    if (begins(packet, "qSupported"))
        snprintf(reply, GDB_REPLY_BYTES, "PacketSize=%x;QStartNoAckMode+;qXfer:features:read+", GDB_PACKET_BYTES - 8);
    else if (begins(packet, "qXfer:features:read:target.xml:"))
        read_target(packet + strlen("qXfer:features:read:target.xml:"), reply);
    else if (begins(packet, "qRcmd,"))
        return monitor(view, packet + strlen("qRcmd,"), reply, until);
    else if (strcmp(packet, "qAttached") == 0)
        strcpy(reply, "1");
    else if (strcmp(packet, "qC") == 0)
        strcpy(reply, "QC1");
    else if (strcmp(packet, "qfThreadInfo") == 0)
        strcpy(reply, "m1");
    else if (strcmp(packet, "qsThreadInfo") == 0)
        strcpy(reply, "l");
    else if (begins(packet, "qSymbol"))
        return ok(reply);
    return GDB_STAY;
}

enum gdb_action gdb_answer(const struct gdb_view *view, const char *packet, size_t bytes, char reply[GDB_REPLY_BYTES],
                           uint64_t *until)
{
    reply[0] = '\0'; /* what we do not know is answered so */
    if (bytes != 0 && strchr("GPMX", packet[0]) != NULL) { /* a guest that was changed would not be the recorded one */
        strcpy(reply, "E.the guest of a replay can be read only");
        return GDB_STAY;
    }
    if (bytes == 0 || memchr(packet, '\0', bytes) != NULL) /* no other has a zero; `packet` ends with one */
        return GDB_STAY;
    switch (packet[0]) {
    case '?': strcpy(reply, "T05thread:1;"); return GDB_STAY;
    case 'g': read_registers(view, reply); return GDB_STAY;
    case 'p': read_register(view, strtoul(packet + 1, NULL, 16), reply); return GDB_STAY;
    case 'm': read_memory(view, packet + 1, reply); return GDB_STAY;
    case 'H':
    case 'T': return ok(reply);
    case 'c': return GDB_GO_ON;
    case 's': return GDB_STEP;
    case 'D': ok(reply); return GDB_DETACH;
    case 'k': return GDB_KILL;
    case 'q': return answer_query(view, packet, reply, until);
    case 'Q':
        if (strcmp(packet, "QStartNoAckMode") != 0)
            return GDB_STAY;
        ok(reply);
        return GDB_NO_ACKS;
    default: return GDB_STAY;
    }
}
