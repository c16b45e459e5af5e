/* SpMV in float32 with AVX-512, for one to five samples at once: register tables, a gather where tables would be
 * mostly padding, and runs of blocks.
 *
 *     for every strip of 16 rows:                    sum[16] = 0
 *         for every step of the strip:               table = x[tables[step] ..][0 .. width)
 *             for lane in 0 .. 15:                   sum[lane] += value[step][lane] * table[position[step][lane]]
 *         y[rows of the strip] = sum
 *
 * A step is one nonzero of each row, all from one window of x; rows that have none there hold a zero. x
 * [samples][cols], y [rows] with any distances; the plan owns the steps, packed in quads of four: 16 words with a
 * byte of position for each step, then 4 x 16 floats. The four steps belong to four neighbouring strips and share a
 * table, or they follow one another in one strip, each with its table. Several samples have tables and sums of their
 * own and share what a step holds. Nothing branches on the number of nonzeros inside: there is one loop per unit.
 *
 * VPERMI2PS looks 16 positions up in two registers and reads no more than the low five bits of each, so that the
 * bytes of a word become positions by a shift: 1 a cycle on Intel, 2 on AMD Zen 5. Width 64 takes two of them and a
 * mask from bit 5. VFMADD: 2 a cycle. Loads: 2 a cycle; 80 bytes a step, so that from L2 and beyond, bytes set the
 * pace of one sample, and permutes that of several. The register file as scratchpad follows from the banks of
 * arXiv 2112.10898. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "spmv_tables.h"

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
/* Calls a loop compiled for each number of samples. */
#define FOR_SAMPLES(count, call)                                                                   \
    switch (count) {                                                                               \
    case 1: call(1); break;                                                                        \
    case 2: call(2); break;                                                                        \
    case 3: call(3); break;                                                                        \
    case 4: call(4); break;                                                                        \
    default: call(5); break;                                                                       \
    }

/* ----------------------------------------------------------------- tables */

/* The entries of one table, `width` floats from x on, at 16 positions; `upper`: bit 5 of each. */
INLINE __m512 look_up(const float *x, __m512i positions, __mmask16 upper, int width) {
    const __m512 low =
        _mm512_permutex2var_ps(_mm512_loadu_ps(x), positions, _mm512_loadu_ps(x + LANES));
    if (width == 32) return low;
    return _mm512_mask_mov_ps(low, upper,
                              _mm512_permutex2var_ps(_mm512_loadu_ps(x + 2 * LANES), positions,
                                                     _mm512_loadu_ps(x + 3 * LANES)));
}

INLINE void across(const gspi_product *product, const uint32_t *tables, const unsigned char *quad,
                   uint64_t count, int width, int samples, __m512 sum[][4]) {
    for (const float *x = product->x; count > 0; count--, quad += QUAD) {
        const float *table = x + *tables++, *values = (const float *)(quad + 4 * LANES);
        __m512i positions[4];
        __mmask16 upper[4];
        prefetch(quad, QUAD);
        split(quad, positions, upper);
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++)
                sum[s][i] = _mm512_fmadd_ps(
                    look_up(table + s * product->x_sample, positions[i], upper[i], width),
                    _mm512_load_ps(values + i * LANES), sum[s][i]);
    }
}

INLINE void along(const gspi_product *product, const uint32_t *tables, const unsigned char *quad,
                  uint64_t count, int width, int samples, float sums[][LANES]) {
    const int chains = samples == 1 ? 4 : 2;
    __m512 sum[GSPI_MAX_SAMPLES][4];
    for (int s = 0; s < samples; s++)
        for (int i = 0; i < chains; i++)
            sum[s][i] = i == 0 ? _mm512_loadu_ps(sums[s]) : _mm512_setzero_ps();
    for (const float *x = product->x; count > 0; count--, quad += QUAD, tables += 4) {
        const float *values = (const float *)(quad + 4 * LANES);
        __m512i positions[4];
        __mmask16 upper[4];
        prefetch(quad, QUAD);
        split(quad, positions, upper);
        for (int i = 0; i < 4; i++)
            for (int s = 0; s < samples; s++)
                sum[s][i % chains] = _mm512_fmadd_ps(
                    look_up(x + tables[i] + s * product->x_sample, positions[i], upper[i], width),
                    _mm512_load_ps(values + i * LANES), sum[s][i % chains]);
    }
    for (int s = 0; s < samples; s++) {
        __m512 all = _mm512_add_ps(sum[s][0], sum[s][1]);
        if (chains == 4) all = _mm512_add_ps(all, _mm512_add_ps(sum[s][2], sum[s][3]));
        _mm512_storeu_ps(sums[s], all);
    }
}

