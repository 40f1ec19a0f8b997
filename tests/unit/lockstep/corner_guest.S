/*
 * The corner guest: a machine without an operating system that runs a random program (corner_image.c makes it) of
 * steps, each of them one of the gadgets below, while timer, serial line, clock, network and disk interrupt it. All
 * that it sees goes into digests: after each step every register and the flags, in each interrupt and fault the
 * frame and the registers. Steps run at CPL 3, or at CPL 0 through INT 0x81.
 *
 * The code is copied to CORNER_CODE and refers to itself relative to RIP only.
 */
#include "tests/unit/lockstep/corner_guest.h"

#define STATE(x) ds:[CORNER_STATE + x]
#define PORT_DUMMY 0x80 /* nobody answers; a position like any other */
/* A position at any privilege: nobody is there. */
#define EXIT mov ds:[CORNER_MMIO_VA + 0x1800], al

    .intel_syntax noprefix
    .section .rodata.corner, "a"
    .balign 4096
    .globl corner_guest_begin, corner_guest_end, corner_guest_start, corner_guest_vectors, corner_guest_syscall
corner_guest_begin:

/* ---- folding ---- */

/* Digest at STATE(\where) takes in RCX words at RSI. Uses RAX, RCX, RSI, R8. */
.macro FOLD where
    mov rax, STATE(\where)
    movabs r8, 0x9E3779B97F4A7C15
88: xor rax, [rsi]
    imul rax, r8
    rol rax, 23
    add rsi, 8
    dec rcx
    jnz 88b
    mov STATE(\where), rax
.endm

/* Takes in what \value is; \value must not be RAX or R8. */
.macro FOLD_ONE where, value
    mov rax, STATE(\where)
    xor rax, \value
    movabs r8, 0x9E3779B97F4A7C15
    imul rax, r8
    rol rax, 23
    mov STATE(\where), rax
.endm

.macro PUSH_ALL
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rbp
    push rbx
    push rdx
    push rcx
    push rax
.endm

.macro POP_ALL
    pop rax
    pop rcx
    pop rdx
    pop rbx
    pop rbp
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
.endm

/* On the stack after PUSH_ALL in a handler. */
#define F_VECTOR 120
#define F_ERROR  128
#define F_RIP    136
#define F_CS     144
#define F_FLAGS  152
#define F_RSP    160
#define F_SS     168
#define F_WORDS  22

/* ---- the interpreter ---- */

corner_guest_start:
    mov rbx, STATE(S_PROGRAM)
    cmp dword ptr [rbx + STEP_GADGET], 0
    je finish
    test dword ptr [rbx + STEP_FLAGS], STEP_AT_CPL0
    jnz 1f
    call step_run
    jmp 2f
1:  mov r11d, 0x81
    call supervisor
2:  add qword ptr STATE(S_PROGRAM), CORNER_STEP_BYTES
    inc qword ptr STATE(S_STEPS)
    jmp corner_guest_start

/* RBX: the step. Everything else is the gadget's. */
step_run:
    lea rax, [rip + step_done]
    mov STATE(S_RESUME), rax
    mov STATE(S_RESUME_RSP), rsp
    mov eax, [rbx + STEP_GADGET]
    lea r11, [rip + gadgets]
    movsxd rax, dword ptr [r11 + rax * 4]
    add rax, r11
    mov rdi, [rbx + STEP_ARG + 0]
    mov rsi, [rbx + STEP_ARG + 8]
    mov rdx, [rbx + STEP_ARG + 16]
    mov rcx, [rbx + STEP_ARG + 24]
    mov r8, [rbx + STEP_ARG + 32]
    mov r9, [rbx + STEP_ARG + 40]
    mov r10, [rbx + STEP_ARG + 48]
    call rax
step_done:
    pushfq
    cld
    PUSH_ALL
    mov rdi, STATE(S_STEPS)
    and edi, CORNER_HISTORY_ROOM - 1
    shl edi, 7
    add edi, CORNER_HISTORY
    mov rsi, rsp
    mov ecx, 16
    rep movsq
    mov rsi, rsp
    mov ecx, 16
    FOLD S_DIGEST
    add rsp, 128
    ret

