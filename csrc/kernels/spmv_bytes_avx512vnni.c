/* SpMV of int8 values with x in 8 bits, with AVX-512 VBMI and VNNI, for one to eight samples at once: register tables
 * with four slots of each row side by side.
 *
 *     for every two strips of 16 rows:               sum[16] = 0, for each, 32-bit integers
 *         for every step:                            table = q[tables[step] ..][0 .. 128)
 *             for lane in 0 .. 15, slot in 0 .. 3:   sum[lane] += value[step][lane][slot]
 *                                                                 * table[position[step][lane][slot]]
 *         y[rows of the strip] = activation(float(sum - zero * weights) * scale * scales + bias + residual)
 *
 * q [samples][cols] from 0 to 255, y [rows] with any distances; weights [rows] are sums of the rows' values. Two
 * strips share their tables; a step holds 2 x 64 positions and 2 x 64 values, 2 bytes a slot.
 *
 * VPERMI2B looks 64 positions up in 128 entries of x, two registers, and reads no more than the low seven bits of
 * each: 2 a cycle on AMD Zen 5, 1/2 on Intel. VPDPBUSD adds the products of the four slots of a lane to its sum: 2 a
 * cycle, 1 to 2 on Intel. It does so in 32 bits, without the saturation at 16 bits of VPMADDUBSW, and no sum can
 * overflow: a row has at most 65,536 elements here, and 65,536 * 255 * 128 < 2^31. */
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "gsp_vector.h"

#include "spmv_narrow.h"

#define ITEM 256

GSPI_VECTOR void bytes(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                       int64_t first, int64_t last, int samples) {
    const int64_t apart = product->x_sample;
    const uint8_t *x = (const uint8_t *)product->x + sample * apart;
    for (int64_t unit = first; unit < last; unit++) {
        const uint32_t *tables = plan->tables + plan->start[unit];
        const unsigned char *item = plan->packed + plan->start[unit] * ITEM;
        __m512i sum[NARROW_AT_ONCE][2];
        __m512 total[NARROW_AT_ONCE * 2];
        for (int s = 0; s < samples; s++) sum[s][0] = sum[s][1] = _mm512_setzero_si512();
        for (uint64_t left = plan->start[unit + 1] - plan->start[unit]; left > 0; left--) {
            const uint8_t *table = x + *tables++;
            prefetch(item, ITEM);
            __m512i positions[2], values[2];
            for (int i = 0; i < 2; i++) {
                positions[i] = _mm512_load_si512(item + 64 * i);
                values[i] = _mm512_load_si512(item + 128 + 64 * i);
            }
            for (int s = 0; s < samples; s++, table += apart) {
                __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
                __asm__("" : "+v"(low), "+v"(high)); /* or GCC loads them for each permute */
                for (int i = 0; i < 2; i++) {
                    const __m512i here = _mm512_permutex2var_epi8(low, positions[i], high);
                    sum[s][i] = _mm512_dpbusd_epi32(sum[s][i], here, values[i]);
                    __asm__("" : "+v"(sum[s][i])); /* or GCC keeps sums in memory */
                }
            }
            item += ITEM;
        }
        for (int s = 0; s < samples; s++) {
            const __m512i zero = _mm512_set1_epi32((int)product->quanta[sample + s].zero);
            for (int i = 0; i < 2; i++) {
                const __m512i weights = _mm512_load_si512(plan->weights + (2 * unit + i) * V_LANES);
                total[2 * s + i] = _mm512_cvtepi32_ps(
                    _mm512_sub_epi32(sum[s][i], _mm512_mullo_epi32(zero, weights)));
            }
        }
        narrow_finish_unit(plan, product, sample, samples, unit, 2, total);
    }
}

#define BYTES                                                                                      \
    NARROW_CASE(1, bytes)                                                                          \
    NARROW_CASE(2, bytes)                                                                          \
    NARROW_CASE(3, bytes)                                                                          \
    NARROW_CASE(4, bytes)                                                                          \
    NARROW_CASE(5, bytes) NARROW_CASE(6, bytes) NARROW_CASE(7, bytes) NARROW_CASE(8, bytes)

NARROW_KERNEL(gsp_i8_spmv_bytes128__avx512vnni, NARROW_AT_ONCE, BYTES)

gspi_quantum gspi_to_bytes__avx512vnni(const float *x, int64_t cols, unsigned char *to) {
    const gspi_quantum quantum = narrow_measure(x, cols);
    for (int64_t col = 0; col < cols; col += V_LANES) {
        const gspi_v_mask some = v_mask(cols - col);
        const gspi_v steps = narrow_quantize(v_load_some(x + col, some), &quantum);
        _mm512_mask_cvtepi32_storeu_epi8(to + col, some, _mm512_cvtps_epi32(steps));
    }
    return quantum;
}
#endif
