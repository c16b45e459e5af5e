/* SpMV in float32 with AVX-512: register tables, a gather where tables would be mostly padding, and runs of blocks.
 *
 *     for every strip of 16 rows:                    sum[16] = 0
 *         for every step of the strip:               table = x[tables[step] ..][0 .. width)
 *             for lane in 0 .. 15:                   sum[lane] += value[step][lane] * table[position[step][lane]]
 *         y[rows of the strip] = sum
 *
 * A step is one nonzero of each row, all from one table of x; rows that have none there hold a zero. x [cols],
 * y [rows]; the plan owns the steps, packed in quads of four: 16 words with a byte of position for each step, then
 * 4 x 16 floats. GSPI_QUADS: the four steps belong to four neighbouring strips and share a table.
 * GSPI_STRIPS: they follow one another in one strip, each with its table, so that strips of unlike rows pad less.
 * Nothing branches on the number of nonzeros inside: there is one loop per strip.
 *
 * VPERMI2PS looks 16 positions up in two registers and reads no more than the low five bits of each, so that the
 * bytes of a word become positions by a shift: 1 a cycle on Intel, 2 on AMD Zen 5. Width 64 takes two of them and a
 * mask from bit 5. VFMADD: 2 a cycle. Loads: 2 a cycle; 80 bytes a step, so that from L2 the loads set the pace.
 * The register file as scratchpad follows from the banks of arXiv 2112.10898. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "gsp_kernels.h"

#define LANES 16
/* Quads come from L2 in most layers; asking for them this far ahead gains 10 to 20 % on Zen 5. */
#define AHEAD 2560
#define INLINE static inline __attribute__((always_inline))

/* Adds the step whose positions are the low bytes of `positions`. */
INLINE __m512 step(__m512 sum, __m512i positions, const __m512 *table, const float *values,
                   int width) {
    __m512 x = _mm512_permutex2var_ps(table[0], positions, table[1]);
    if (width == 64) {
        const __mmask16 upper = _mm512_test_epi32_mask(positions, _mm512_set1_epi32(32));
        x = _mm512_mask_mov_ps(x, upper, _mm512_permutex2var_ps(table[2], positions, table[3]));
    }
    return _mm512_fmadd_ps(x, _mm512_load_ps(values), sum);
}

INLINE void load_table(__m512 *table, const float *x, int width) {
    for (int i = 0; i < width / LANES; i++) table[i] = _mm512_loadu_ps(x + i * LANES);
}

INLINE void prefetch(const unsigned char *quad) {
    for (int line = 0; line < 20 * LANES; line += 64)
        _mm_prefetch((const char *)quad + AHEAD + line, _MM_HINT_T0);
}

/* Writes the sums of places [place, place + 16), as far as there are rows. */
INLINE void store(const gsp_plan *plan, float *y, int64_t place, __m512 sum) {
    const int64_t left = plan->matrix.rows - place;
    if (left <= 0) return;
    const __mmask16 here = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
    if (plan->row_map == NULL) {
        _mm512_mask_storeu_ps(y + place, here, sum);
    } else {
        const __m512i rows = _mm512_maskz_loadu_epi32(here, plan->row_map + place);
        _mm512_mask_i32scatter_ps(y, here, rows, sum, 4);
    }
}