gadgets:
#define X(name) .long gadget_##name - gadgets;
    CORNER_GADGETS(X)
#undef X

finish:
    mov r11d, 0x82
/* To CPL 0, as R11 says. A software KVM knows no INT there: #UD does it. */
supervisor:
    test qword ptr STATE(S_HANDLER_MODE), 8
    jnz call_by_fault
    cmp r11d, 0x82
    je 1f
    int 0x81
    ret
1:  int 0x82
call_by_fault:
    ud2
    ret

put_number:
    mov al, ' '
    call put_byte
    mov ecx, 16
1:  rol rbp, 4
    mov al, bpl
    and al, 15
    cmp al, 10
    jb 2f
    add al, 'a' - '0' - 10
2:  add al, '0'
    call put_byte
    dec ecx
    jnz 1b
    ret

put_byte:
    mov edx, 0x3F8
    out dx, al
    ret

said:
    .asciz "corner guest:"

/* ---- handlers ---- */

/* Vectors 0 to 47 and 0x80 to 0x82, 16 bytes each. */
    .balign 16
corner_guest_vectors:
    .set vector, 0
    .rept 51
    .balign 16
    .if vector == 13
    out 0xF6, al /* where ftvmm looks whether a program has read the counter */
    .endif
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && vector != 14 && vector != 17
    push 0
    .endif
    push vector
    jmp handler
    .set vector, vector + 1
    .endr

    .balign 16
handler:
    PUSH_ALL
    cld
    mov ebx, [rsp + F_VECTOR]
    cmp ebx, 32
    jb exception
    cmp ebx, 48
    jb interrupt
    je 1f
    cmp ebx, 50
    je the_end
    mov rbx, STATE(S_PROGRAM) /* 0x81: a step at CPL 0 */
    call step_run
1:  POP_ALL
    add rsp, 16
    iretq

/* Says the digests on the serial line, and halts for good. */
the_end:
    lea rsi, [rip + said]
1:  lodsb
    test al, al
    jz 2f
    call put_byte
    jmp 1b
2:  mov rbp, STATE(S_DIGEST)
    call put_number
    mov rbp, STATE(S_IRQ_DIGEST)
    call put_number
    mov rbp, STATE(S_IRQS)
    call put_number
    mov al, '\n'
    call put_byte
    mov qword ptr STATE(S_FINISHED), 1
    cli
    hlt
    ud2

interrupt:
    mov rdi, STATE(S_IRQS) /* kept, so that the first two that differ can be shown */
    and edi, CORNER_FRAMES_ROOM - 1
    shl edi, 8
    add edi, CORNER_FRAMES
    mov rsi, rsp
    mov ecx, F_WORDS
    rep movsq
    inc qword ptr STATE(S_IRQS)
    inc qword ptr ds:[CORNER_STATE + S_COUNTS + (rbx - 32) * 8]
    mov rsi, rsp
    mov ecx, F_WORDS
    FOLD S_IRQ_DIGEST
    cmp ebx, 32
    je irq_timer
    cmp ebx, 36
    je irq_serial
    cmp ebx, 40
    je irq_clock
    cmp ebx, 42
    je irq_disk
    cmp ebx, 43
    je irq_net
    jmp irq_done

irq_timer: /* one shot: set again, to a time that depends on all that was */
    test qword ptr STATE(S_HANDLER_MODE), 2
    jz irq_done
    mov al, 0x30
    out 0x43, al
    mov rax, STATE(S_IRQ_DIGEST)
    out 0x40, al
    mov al, ah
    and al, STATE(S_TIMER_MASK)
    out 0x40, al
    jmp irq_done

irq_serial:
    mov edx, 0x3FD
    in al, dx
    test al, 1
    jz irq_done
    mov edx, 0x3F8
    in al, dx
    movzx edx, al
    FOLD_ONE S_IRQ_DIGEST, rdx
    jmp irq_serial

irq_clock:
    mov al, 0x0C
    out 0x70, al
    in al, 0x71
    jmp irq_done

