/* SpMV in float32 with AVX2: register tables, and runs of blocks.
 *
 *     for every strip of 8 rows:                     sum[8] = 0
 *         for every step of the strip:               table = x[tables[step] ..][0 .. width)
 *             for lane in 0 .. 7:                    sum[lane] += value[step][lane] * table[position[step][lane]]
 *         y[rows of the strip] = sum
 *
 * Quads, strips and steps as in spmv_avx512.c, with 8 lanes.
 *
 * VPERMPS looks 8 positions up in one register by their low three bits: 1 a cycle on Intel, 2 on AMD Zen 5. Wider
 * tables look up in each of their registers and choose by bits 3 and 4, moved to the sign for VBLENDVPS (2 uops on
 * Intel, 1 on AMD): width 8 costs one lookup, 16 two and a blend, 32 four and three. Which pays depends on the
 * padding that a narrower table brings; the plan counts it. VFMADD: 2 a cycle. There is no gather: width 8 with one
 * element in a step costs no more than VGATHERDPS for it. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gsp_kernels.h"

#define LANES 8
/* Quads come from L2 in most layers; asking for them this far ahead gains 10 to 20 % on Zen 5. */
#define AHEAD 2560
#define INLINE static inline __attribute__((always_inline))

/* Adds the step whose positions are byte `byte` of every word. */
INLINE __m256 step(__m256 sum, __m256i words, int byte, const __m256 *table, const float *values,
                   int width) {
    const __m256i positions = _mm256_srli_epi32(words, 8 * byte);
    __m256 x = _mm256_permutevar8x32_ps(table[0], positions);
    if (width >= 16) {
        const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - 8 * byte));
        x = _mm256_blendv_ps(x, _mm256_permutevar8x32_ps(table[1], positions), bit3);
        if (width >= 32) {
            const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(words, 27 - 8 * byte));
            const __m256 upper =
                _mm256_blendv_ps(_mm256_permutevar8x32_ps(table[2], positions),
                                 _mm256_permutevar8x32_ps(table[3], positions), bit3);
            x = _mm256_blendv_ps(x, upper, bit4);
        }
    }
    return _mm256_fmadd_ps(x, _mm256_load_ps(values), sum);
}

INLINE void load_table(__m256 *table, const float *x, int width) {
    for (int i = 0; i < width / LANES; i++) table[i] = _mm256_loadu_ps(x + i * LANES);
}

INLINE void prefetch(const unsigned char *quad) {
    for (int line = 0; line < 20 * LANES; line += 64)
        _mm_prefetch((const char *)quad + AHEAD + line, _MM_HINT_T0);
}

/* Writes the sums of places [place, place + 8), as far as there are rows. */
INLINE void store(const gsp_plan *plan, float *y, int64_t place, __m256 sum) {
    const int64_t left = plan->matrix.rows - place;
    if (plan->row_map == NULL && left >= LANES) {
        _mm256_storeu_ps(y + place, sum);
        return;
    }
    float lanes[LANES];
    _mm256_storeu_ps(lanes, sum);
    for (int64_t i = 0; i < (left < LANES ? left : LANES); i++)
        y[plan->row_map == NULL ? place + i : plan->row_map[place + i]] = lanes[i];
}

INLINE void quads(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last,
                  int width) {
    const float *x = product->x;
    const uint64_t *start = plan->start;
    for (int64_t unit = first; unit < last; unit++) {
        const uint32_t *tables = plan->tables + start[unit];
        const unsigned char *quad = plan->packed + start[unit] * (20 * LANES);
        __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                         _mm256_setzero_ps()};
        for (uint64_t left = start[unit + 1] - start[unit]; left > 0; left--) {
            __m256 table[4];
            load_table(table, x + *tables++, width);
            prefetch(quad);
            const __m256i words = _mm256_load_si256((const __m256i *)quad);
            const float *values = (const float *)(quad + 4 * LANES);
            sum[0] = step(sum[0], words, 0, table, values, width);
            sum[1] = step(sum[1], words, 1, table, values + LANES, width);
            sum[2] = step(sum[2], words, 2, table, values + 2 * LANES, width);
            sum[3] = step(sum[3], words, 3, table, values + 3 * LANES, width);
            quad += 20 * LANES;
        }
        for (int i = 0; i < 4; i++) store(plan, product->y, (4 * unit + i) * LANES, sum[i]);
    }
}

