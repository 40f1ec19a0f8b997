/* In the product nothing dies on purpose. */
#include "base/fault_point.h"

void fault_point(const char *step)
{
    (void)step;
}