irq_disk:
    mov edx, CORNER_DISK_PORT + 0x40
    in al, dx
    movzx edx, word ptr ds:[CORNER_DISK_RING + 0x2002] /* used index */
    FOLD_ONE S_IRQ_DIGEST, rdx
    jmp irq_done

irq_net:
    mov edx, CORNER_NET_PORT + 0x40
    in al, dx

irq_done:
    cmp ebx, 40
    jb 1f
    mov al, 0x20
    out 0xA0, al
1:  test qword ptr STATE(S_HANDLER_MODE), 1
    jz 2f
    cmp qword ptr STATE(S_NESTING), 3
    jae 2f
    inc qword ptr STATE(S_NESTING)
    mov al, 0x20
    out 0x20, al
    sti /* another one may come in here, or this one again */
    xor eax, eax
    nop
    cli
    dec qword ptr STATE(S_NESTING)
    jmp 3f
2:  mov al, 0x20
    out 0x20, al
3:  POP_ALL
    add rsp, 16
    iretq

call_by_fault_taken:
    add qword ptr [rsp + F_RIP], 2
    cmp dword ptr [rsp + 80], 0x82 /* R11 */
    je the_end
    mov rbx, STATE(S_PROGRAM)
    call step_run
    jmp exception_return

exception:
    lea rax, [rip + call_by_fault]
    cmp rax, [rsp + F_RIP]
    je call_by_fault_taken
    inc qword ptr ds:[CORNER_STATE + S_COUNTS + 128 + rbx * 8]
    lea rsi, [rsp + F_VECTOR]
    mov ecx, 7
    FOLD S_DIGEST
    cmp ebx, 1
    je exception_step
    cmp ebx, 3
    je exception_trap
    cmp ebx, 4
    je exception_trap
    cmp ebx, 14
    je exception_page
exception_fault:
    inc qword ptr STATE(S_FAULTS)
    mov rax, STATE(S_RESUME)
    mov [rsp + F_RIP], rax
    mov rax, STATE(S_RESUME_RSP)
    mov [rsp + F_RSP], rax
    and qword ptr [rsp + F_FLAGS], ~0x44500 /* no TF, DF, NT, AC */
    test qword ptr STATE(S_HANDLER_MODE), 8
    jnz 2f
    or qword ptr [rsp + F_FLAGS], 0x200
2:  mov eax, CORNER_CS3 /* also of who was in a 32-bit segment */
    mov ecx, CORNER_DS3
    test dword ptr [rsp + F_CS], 3
    jnz 1f
    mov eax, CORNER_CS0
    mov ecx, CORNER_DS0
1:  mov [rsp + F_CS], rax
    mov [rsp + F_SS], rcx
exception_return:
    POP_ALL
    add rsp, 16
    iretq

exception_step:
    inc qword ptr STATE(S_TRAPS)
    test qword ptr STATE(S_HANDLER_MODE), 4 /* debug registers can be had */
    jz 1f
    mov rdx, dr6
    FOLD_ONE S_DIGEST, rdx
    xor eax, eax
    mov dr6, rax
    test dl, 1
    jz 1f
    or qword ptr [rsp + F_FLAGS], 0x10000 /* RF: past the breakpoint that brought us here */
1:  dec qword ptr STATE(S_TRAP_LIMIT)
    jg exception_return
    and qword ptr [rsp + F_FLAGS], ~0x100
    jmp exception_return

exception_trap:
    inc qword ptr STATE(S_TRAPS)
    jmp exception_return

/* A page of the scratch area that is absent comes to be; all other page faults are faults. */
exception_page:
    mov rdx, cr2
    FOLD_ONE S_DIGEST, rdx
    mov rcx, rdx
    sub rcx, CORNER_SCRATCH
    cmp rcx, CORNER_SCRATCH_PAGES * 4096
    jae exception_fault
    mov rcx, rdx
    shr rcx, 12
    test byte ptr ds:[CORNER_PT + rcx * 8], 1
    jnz exception_fault
    inc qword ptr STATE(S_PAGE_FAULTS)
    or byte ptr ds:[CORNER_PT + rcx * 8], 1
    invlpg [rdx]
    jmp exception_return

/* ---- gadgets ---- */

