/* The name of a virtual machine, which becomes part of file names and keys. */
#ifndef FTVMM_BASE_VM_NAME_H
#define FTVMM_BASE_VM_NAME_H

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#define VM_NAME_BYTES 32 /* with its end */
#define VM_NAME_RULE  "up to 31 letters, digits, '-', '_' and '.', no '.' in front"

/* Any thread. */
static inline bool vm_name_is_valid(const char *vm)
{
    size_t length = strlen(vm);

    if (length == 0 || length >= VM_NAME_BYTES || vm[0] == '.')
        return false;
    for (const char *c = vm; *c; c++)
        if (!isalnum((unsigned char)*c) && strchr("-_.", *c) == NULL)
            return false;
    return true;
}

#endif