/* A kernel, and its quads along. */
#define TABLES(name, width)                                                                        \
    static void along_##width(const gspi_product *product, const uint32_t *tables,                 \
                              const unsigned char *quad, uint64_t count, int samples,              \
                              float sums[][LANES]) {                                               \
        FOR_SAMPLES(samples, ALONG_##width)                                                        \
    }                                                                                              \
    void name(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last) {    \
        FOR_SAMPLES(product->samples, TABLES_##width)                                              \
    }
#define ALONG_32(samples) along(product, tables, quad, count, 32, samples, sums)
#define ALONG_64(samples) along(product, tables, quad, count, 64, samples, sums)
#define TABLES_32(samples) add_units(plan, product, first, last, 32, samples, across, along_32)
#define TABLES_64(samples) add_units(plan, product, first, last, 64, samples, across, along_64)

TABLES(gsp_f32_spmv_tables32__avx512, 32)
TABLES(gsp_f32_spmv_tables64__avx512, 64)

/* ----------------------------------------------------------------- gather */

void gsp_f32_spmv_gather__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                 int64_t last) {
    const uint64_t *start = plan->start;
    for (int64_t unit = first; unit < last; unit++) {
        for (int64_t sample = 0; sample < product->samples; sample++) {
            const float *x = (const float *)product->x + sample * product->x_sample;
            const unsigned char *quad = plan->packed + start[unit] * (32 * LANES);
            __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                             _mm512_setzero_ps()};
            for (uint64_t left = start[unit + 1] - start[unit]; left > 0; left--) {
                for (int i = 0; i < 4; i++) {
                    const __m512i cols = _mm512_load_si512(quad + 4 * LANES * i);
                    const __m512 values = _mm512_load_ps(quad + 16 * LANES + 4 * LANES * i);
                    sum[i] = _mm512_fmadd_ps(_mm512_i32gather_ps(cols, x, 4), values, sum[i]);
                }
                quad += 32 * LANES;
            }
            store(plan, product, sample, unit * LANES,
                  _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
        }
    }
}

/* ----------------------------------------------------------------- blocks */

/* What a run's values are multiplied with: x from the run on, or one entry of x in every lane. */
INLINE __m512 factor(const float *x, bool wide) {
    return wide ? _mm512_loadu_ps(x) : _mm512_set1_ps(*x);
}

/* Sums the runs of one part, values[run][LANES] times x[run ..], for each sample. */
INLINE void part(const gspi_product *product, const uint32_t *runs, int64_t count,
                 const float *values, bool wide, int samples, __m512 *total) {
    const float *x = product->x;
    const int sums = samples == 1 ? 4 : samples == 2 ? 2 : 1;
    __m512 sum[GSPI_MAX_SAMPLES][4];
    for (int s = 0; s < samples; s++)
        for (int i = 0; i < 4; i++) sum[s][i] = _mm512_setzero_ps();
    int64_t run = 0;
    for (; run + sums <= count; run += sums)
        for (int i = 0; i < sums; i++) {
            const __m512 value = _mm512_load_ps(values + (run + i) * LANES);
            if (wide)
                _mm_prefetch((const char *)(values + (run + i) * LANES) + SPMV_AHEAD, _MM_HINT_T0);
            for (int s = 0; s < samples; s++)
                sum[s][i] = _mm512_fmadd_ps(factor(x + runs[run + i] + s * product->x_sample, wide),
                                            value, sum[s][i]);
        }
    /* What is left, at most three runs: each to a sum of its own, so that none waits for another. */
    for (int i = 0; i < sums - 1; i++, run++) {
        if (run >= count) break;
        const __m512 value = _mm512_load_ps(values + run * LANES);
        if (wide) _mm_prefetch((const char *)(values + run * LANES) + SPMV_AHEAD, _MM_HINT_T0);
        for (int s = 0; s < samples; s++)
            sum[s][i] = _mm512_fmadd_ps(factor(x + runs[run] + s * product->x_sample, wide), value,
                                        sum[s][i]);
    }
    for (int s = 0; s < samples; s++)
        total[s] =
            _mm512_add_ps(_mm512_add_ps(sum[s][0], sum[s][1]), _mm512_add_ps(sum[s][2], sum[s][3]));
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
            __m512 sum[GSPI_MAX_SAMPLES];
            part(product, plan->tables + begin, count, values + r * count * LANES, true, samples,
                 sum);
            float *y = (float *)product->y + (unit * height + r) * product->y_row;
            for (int s = 0; s < samples; s++)
                y[s * product->y_sample] = _mm512_reduce_add_ps(sum[s]);
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
            __m512 sum[GSPI_MAX_SAMPLES];
            part(product, plan->tables + begin, count, values + place * count * LANES, false,
                 samples, sum);
            float *y = (float *)product->y + (unit * height + place * LANES) * product->y_row;
            for (int s = 0; s < samples; s++, y += product->y_sample) {
                if (product->y_row == 1) {
                    _mm512_mask_storeu_ps(y, (__mmask16)((1u << left) - 1), sum[s]);
                    continue;
                }
                float lanes[LANES];
                _mm512_storeu_ps(lanes, sum[s]);
                for (int64_t i = 0; i < left; i++) y[i * product->y_row] = lanes[i];
            }
        }
    }
}

#define WIDE(samples) wide(plan, product, first, last, samples)
#define TALL(samples) tall(plan, product, first, last, samples)

void gsp_f32_spmv_wide__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    FOR_SAMPLES(product->samples, WIDE)
}

void gsp_f32_spmv_tall__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    FOR_SAMPLES(product->samples, TALL)
}
#endif