/* RDI: port; RSI: value; RDX: bytes */
gadget_out:
    mov eax, esi
    mov ecx, edx
    mov edx, edi
    cmp ecx, 2
    je 2f
    ja 4f
    out dx, al
    ret
2:  out dx, ax
    ret
4:  out dx, eax
    ret

/* RDI: port; RDX: bytes */
gadget_in:
    mov ecx, edx
    mov edx, edi
    cmp ecx, 2
    je 2f
    ja 4f
    in al, dx
    ret
2:  in ax, dx
    ret
4:  in eax, dx
    ret

/* RCX: rounds without an exit */
gadget_spin:
    mov rax, rdi
1:  imul rax, rsi
    add rax, rcx
    ror rax, 7
    adc rdx, rax
    dec rcx
    jnz 1b
    ret

/* RDI: to; RSI: from; RCX: how often; RDX: which; R8: value and backwards if bit 0 */
gadget_string:
    mov rax, r8
    test r8d, 1
    jz 1f
    std
1:  EXIT
    cmp edx, 1
    jb 0f
    je 1f
    cmp edx, 3
    jb 2f
    je 3f
    cmp edx, 5
    jb 4f
    je 5f
    cmp edx, 7
    jb 6f
    repe scasb
    ret
0:  rep movsb
    ret
1:  rep movsq
    ret
2:  rep stosb
    ret
3:  rep stosq
    ret
4:  rep movsd
    ret
5:  repe cmpsb
    ret
6:  rep lodsw
    ret

/* RSI: from; RCX: how often; RDX: port; R8: bytes each; R9: backwards if bit 0 */
gadget_rep_outs:
    test r9d, 1
    jz 1f
    std
1:  cmp r8d, 2
    je 2f
    ja 4f
    rep outsb
    ret
2:  rep outsw
    ret
4:  rep outsd
    ret

/* RDI: to; RCX: how often; RDX: port; R8: bytes each; R9: backwards if bit 0 */
gadget_rep_ins:
    test r9d, 1
    jz 1f
    std
1:  cmp r8d, 2
    je 2f
    ja 4f
    rep insb
    ret
2:  rep insw
    ret
4:  rep insd
    ret

/*
 * An interrupt shadow, or the instruction at which a window opens, and what follows it at once.
 * RDI: a page that may be absent; RCX: what makes the shadow; R8: what follows; R9: how many instructions between
 */
#define SHADOWS 4
.macro AFTER_SHADOW number
    .if \number == 0
    nop
    .elseif \number == 1
    out PORT_DUMMY, al
    .elseif \number == 2
    cli
    nop
    sti
    .elseif \number == 3
    pushfq
    pop r11
    .elseif \number == 4
    int3
    .elseif \number == 5
    ud2
    .elseif \number == 6
    rep stosb
    .elseif \number == 7
    in eax, 0xF5
    .elseif \number == 8
    mov ss, r10d
    nop
    .elseif \number == 9
    mov [rdi], al
    .elseif \number == 10
    cpuid
    .elseif \number == 11
    push r11
    popfq
    .elseif \number == 12
    sti
    nop
    .elseif \number == 13
    int 0x80
    .elseif \number == 14
    mov ss, r10d
    out PORT_DUMMY, al
    .elseif \number == 15
    iretq
    .elseif \number == 16 /* from here on CPL 0 only */
    hlt
    .elseif \number == 17
    rdmsr
    .elseif \number == 18
    mov rax, cr0
    .endif
.endm

.macro MAKE_SHADOW number
    .if \number == 0
    sti
    .elseif \number == 1
    sti
    mov ss, r10d
    .elseif \number == 2
    popfq
    mov ss, r10d
    .else
    popfq
    .endif
.endm

/* A jump of computed length: each case takes 32 bytes. */
gadget_shadow:
    mov r10, ss
    pushfq
    pop r11
    or r11, 0x200
    mov rbp, rsp
    /* what IRETQ would take, and above it what POPFQ takes */
    lea rax, [rip + shadow_end]
    push r10
    push rbp
    push r11
    mov rdx, cs
    push rdx
    push rax
    cmp ecx, 2
    jb 2f
    push r11