INLINE void strips(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last,
                   int width) {
    const float *x = product->x;
    const uint64_t *start = plan->start;
    for (int64_t unit = first; unit < last; unit++) {
        const uint32_t *tables = plan->tables + 4 * start[unit];
        const unsigned char *quad = plan->packed + start[unit] * (20 * LANES);
        __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                         _mm256_setzero_ps()};
        for (uint64_t left = start[unit + 1] - start[unit]; left > 0; left--) {
            __m256 table[4];
            prefetch(quad);
            const __m256i words = _mm256_load_si256((const __m256i *)quad);
            const float *values = (const float *)(quad + 4 * LANES);
            load_table(table, x + tables[0], width);
            sum[0] = step(sum[0], words, 0, table, values, width);
            load_table(table, x + tables[1], width);
            sum[1] = step(sum[1], words, 1, table, values + LANES, width);
            load_table(table, x + tables[2], width);
            sum[2] = step(sum[2], words, 2, table, values + 2 * LANES, width);
            load_table(table, x + tables[3], width);
            sum[3] = step(sum[3], words, 3, table, values + 3 * LANES, width);
            tables += 4;
            quad += 20 * LANES;
        }
        store(plan, product->y, unit * LANES,
              _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    }
}

#define TABLES(name, loop, width)                                                                  \
    void name(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last) {    \
        loop(plan, product, first, last, width);                                                   \
    }

TABLES(gsp_f32_spmv_quads8__avx2, quads, 8)
TABLES(gsp_f32_spmv_quads16__avx2, quads, 16)
TABLES(gsp_f32_spmv_quads32__avx2, quads, 32)
TABLES(gsp_f32_spmv_strips8__avx2, strips, 8)
TABLES(gsp_f32_spmv_strips16__avx2, strips, 16)
TABLES(gsp_f32_spmv_strips32__avx2, strips, 32)

/* Sums the runs of one part: values[run][LANES] times x[run ..][0 .. LANES), or times x[run] in every lane. */
INLINE __m256 part(const float *x, const uint32_t *runs, int64_t count, const float *values,
                   bool wide) {
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    int64_t run = 0;
    for (; run + 4 <= count; run += 4)
        for (int i = 0; i < 4; i++) {
            const float *from = x + runs[run + i];
            const __m256 factor = wide ? _mm256_loadu_ps(from) : _mm256_set1_ps(*from);
            sum[i] = _mm256_fmadd_ps(factor, _mm256_load_ps(values + (run + i) * LANES), sum[i]);
        }
    for (; run < count; run++) {
        const float *from = x + runs[run];
        const __m256 factor = wide ? _mm256_loadu_ps(from) : _mm256_set1_ps(*from);
        sum[0] = _mm256_fmadd_ps(factor, _mm256_load_ps(values + run * LANES), sum[0]);
    }
    return _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
}

INLINE float reduce(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Blocks at least as wide as half a register: a row's runs add up in the lanes, which are summed at its end. */
void gsp_f32_spmv_wide__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                             int64_t last) {
    const int64_t height = plan->matrix.pattern.block_rows;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * height * LANES;
        for (int64_t row = 0; row < gspi_min(height, plan->matrix.rows - unit * height); row++) {
            const __m256 sum =
                part(product->x, plan->tables + begin, count, values + row * count * LANES, true);
            ((float *)product->y)[unit * height + row] = reduce(sum);
        }
    }
}

/* Blocks at least as tall as half a register: one entry of x for all lanes, each of which is a row. */
void gsp_f32_spmv_tall__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                             int64_t last) {
    const int64_t height = plan->matrix.pattern.block_rows,
                  parts = gspi_parts(&plan->matrix.pattern, GSPI_TALL, LANES);
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * parts * LANES;
        const int64_t rows = gspi_min(height, plan->matrix.rows - unit * height);
        float *y = (float *)product->y + unit * height;
        for (int64_t place = 0; place * LANES < rows; place++) {
            const int64_t left = rows - place * LANES;
            const __m256 sum = part(product->x, plan->tables + begin, count,
                                    values + place * count * LANES, false);
            float lanes[LANES];
            _mm256_storeu_ps(lanes, sum);
            for (int64_t i = 0; i < gspi_min(left, LANES); i++) y[place * LANES + i] = lanes[i];
        }
    }
}
#endif
