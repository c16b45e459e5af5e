/* In place of gsp_permission.c, where kernels are compiled with amx_model.h: tiles are there, the rest must be. */
#include "kernels/gsp_kernels.h"

const char *gspi_amx_missing(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") &&
                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16")
               ? NULL
               : "the CPU has not AVX-512 VBMI2, VNNI and BF16";
}