2:  lea rax, [rip + shadow_cases]
    imul ecx, ecx, 19
    add ecx, r8d
    shl ecx, 5
    add rax, rcx
    mov rdx, rax
    mov eax, 0x12
    mov ecx, 0x1B /* a model-specific register that is refused; and a count */
    cli
    out PORT_DUMMY, al
    test r9d, r9d
    jz 4f
3:  dec r9d
    jnz 3b
4:  jmp rdx
shadow_end:
    mov rsp, rbp
    sti
    nop
    ret

    .balign 32
shadow_cases:
    .set shadow, 0
    .rept SHADOWS
    .set after, 0
    .rept 19
    .balign 32
    MAKE_SHADOW shadow
    AFTER_SHADOW after
    jmp shadow_end
    .set after, after + 1
    .endr
    .set shadow, shadow + 1
    .endr

/* Interrupts are allowed and forbidden by POPFQ, RCX times. RDI: bits that are flipped besides */
gadget_pop_flags:
    pushfq
    pop r9
    and edi, 0x8D5 /* CF PF AF ZF SF OF */
1:  mov r10, r9
    and r10, ~0x200
    xor r10, rdi
    push r10
    popfq
    out PORT_DUMMY, al
    push r9
    popfq
    lahf
    dec ecx
    jnz 1b
    push r9
    popfq
    ret

/* TF for as many #DB as R8 says, over all that stepping is known to be bad at. RDI, RSI: memory; R9: variant */
gadget_step_traps:
    mov STATE(S_TRAP_LIMIT), r8
    mov r10, ss
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    nop
    pushfq
    pop r11
    and r11, ~0x100 /* how far stepping goes is told by the count, not by this */
    out PORT_DUMMY, al
    mov ecx, 5
    rep movsb
    mov ss, r10d
    nop
    cpuid
    in al, PORT_DUMMY
    mov ecx, 3
    rep stosb
    int3
    cli
    out PORT_DUMMY, al
    sti
    nop
    pushfq
    and qword ptr [rsp], ~0x100
    popfq
    nop
    ret

/* Code that is changed right before it runs. RDI: offset of it; RSI: what it loads; R8: variant */
gadget_modify:
    lea r9, [rdi + CORNER_JIT]
    lea r10, [rdi + CORNER_JIT_VA]
    test r8d, 1
    jz 1f
    xchg r9, r10
1:  mov byte ptr [r10], 0xB8 /* mov eax, imm32; ret */
    mov [r10 + 1], esi
    mov byte ptr [r10 + 5], 0xC3
    test r8d, 2
    jz 2f
    EXIT
2:  call r9
    mov edx, eax
    not esi
    mov [r10 + 1], esi
    test r8d, 4
    jz 3f
    cpuid
3:  call r9
    /* and an instruction that changes the next one */
    mov byte ptr [rip + 4f + 1], sil
4:  mov cl, 0x55
    mov byte ptr [rip + 4b + 1], 0x55
    ret

/* CPL 0. RDI: page; R8: how it is used after its accessed and dirty bits were cleared. RAX: its entry afterwards */
gadget_page_bits:
    mov r9, rdi
    shr r9, 12
    and qword ptr ds:[CORNER_PT + r9 * 8], ~0x60
    invlpg [rdi]
    out PORT_DUMMY, al
    cmp r8d, 1
    jb 9f
    je 1f
    cmp r8d, 3
    jb 2f
    je 3f
    lock inc qword ptr [rdi]
    jmp 9f
1:  mov rdx, [rdi]
    jmp 9f
2:  mov [rdi], rdx
    jmp 9f
3:  mov rsi, rdi
    mov ecx, 8
    rep lodsb
9:  mov rax, ds:[CORNER_PT + r9 * 8]
    mov r10, cr3
    mov cr3, r10
    ret

/* RDI, RSI: any bits; R8: which function */
gadget_x87:
    push rdi
    push rsi
    fninit
    fild qword ptr [rsp]
    fild qword ptr [rsp + 8]
    EXIT
    cmp r8d, 1
    jb 0f
    je 1f
    cmp r8d, 3
    jb 2f
    je 3f
    fdivp
    fsqrt
    jmp 9f
0:  fsin
    jmp 9f