INLINE void quads(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last,
                  int width) {
    const float *x = product->x;
    const uint64_t *start = plan->start;
    for (int64_t unit = first; unit < last; unit++) {
        const uint32_t *tables = plan->tables + start[unit];
        const unsigned char *quad = plan->packed + start[unit] * (20 * LANES);
        __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                         _mm512_setzero_ps()};
        for (uint64_t left = start[unit + 1] - start[unit]; left > 0; left--) {
            __m512 table[4];
            load_table(table, x + *tables++, width);
            prefetch(quad);
            const __m512i positions = _mm512_load_si512(quad);
            const float *values = (const float *)(quad + 4 * LANES);
            sum[0] = step(sum[0], positions, table, values, width);
            sum[1] = step(sum[1], _mm512_srli_epi32(positions, 8), table, values + LANES, width);
            sum[2] =
                step(sum[2], _mm512_srli_epi32(positions, 16), table, values + 2 * LANES, width);
            sum[3] =
                step(sum[3], _mm512_srli_epi32(positions, 24), table, values + 3 * LANES, width);
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
        __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                         _mm512_setzero_ps()};
        for (uint64_t left = start[unit + 1] - start[unit]; left > 0; left--) {
            __m512 table[4];
            prefetch(quad);
            const __m512i positions = _mm512_load_si512(quad);
            const float *values = (const float *)(quad + 4 * LANES);
            load_table(table, x + tables[0], width);
            sum[0] = step(sum[0], positions, table, values, width);
            load_table(table, x + tables[1], width);
            sum[1] = step(sum[1], _mm512_srli_epi32(positions, 8), table, values + LANES, width);
            load_table(table, x + tables[2], width);
            sum[2] =
                step(sum[2], _mm512_srli_epi32(positions, 16), table, values + 2 * LANES, width);
            load_table(table, x + tables[3], width);
            sum[3] =
                step(sum[3], _mm512_srli_epi32(positions, 24), table, values + 3 * LANES, width);
            tables += 4;
            quad += 20 * LANES;
        }
        store(plan, product->y, unit * LANES,
              _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
    }
}

#define TABLES(name, loop, width)                                                                  \
    void name(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last) {    \
        loop(plan, product, first, last, width);                                                   \
    }

TABLES(gsp_f32_spmv_quads32__avx512, quads, 32)
TABLES(gsp_f32_spmv_quads64__avx512, quads, 64)
TABLES(gsp_f32_spmv_strips32__avx512, strips, 32)
TABLES(gsp_f32_spmv_strips64__avx512, strips, 64)

void gsp_f32_spmv_gather__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                 int64_t last) {
    const uint64_t *start = plan->start;
    for (int64_t unit = first; unit < last; unit++) {
        const unsigned char *quad = plan->packed + start[unit] * (32 * LANES);
        __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                         _mm512_setzero_ps()};
        for (uint64_t left = start[unit + 1] - start[unit]; left > 0; left--) {
            for (int i = 0; i < 4; i++) {
                const __m512i cols = _mm512_load_si512(quad + 4 * LANES * i);
                const __m512 values = _mm512_load_ps(quad + 16 * LANES + 4 * LANES * i);
                sum[i] = _mm512_fmadd_ps(_mm512_i32gather_ps(cols, product->x, 4), values, sum[i]);
            }
            quad += 32 * LANES;
        }
        store(plan, product->y, unit * LANES,
              _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
    }
}
/* Sums the runs of one part: values[run][LANES] times x[run ..][0 .. LANES), or times x[run] in every lane. */
INLINE __m512 part(const float *x, const uint32_t *runs, int64_t count, const float *values,
                   bool wide) {
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    int64_t run = 0;
    for (; run + 4 <= count; run += 4)
        for (int i = 0; i < 4; i++) {
            const float *from = x + runs[run + i];
            const __m512 factor = wide ? _mm512_loadu_ps(from) : _mm512_set1_ps(*from);
            sum[i] = _mm512_fmadd_ps(factor, _mm512_load_ps(values + (run + i) * LANES), sum[i]);
        }
    for (; run < count; run++) {
        const float *from = x + runs[run];
        const __m512 factor = wide ? _mm512_loadu_ps(from) : _mm512_set1_ps(*from);
        sum[0] = _mm512_fmadd_ps(factor, _mm512_load_ps(values + run * LANES), sum[0]);
    }
    return _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
}

/* Blocks at least as wide as half a register: a row's runs add up in the lanes, which are summed at its end. */
void gsp_f32_spmv_wide__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    const int64_t height = plan->matrix.pattern.block_rows;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * height * LANES;
        for (int64_t row = 0; row < gspi_min(height, plan->matrix.rows - unit * height); row++) {
            const __m512 sum =
                part(product->x, plan->tables + begin, count, values + row * count * LANES, true);
            ((float *)product->y)[unit * height + row] = _mm512_reduce_add_ps(sum);
        }
    }
}

/* Blocks at least as tall as half a register: one entry of x for all lanes, each of which is a row. */
void gsp_f32_spmv_tall__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
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
            const __m512 sum = part(product->x, plan->tables + begin, count,
                                    values + place * count * LANES, false);
            const __mmask16 here = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
            _mm512_mask_storeu_ps(y + place * LANES, here, sum);
        }
    }
}
#endif
