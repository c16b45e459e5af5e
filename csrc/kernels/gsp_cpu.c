/* What this CPU and this build can run. Compiled with the flags of the baseline: nothing here may use what
 * it asks about. */
#include "gsp_kernels.h"

const char *gsp_backend_name(gsp_backend backend) {
    switch (backend) {
    case GSP_SCALAR: return "scalar";
    case GSP_AVX2: return "avx2";
    case GSP_AVX512_BASE: return "avx512_base";
    case GSP_AVX512: return "avx512";
    case GSP_NEON: return "neon";
    case GSP_AMX: return "amx";
    }
    return NULL;
}

/* __builtin_cpu_supports asks cpuid, and xgetbv whether the operating system saves the registers. */
const char *gsp_backend_missing(gsp_backend backend) {
    switch (backend) {
    case GSP_SCALAR: return NULL;
#ifdef GSP_HAVE_AVX2
    case GSP_AVX2:
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                   ? NULL
                   : "the CPU has not AVX2 and FMA";
#endif
#ifdef GSP_HAVE_AVX512
    case GSP_AVX512_BASE:
    case GSP_AVX512:
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("fma")
                   ? NULL
                   : "the CPU has not AVX-512 F, BW, DQ and VL";
#endif
#ifdef GSP_HAVE_NEON
    case GSP_NEON: return NULL; /* every 64-bit Arm CPU has it */
#endif
#ifdef GSP_HAVE_AMX
    case GSP_AMX: {
        const char *missing = gsp_backend_missing(GSP_AVX512);
        return missing != NULL ? missing : gspi_amx_missing();
    }
#endif
    default: return "it is for another processor, or the compiler of this build does not know it";
    }
}

int gsp_backends(gsp_backend backends[GSP_BACKENDS]) {
    int count = 0;
    for (int backend = GSP_BACKENDS - 1; backend >= 0; backend--)
        if (gsp_backend_missing((gsp_backend)backend) == NULL)
            backends[count++] = (gsp_backend)backend;
    return count;
}

uint32_t gspi_features(void) {
    uint32_t features = 0;
#ifdef GSP_HAVE_AVX512
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vbmi")) features |= GSPI_VBMI;
    if (__builtin_cpu_supports("avx512vnni")) features |= GSPI_VNNI;
    if (__builtin_cpu_supports("avx512bf16")) features |= GSPI_BF16;
#endif
    return features;
}
