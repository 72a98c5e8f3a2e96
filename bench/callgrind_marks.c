/* What bench/hot_path.py tells callgrind, loaded by ctypes: client requests are instructions that do nothing elsewhere. */
#include <valgrind/callgrind.h>

void begin_counting(void) {
    CALLGRIND_START_INSTRUMENTATION;
}

/* Write what was counted since the last time to a file that names the case, and begin at zero again. */
void end_case(const char *name) {
    CALLGRIND_DUMP_STATS_AT(name);
}
