/* The probes of plain C, and which loop a backend has. */
#include "gsp_probe.h"

#include "gsp_kernels.h"

#define CHAINS 8

#define EVERY(work)                                                                                \
    for (int64_t round = 0; round < rounds; round++)                                               \
        for (size_t at = 0; at < count; at += CHAINS)                                              \
            for (size_t i = 0; i < CHAINS; i++) work;                                              \
    break

/* An item is one float. Plain C has no look-up in registers: it is a load. */
float gspi_probe__scalar(gspi_probe_kind kind, const float *memory, size_t bytes, int64_t rounds) {
    const size_t count = bytes / sizeof *memory;
    const float weight = memory[0];
    float sum[CHAINS] = {0};
    switch (kind) {
    case GSPI_PROBE_READ:
    case GSPI_PROBE_AHEAD:
    case GSPI_PROBE_PERMUTE: EVERY(sum[i] += memory[at + i]);
    case GSPI_PROBE_STEP:
    case GSPI_PROBE_LOAD_FMA: EVERY(sum[i] += weight * memory[at + i]);
    case GSPI_PROBE_FMA: EVERY(sum[i] = sum[i] * weight + weight);
    case GSPI_PROBE_PAIRS:
    case GSPI_PROBE_BYTES: break; /* not here */
    }
    for (size_t i = 1; i < CHAINS; i++) sum[0] += sum[i];
    return sum[0];
}

/* Narrow numbers: what some CPUs with AVX-512 have. */
static gspi_probe_loop *narrow_loop_of(gsp_backend backend, gspi_probe_kind kind) {
    const uint32_t needs = GSPI_VBMI | (kind == GSPI_PROBE_PAIRS ? GSPI_BF16 : GSPI_VNNI);
    if ((backend != GSP_AVX512 && backend != GSP_AMX) || (gspi_features() & needs) != needs)
        return NULL;
#ifdef GSP_HAVE_AVX512BF16
    if (kind == GSPI_PROBE_PAIRS) return gspi_probe__avx512bf16;
#endif
#ifdef GSP_HAVE_AVX512VNNI
    if (kind == GSPI_PROBE_BYTES) return gspi_probe__avx512vnni;
#endif
    return NULL;
}

static gspi_probe_loop *loop_of(gsp_backend backend, gspi_probe_kind kind) {
    if (kind >= GSPI_PROBE_PAIRS) return narrow_loop_of(backend, kind);
    switch (backend) {
    case GSP_SCALAR: return gspi_probe__scalar;
#ifdef GSP_HAVE_AVX2
    case GSP_AVX2: return gspi_probe__avx2;
#endif
#ifdef GSP_HAVE_AVX512
    case GSP_AVX512_BASE:
    case GSP_AVX512:
    case GSP_AMX: return gspi_probe__avx512;
#endif
#ifdef GSP_HAVE_NEON
    case GSP_NEON: return gspi_probe__neon;
#endif
    default: return NULL;
    }
}

int gspi_probe_lanes(gsp_backend backend) {
    switch (backend) {
    case GSP_SCALAR: return 1;
    case GSP_NEON: return 4;
    case GSP_AVX2: return 8;
    case GSP_AVX512_BASE:
    case GSP_AVX512:
    case GSP_AMX: return 16;
    }
    return 1;
}

int64_t gspi_probe_items(gsp_backend backend, size_t bytes) {
    return (int64_t)(bytes / sizeof(float)) / gspi_probe_lanes(backend);
}

gsp_status gspi_probe(gsp_backend backend, gspi_probe_kind kind, const float *memory, size_t bytes,
                      int64_t rounds, float *result) {
    gsp_backend backends[GSP_BACKENDS];
    bool runs = false;
    for (int i = gsp_backends(backends); i > 0; i--) runs = runs || backends[i - 1] == backend;
    gspi_probe_loop *loop = runs ? loop_of(backend, kind) : NULL;
    GSP_CHECK(loop != NULL, GSP_ERROR_BACKEND);
    *result = loop(kind, memory, bytes, rounds);
    return GSP_OK;
}
