/* SpMV in float32 with AVX2, for one or two samples at once: register tables, and runs of blocks.
 *
 *     for every strip of 8 rows:                     sum[8] = 0
 *         for every step of the strip:               table = x[tables[step] ..][0 .. width)
 *             for lane in 0 .. 7:                    sum[lane] += value[step][lane] * table[position[step][lane]]
 *         y[rows of the strip] = sum
 *
 * Steps, strips and quads as in spmv_avx512.c, with 8 lanes; 16 registers hold the sums of two samples.
 *
 * VPERMPS looks 8 positions up in one register by their low three bits: 1 a cycle on Intel, 2 on AMD Zen 5. Wider
 * tables look up in each of their registers and choose by bits 3 and 4, moved to the sign for VBLENDVPS (2 uops on
 * Intel, 1 on AMD): width 8 costs one lookup, 16 two and a blend, 32 four and three. Which pays depends on the
 * padding that a narrower table brings; the plan counts it. VFMADD: 2 a cycle. There is no gather: width 8 with one
 * element in a step costs no more than VGATHERDPS for it. */
#if defined(__AVX2__) && defined(__FMA__)
#include "spmv_tables.h"

#define LANES 8
#define AT_ONCE 2 /* samples */
#define INLINE static inline __attribute__((always_inline))

/* All samples of a product, in pairs, with a loop that is compiled for two and for one. */
#define FOR_PAIRS(loop)                                                                            \
    gspi_product some = *product;                                                                  \
    for (int64_t left = product->samples; left > 0; left -= AT_ONCE) {                             \
        if (left > 1) loop(2);                                                                     \
        else loop(1);                                                                              \
        some.x = (const float *)some.x + AT_ONCE * some.x_sample;                                  \
        some.y = (float *)some.y + AT_ONCE * some.y_sample;                                        \
    }

/* ----------------------------------------------------------------- tables */

/* The entries of one table, `width` floats from x on, at the positions in byte `byte` of the words. */
INLINE __m256 look_up(const float *x, __m256i words, int byte, int width) {
    const __m256i positions = _mm256_srli_epi32(words, 8 * byte);
    __m256 found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), positions);
    if (width >= 16) {
        const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - 8 * byte));
        found = _mm256_blendv_ps(found, _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + 8), positions),
                                 bit3);
        if (width >= 32) {
            const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(words, 27 - 8 * byte));
            const __m256 upper = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + 16), positions),
                _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + 24), positions), bit3);
            found = _mm256_blendv_ps(found, upper, bit4);
        }
    }
    return found;
}

INLINE void across(const gspi_product *product, const uint32_t *tables, const unsigned char *quad,
                   uint64_t count, int width, int samples, __m256 sum[][4]) {
    for (const float *x = product->x; count > 0; count--, quad += QUAD) {
        const float *table = x + *tables++, *values = (const float *)(quad + 4 * LANES);
        prefetch(quad, QUAD);
        const __m256i words = _mm256_load_si256((const __m256i *)quad);
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++)
                sum[s][i] = _mm256_fmadd_ps(look_up(table + s * product->x_sample, words, i, width),
                                            _mm256_load_ps(values + i * LANES), sum[s][i]);
    }
}

INLINE void along(const gspi_product *product, const uint32_t *tables, const unsigned char *quad,
                  uint64_t count, int width, int samples, float sums[][LANES]) {
    __m256 sum[AT_ONCE][4];
    for (int s = 0; s < samples; s++)
        for (int i = 0; i < 4; i++)
            sum[s][i] = i == 0 ? _mm256_loadu_ps(sums[s]) : _mm256_setzero_ps();
    for (const float *x = product->x; count > 0; count--, quad += QUAD, tables += 4) {
        const float *values = (const float *)(quad + 4 * LANES);
        prefetch(quad, QUAD);
        const __m256i words = _mm256_load_si256((const __m256i *)quad);
        for (int i = 0; i < 4; i++)
            for (int s = 0; s < samples; s++)
                sum[s][i] =
                    _mm256_fmadd_ps(look_up(x + tables[i] + s * product->x_sample, words, i, width),
                                    _mm256_load_ps(values + i * LANES), sum[s][i]);
    }
    for (int s = 0; s < samples; s++)
        _mm256_storeu_ps(sums[s], _mm256_add_ps(_mm256_add_ps(sum[s][0], sum[s][1]),
                                                _mm256_add_ps(sum[s][2], sum[s][3])));
}