1:  fpatan
    jmp 9f
2:  fabs
    fyl2x
    jmp 9f
3:  fprem
9:  fnstsw ax
    movzx edx, ax
    fstp qword ptr [rsp]
    fninit
    pop rax
    pop rcx
    ret

/* RDI, RSI: any bits */
gadget_sse:
    movq xmm0, rdi
    movq xmm1, rsi
    punpcklqdq xmm0, xmm1
    rsqrtps xmm2, xmm0
    rcpps xmm3, xmm0
    EXIT
    sqrtpd xmm4, xmm0
    mulpd xmm4, xmm0
    cvtpd2dq xmm5, xmm4
    pxor xmm2, xmm3
    pxor xmm4, xmm5
    movq rax, xmm2
    movhlps xmm2, xmm2
    movq rcx, xmm2
    movq rdx, xmm4
    push rax
    stmxcsr [rsp]
    pop r9
    ret

/* All of x87 and SSE as it stands after some random use */
gadget_fxsave:
    push rdi
    push 0x1F80
    ldmxcsr [rsp]
    fninit
    fild qword ptr [rsp + 8]
    movq xmm15, rdi
    movq xmm7, rsi
    mov ecx, 20000 /* for a host's context switch to come between, now and then */
1:  dec ecx
    jnz 1b
    fxsave STATE(S_FXSAVE)
    EXIT
    pop rax
    pop rax
    mov esi, CORNER_STATE + S_FXSAVE
    mov ecx, 52
    FOLD S_DIGEST
    fninit
    ret

/* What is told to be absent must not be used by who asks; who does not ask gets #UD */
gadget_xgetbv:
    xor ecx, ecx
    xgetbv
    ret

/* RDI: leaf; RSI: subleaf */
gadget_cpuid:
    mov eax, edi
    mov ecx, esi
    cpuid
    ret

/* As good programs do: asks first */
gadget_rdrand:
    mov eax, 1
    cpuid
    bt ecx, 30
    jnc 1f
    rdrand rax
1:  mov r9d, ecx
    mov eax, 7
    xor ecx, ecx
    cpuid
    bt ebx, 18
    jnc 2f
    rdseed rdx
2:  ret

/* CPL 0. RDI: which */
gadget_msr_read:
    mov ecx, edi
    rdmsr
    ret

/* CPL 0. RDI: which; RSI: value */
gadget_msr_write:
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
    wrmsr
    rdmsr
    ret

gadget_rdpmc:
    mov ecx, edi
    rdpmc
    ret

/* The counter, as a rewritten kernel reads it. Never the same value twice, never an earlier one. RCX: how often */
gadget_tsc:
    mov r9d, ecx
1:  test qword ptr STATE(S_HANDLER_MODE), 8
    jz 0f
    mov ecx, 0x10 /* a software KVM loses what IN brings when other registers change, too */
    rdmsr
    shl rdx, 32
    or rax, rdx
    jmp 2f
0:  in eax, 0xF5
    shl rdx, 32
    or rax, rdx
    test r8d, 1
    jz 2f
    mov r10, rax
    in eax, 0xF8
    nop
    shl rdx, 32
    or rax, rdx
    cmp rax, r10
    ja 2f
    inc qword ptr STATE(S_TSC_BACK)
2:  cmp rax, STATE(S_LAST_TSC)
    ja 3f
    inc qword ptr STATE(S_TSC_BACK)
3:  mov STATE(S_LAST_TSC), rax
    dec r9d
    jnz 1b
    ret

/* CPL 3, with CR4.TSD: a program's own RDTSC. RDI: offset in the page of written code; RSI: its bytes */
gadget_user_tsc:
    lea r9, [rdi + CORNER_JIT]
    mov [r9], rsi
    call r9
    shl rdx, 32
    or rax, rdx
    cmp rax, STATE(S_LAST_TSC)
    ja 1f
    inc qword ptr STATE(S_TSC_BACK)
1:  mov STATE(S_LAST_TSC), rax
    ret

/* R8: which */
gadget_fault:
    EXIT
    movabs r9, 0x8000000000000000
    lea rax, [rip + fault_cases]
    shl r8d, 4
    add rax, r8
    jmp rax
    .balign 16
