/* SpMM in float32 with AVX2: a weight is broadcast, and registers run over the columns of x.
 *
 *     for every tile of 32 columns of x:
 *         for every row:                      sum[32] = 0
 *             for every element of the row:   sum += value * x[col][tile]
 *             y[row][tile] = sum
 *
 * x [cols][samples] with rows x_col apart, y [rows][samples] with rows y_row apart. Tiles come first, so that those
 * 32 columns of x stay in the cache for all rows. An element costs a broadcast, four loads and four VFMADDs, and
 * loads set the pace. No pattern is needed: which elements are kept decides nothing but the order of the loads. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gsp_kernels.h"

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

/* Four registers of columns from `left` on, of one row. */
INLINE void tile(const gsp_plan *plan, const gspi_product *product, int64_t row, int64_t left) {
    const float *values = (const float *)plan->packed, *x = (const float *)product->x + left;
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    for (uint64_t e = plan->start[row]; e < plan->start[row + 1]; e++) {
        const float *from = x + plan->tables[e] * product->x_col;
        const __m256 value = _mm256_set1_ps(values[e]);
        for (int i = 0; i < 4; i++)
            sum[i] = _mm256_fmadd_ps(value, _mm256_loadu_ps(from + i * LANES), sum[i]);
    }
    float *y = (float *)product->y + row * product->y_row + left;
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(y + i * LANES, sum[i]);
}

/* Up to one register of columns from `left` on, of one row; four elements at a time, since one sum alone would
 * wait for itself. */
INLINE void narrow(const gsp_plan *plan, const gspi_product *product, int64_t row, int64_t left,
                   int64_t count) {
    const float *values = (const float *)plan->packed, *x = (const float *)product->x + left;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i here = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)gspi_min(count, LANES)), lanes);
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    uint64_t e = plan->start[row];
    const uint64_t end = plan->start[row + 1];
    for (; e + 4 <= end; e += 4)
        for (int i = 0; i < 4; i++) {
            const __m256 from = _mm256_maskload_ps(x + plan->tables[e + i] * product->x_col, here);
            sum[i] = _mm256_fmadd_ps(_mm256_set1_ps(values[e + i]), from, sum[i]);
        }
    for (; e < end; e++) {
        const __m256 from = _mm256_maskload_ps(x + plan->tables[e] * product->x_col, here);
        sum[0] = _mm256_fmadd_ps(_mm256_set1_ps(values[e]), from, sum[0]);
    }
    const __m256 all = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
    _mm256_maskstore_ps((float *)product->y + row * product->y_row + left, here, all);
}

void gsp_f32_spmm__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                        int64_t last) {
    int64_t left = 0;
    for (; left + 4 * LANES <= product->samples; left += 4 * LANES)
        for (int64_t row = first; row < last; row++) tile(plan, product, row, left);
    for (; left < product->samples; left += LANES)
        for (int64_t row = first; row < last; row++)
            narrow(plan, product, row, left, product->samples - left);
}
#endif
