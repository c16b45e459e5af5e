/* Whether tiles of AMX can be used. The CPU must have them and the operating system save them, as with any register;
 * besides, Linux gives the 8 KiB of tiles to processes that ask for them only, since every thread that has used them
 * carries them from then on. */
#include "gsp_kernels.h"

#ifdef GSP_HAVE_AMX
#include <cpuid.h>
#include <stdatomic.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Of arch_prctl and of XCR0. */
#define REQUEST_PERMISSION 0x1023
#define TILE_CONFIG 17
#define TILE_DATA 18

long syscall(long number, ...); /* which unistd.h hides in strict C11 */

static bool cpu_has_tiles(void) {
    unsigned a, b, c, d;
    const unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tile) && (d & int8);
}

/* What the operating system saves. Whoever has AVX-512 has xgetbv. */
static bool system_saves_tiles(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> TILE_CONFIG & 1) && (low >> TILE_DATA & 1);
}

static bool ask(void) {
#ifdef __linux__
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

const char *gspi_amx_missing(void) {
    static const char *const reasons[] = {
        NULL,
        "the CPU has not AMX-BF16 and AMX-INT8, or not AVX-512 VBMI2, VNNI and BF16",
        "the operating system does not save the tiles of AMX",
        "the operating system has refused the tiles of AMX (arch_prctl ARCH_REQ_XCOMP_PERM)",
    };
    /* 1 + the place of the answer; two threads that ask at once get the same one. */
    static _Atomic int known;
    int found = atomic_load(&known);
    if (found == 0) {
        found = 1 + (!cpu_has_tiles() ? 1 : !system_saves_tiles() ? 2 : !ask() ? 3 : 0);
        atomic_store(&known, found);
    }
    return reasons[found - 1];
}
#endif