fault_cases:
    ud2 /* 0 */
    .balign 16
    xor ecx, ecx /* 1 */
    xor edx, edx
    div ecx
    .balign 16
    mov rax, [r9] /* 2: #GP */
    .balign 16
    mov rax, ds:[0x300000] /* 3: #PF, no such page */
    .balign 16
    int3 /* 4 */
    ret
    .balign 16
    int 0x80 /* 5 */
    ret
    .balign 16
    int 0x90 /* 6: #GP, no such gate */
    ret
    .balign 16
    mov rsp, r9 /* 7: #SS */
    push rax
    .balign 16
    mov r9d, CORNER_TR /* 8: #GP, no data segment */
    mov ds, r9d
    .balign 16
    jmp r9 /* 9: #GP */
    .balign 16
    mov eax, 0x80000000 /* 10: overflow of a division */
    cdq
    or ecx, -1
    idiv ecx
    .balign 16
    pushfq /* 11: NT, then back: #GP in long mode */
    or qword ptr [rsp], 0x4000
    popfq
    iretq

/* Through a 32-bit segment and back. R8: variant; R9: 0 from CPL 3, 1 from CPL 0 */
gadget_compat:
    mov eax, CORNER_CS3_32
    mov r10d, CORNER_CS3
    test r9d, r9d
    jz 1f
    mov eax, CORNER_CS0_32
    mov r10d, CORNER_CS0
1:  lea rcx, [rip + compat_code]
    lea rbp, [rip + compat_end]
    mov ebx, r10d
    mov edx, r8d
    push rax
    push rcx
    retfq
    .code32
compat_code:
    out PORT_DUMMY, al
    pusha
    mov al, 0x7B
    add al, 0x49
    daa
    aaa
    test edx, 1
    jz 1f
    into
1:  test edx, 2
    jz 2f
    cli
    out PORT_DUMMY, al
    push ss
    sti
    pop ss /* a shadow after a shadow */
    out PORT_DUMMY, al
2:  test edx, 4
    jz 3f
    int3
3:  test edx, 8
    jz 4f
    ud2
4:  popa
    push ebx
    push ebp
    retf
    .code64
compat_end:
    ret

/* CPL 0: out of long mode, out of protected mode, into a real one and all the way back, interrupts off. RDI: any */
gadget_real_mode:
    cli
    mov STATE(S_REAL_RSP), rsp
    mov r10, ss
    lea rax, [rip + real_page]
    lea rbp, [rip + real_back]
    mov ecx, CORNER_CS0_32
    push rcx
    push CORNER_LOW_CODE
    retfq
real_back:
    mov rsp, STATE(S_REAL_RSP)
    mov ss, r10d
    mov ds, r10d
    mov es, r10d
    mov fs, r10d
    mov gs, r10d
    sti
    nop
    ret

    .globl corner_guest_low_begin, corner_guest_low_end
    .balign 16
real_page:
corner_guest_low_begin: /* runs at CORNER_LOW_CODE */
    .code32
    mov ebx, cr0
    and ebx, 0x7FFFFFFF
    mov cr0, ebx
    mov ecx, 0xC0000080
    rdmsr
    and eax, ~0x100
    wrmsr
    mov eax, CORNER_DS16
    mov ss, eax
    mov ds, eax
    .byte 0xEA /* far jump */
    .long low_16 - corner_guest_low_begin
    .word CORNER_CS16
    .code16
low_16: /* a 16-bit segment whose base is CORNER_LOW_CODE */
    mov eax, cr0
    and eax, 0xFFFFFFFE
    mov cr0, eax
    .byte 0xEA
    .word low_real - corner_guest_low_begin
    .word CORNER_LOW_CODE / 16
low_real:
    mov ax, CORNER_LOW_CODE / 16
    mov ds, ax
    mov ss, ax
    mov sp, 0xF00
    out PORT_DUMMY, al
    pushf
    pop cx
    mov ax, di
    aam
    out PORT_DUMMY, al
    mov si, ax
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xEA
    .long CORNER_LOW_CODE + low_32 - corner_guest_low_begin
    .word CORNER_CS0_32
    .code32
