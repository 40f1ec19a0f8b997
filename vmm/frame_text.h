/* One line about an Ethernet frame, for people who read a log. */
#ifndef FTVMM_VMM_FRAME_TEXT_H
#define FTVMM_VMM_FRAME_TEXT_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_TEXT_BYTES 192

/* Who speaks to whom and in which protocol, as far as the frame's `bytes` (any number) tell. Believes none of them. */
void frame_text(const uint8_t *frame, size_t bytes, char text[FRAME_TEXT_BYTES]);

#endif
