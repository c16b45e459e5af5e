/* Probes of this CPU: loops of one kind of work, which somebody times. What a kernel could reach at most is
 * computed from them. */
#ifndef GSP_PROBE_H
#define GSP_PROBE_H

#include "../gsp_internal.h"

typedef enum gspi_probe_kind {
    GSPI_PROBE_READ, /* loads of the memory, registers only at the end: an item is a load */
    GSPI_PROBE_AHEAD, /* the same, each line asked for some KiB earlier */
    GSPI_PROBE_PERMUTE, /* look-ups of a whole register in a table of 32 floats (AVX2: 8, NEON: 16) in registers */
    GSPI_PROBE_STEP, /* as many look-ups as multiply-adds */
    GSPI_PROBE_FMA, /* multiply-adds from registers */
    GSPI_PROBE_LOAD_FMA, /* multiply-adds, each with an aligned operand from the memory */
    GSPI_PROBE_PAIRS, /* look-ups of 16-bit numbers, each with a dot product of pairs of bfloat16 */
    GSPI_PROBE_BYTES, /* look-ups of bytes, each with a dot product of four */
} gspi_probe_kind;
#define GSPI_PROBES 8

/* Goes over the memory so many times. It is aligned to 64 bytes and holds a multiple of GSPI_PROBE_BLOCK bytes, at
 * least one; the result depends on all the work, so that none of it can be left out. */
#define GSPI_PROBE_BLOCK 1024
typedef float gspi_probe_loop(gspi_probe_kind kind, const float *memory, size_t bytes,
                              int64_t rounds);

/* Lanes of a register, and items of work of one round over so many bytes. */
int gspi_probe_lanes(gsp_backend backend);
int64_t gspi_probe_items(gsp_backend backend, size_t bytes);
/* Runs a probe. GSP_ERROR_BACKEND if this CPU cannot, or if the backend has no such instructions. */
gsp_status gspi_probe(gsp_backend backend, gspi_probe_kind kind, const float *memory, size_t bytes,
                      int64_t rounds, float *result);

gspi_probe_loop gspi_probe__scalar;
#ifdef GSP_HAVE_AVX2
gspi_probe_loop gspi_probe__avx2;
#endif
#ifdef GSP_HAVE_AVX512
gspi_probe_loop gspi_probe__avx512;
#endif
#ifdef GSP_HAVE_AVX512BF16
gspi_probe_loop gspi_probe__avx512bf16;
#endif
#ifdef GSP_HAVE_AVX512VNNI
gspi_probe_loop gspi_probe__avx512vnni;
#endif
#ifdef GSP_HAVE_NEON
gspi_probe_loop gspi_probe__neon;
#endif

#endif