low_32:
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov ebx, cr0
    or ebx, 0x80000000
    mov cr0, ebx
    mov eax, CORNER_DS0
    mov ss, eax
    mov esp, CORNER_LOW_CODE + 0xF00
    push CORNER_CS0
    push ebp
    retf
    .code64
corner_guest_low_end:

/* CPL 0: waits for an interrupt */
gadget_halt:
    sti
    hlt
    ret

/* RDI: flags to load with IRETQ, to the same privilege */
gadget_iret:
    mov rbp, rsp
    mov r10, ss
    mov r11, cs
    and edi, 0x210CD5 /* CF PF AF ZF SF DF OF RF ID */
    or edi, 0x202
    pushfq
    pop rax
    and eax, 0x3000
    or edi, eax
    lea rax, [rip + 1f]
    cli
    out PORT_DUMMY, al
    push r10
    push rbp
    push rdi
    push r11
    push rax
    iretq
1:  cld
    ret

gadget_syscall:
    mov rbp, rsp
    syscall
    mov rsp, rbp
    ret
corner_guest_syscall: /* on the program's stack, interrupts off */
    out PORT_DUMMY, al
    sysretq

/* RDI: to; RSI: from, one of them in the pages of nobody; RCX: how often; R8: how */
gadget_mmio:
    mov rax, rsi
    cmp r8d, 1
    jb 0f
    je 1f
    cmp r8d, 3
    jb 2f
    je 3f
    cmp r8d, 5
    jb 4f
    mov [rdi], rax
    ret
0:  rep movsb
    ret
1:  rep movsq
    ret
2:  rep stosd
    ret
3:  mov rax, [rsi]
    ret
4:  lock xadd [rdi], rax
    ret

/* KVM answers unknown ones with an error, and no exit */
gadget_hypercall:
    mov eax, 4711
    vmmcall
    ret

/* CPL 0: a breakpoint on an instruction, and a watched word. RDI: the word */
gadget_breakpoint:
    mov STATE(S_TRAP_LIMIT), r8
    lea rax, [rip + 1f]
    mov dr0, rax
    mov dr1, rdi
    mov eax, 0xD0000A | 0x400 /* G0 execution, G1 write of 4 bytes */
    mov dr7, rax
    out PORT_DUMMY, al
1:  nop
    mov dword ptr [rdi], 17
    out PORT_DUMMY, al
    mov eax, 0x400
    mov dr7, rax
    mov rdx, dr6
    ret

/* A frame of the digests so far */
gadget_frame:
    mov rax, STATE(S_DIGEST)
    mov ds:[CORNER_STATE + S_NET_FRAME + 26], rax
    mov rax, STATE(S_IRQ_DIGEST)
    mov ds:[CORNER_STATE + S_NET_FRAME + 34], rax
    mov rax, STATE(S_IRQS)
    mov ds:[CORNER_STATE + S_NET_FRAME + 42], rax
    mov rax, STATE(S_LAST_TSC)
    mov ds:[CORNER_STATE + S_NET_FRAME + 12 + FRAME_TSC], rax
    inc word ptr ds:[CORNER_NET_RING + 0x1002]
    mov edx, CORNER_NET_PORT + 0x46 /* of queue 1 */
    mov eax, 1
    out dx, ax
    ret

/* RCX more requests to the disk, if all that were asked have ended */
gadget_disk:
    mov ax, ds:[CORNER_DISK_RING + 0x1002]
    mov dx, ds:[CORNER_DISK_RING + 0x2002]
    cmp ax, dx
    jne 1f
    add ds:[CORNER_DISK_RING + 0x1002], cx
    mov edx, CORNER_DISK_PORT + 0x44
    xor eax, eax
    out dx, ax
1:  ret

/* RDI: memory across a border of lines */
gadget_locked:
    mov rax, [rdi]
    lock cmpxchg [rdi], rsi
    xchg [rdi], rdx
    lock bts dword ptr [rdi], 5
    lock xadd [rdi], rcx
    ret

gadget_end:
    ret

    .balign 16
corner_guest_end:
    .section .note.GNU-stack, "", @progbits
