/* Gathers and scatters of this CPU: loops over a list of indices, each with one instruction, which somebody times. */
#ifndef GSP_GATHERS_H
#define GSP_GATHERS_H

#include "../gsp_internal.h"

/* Goes over `count` indices, a multiple of GSPI_GATHERS_BLOCK. A gather gives the sum, modulo 2^32, of the bits of
 * table[indices[i]], so that none of the work can be left out. A scatter stores the number i there, later slots over
 * earlier ones, and gives 0. */
#define GSPI_GATHERS_BLOCK 64
typedef uint32_t gspi_gathers_loop(const int32_t *indices, int64_t count, float *table);

typedef struct gspi_gathers {
    const char *name;
    gsp_backend backend; /* that has the instruction */
    int lanes;
    /* 0, or for a look-up in registers: the indices of an instruction lie in one table of so many floats, which begins
     * at a multiple of it. A power of two. */
    int reach;
    bool scatters;
    gspi_gathers_loop *loop;
} gspi_gathers;

/* Those that this CPU has, by number from 0; NULL after the last. */
const gspi_gathers *gspi_gathers_at(int number);

/* GSP_ERROR_INDEX unless the indices point into the table of `entries` floats and, for a look-up in registers, lie as
 * it needs them. */
gsp_status gspi_gathers_check(const gspi_gathers *gathers, const int32_t *indices, int64_t count,
                              int64_t entries);
/* The loop for any count: the last indices, less than a block, are done one by one. */
uint32_t gspi_gathers_run(const gspi_gathers *gathers, const int32_t *indices, int64_t count,
                          float *table);

#ifdef GSP_HAVE_AVX2
gspi_gathers_loop gspi_gather__avx2, gspi_permute__avx2;
#endif
#ifdef GSP_HAVE_AVX512
gspi_gathers_loop gspi_gather__avx512, gspi_permute__avx512, gspi_scatter__avx512;
#endif
#ifdef GSP_HAVE_NEON
gspi_gathers_loop gspi_permute__neon;
#endif

#endif