/* A kernel, and its quads along. */
#define TABLES(name, width)                                                                        \
    static void along_##width(const gspi_product *product, const uint32_t *tables,                 \
                              const unsigned char *quad, uint64_t count, int samples,              \
                              float sums[][V_LANES]) {                                             \
        if (samples > 1) along(product, tables, quad, count, width, 2, sums);                      \
        else along(product, tables, quad, count, width, 1, sums);                                  \
    }                                                                                              \
    void name(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last) {    \
        FOR_PAIRS(TABLES_##width)                                                                  \
    }
#define TABLES_8(samples) add_units(plan, &some, first, last, 8, samples, across, along_8)
#define TABLES_16(samples) add_units(plan, &some, first, last, 16, samples, across, along_16)
#define TABLES_32(samples) add_units(plan, &some, first, last, 32, samples, across, along_32)

TABLES(gsp_f32_spmv_tables8__avx2, 8)
TABLES(gsp_f32_spmv_tables16__avx2, 16)
TABLES(gsp_f32_spmv_tables32__avx2, 32)

/* ----------------------------------------------------------------- blocks */

/* What a run's values are multiplied with: x from the run on, or one entry of x in every lane. */
INLINE __m256 factor(const float *x, bool wide) {
    return wide ? _mm256_loadu_ps(x) : _mm256_set1_ps(*x);
}

/* Sums the runs of one part, values[run][LANES] times x[run ..], for each sample. */
INLINE void part(const gspi_product *product, const uint32_t *runs, int64_t count,
                 const float *values, bool wide, int samples, __m256 *total) {
    const float *x = product->x;
    __m256 sum[AT_ONCE][4];
    for (int s = 0; s < samples; s++)
        for (int i = 0; i < 4; i++) sum[s][i] = _mm256_setzero_ps();
    int64_t run = 0;
    for (; run + 4 <= count; run += 4)
        for (int i = 0; i < 4; i++) {
            const __m256 value = _mm256_load_ps(values + (run + i) * LANES);
            for (int s = 0; s < samples; s++)
                sum[s][i] = _mm256_fmadd_ps(factor(x + runs[run + i] + s * product->x_sample, wide),
                                            value, sum[s][i]);
        }
    for (; run < count; run++) {
        const __m256 value = _mm256_load_ps(values + run * LANES);
        for (int s = 0; s < samples; s++)
            sum[s][0] = _mm256_fmadd_ps(factor(x + runs[run] + s * product->x_sample, wide), value,
                                        sum[s][0]);
    }
    for (int s = 0; s < samples; s++)
        total[s] =
            _mm256_add_ps(_mm256_add_ps(sum[s][0], sum[s][1]), _mm256_add_ps(sum[s][2], sum[s][3]));
}

INLINE float reduce(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Blocks at least as wide as half a register: a row's runs add up in the lanes, which are summed at its end. */
INLINE void wide(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last,
                 int samples) {
    const int64_t height = plan->matrix.pattern.block_rows;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * height * LANES;
        for (int64_t r = 0; r < gspi_min(height, plan->matrix.rows - unit * height); r++) {
            __m256 sum[AT_ONCE];
            part(product, plan->tables + begin, count, values + r * count * LANES, true, samples,
                 sum);
            float *y = (float *)product->y + (unit * height + r) * product->y_row;
            for (int s = 0; s < samples; s++) y[s * product->y_sample] = reduce(sum[s]);
        }
    }
}

/* Blocks at least as tall as half a register: one entry of x for all lanes, each of which is a row. */
INLINE void tall(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last,
                 int samples) {
    const int64_t height = plan->matrix.pattern.block_rows,
                  parts = gspi_parts(&plan->matrix.pattern, GSPI_TALL, LANES);
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * parts * LANES;
        const int64_t rows = gspi_min(height, plan->matrix.rows - unit * height);
        for (int64_t place = 0; place * LANES < rows; place++) {
            const int64_t left = gspi_min(rows - place * LANES, LANES);
            __m256 sum[AT_ONCE];
            part(product, plan->tables + begin, count, values + place * count * LANES, false,
                 samples, sum);
            float *y = (float *)product->y + (unit * height + place * LANES) * product->y_row;
            for (int s = 0; s < samples; s++, y += product->y_sample) {
                float lanes[LANES];
                _mm256_storeu_ps(lanes, sum[s]);
                for (int64_t i = 0; i < left; i++) y[i * product->y_row] = lanes[i];
            }
        }
    }
}

#define WIDE(samples) wide(plan, &some, first, last, samples)
#define TALL(samples) tall(plan, &some, first, last, samples)

void gsp_f32_spmv_wide__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                             int64_t last) {
    FOR_PAIRS(WIDE)
}

void gsp_f32_spmv_tall__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                             int64_t last) {
    FOR_PAIRS(TALL)
}
#endif
