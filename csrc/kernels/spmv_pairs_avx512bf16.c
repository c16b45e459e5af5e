/* SpMV in bfloat16 with AVX-512 VBMI and BF16, for one to eight samples at once: register tables with two slots of each
 * row side by side.
 *
 *     for every two strips of 16 rows:               sum[16] = 0, for each
 *         for every step:                            table = x[tables[step] ..][0 .. 64)
 *             for lane in 0 .. 15, slot in 0, 1:     sum[lane] += value[step][lane][slot]
 *                                                                 * table[position[step][lane][slot]]
 *         y[rows of the strip] = bfloat16(activation(sum + bias + residual))
 *
 * x [samples][cols], y [rows] with any distances. Two strips share their tables, so that their positions are the two
 * bytes of 32 lanes of 16 bits; with 2 x 32 values, a slot takes 3 bytes.
 *
 * VPERMI2W looks 32 positions up in 64 entries of x, two registers, and reads no more than the low six bits of each:
 * 2 a cycle on AMD Zen 5, 1/2 on Intel, where two loads and bytes from L2 leave it that long. VDPBF16PS adds the
 * products of both slots of a lane to its sum: 2 a cycle on Zen 5, 1 or 1/2 on Intel. It takes denormal inputs for 0
 * and gives 0 for denormal results, and rounds to float32 to the nearest, whatever MXCSR says. Bytes from L2 or L3 set
 * the pace of one sample; look-ups that of several. */
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#include "gsp_vector.h"

#include "spmv_narrow.h"

#define ITEM 192

GSPI_VECTOR void add_item(const uint16_t *table, int64_t apart, const unsigned char *item,
                          int samples, __m512 (*sum)[4], int at) {
    const __m512bh values[2] = {(__m512bh)_mm512_load_si512(item + 64),
                                (__m512bh)_mm512_load_si512(item + 128)};
    __m512i positions[2] = {_mm512_load_si512(item)};
    __asm__("" : "+v"(positions[0])); /* or GCC loads them again for the shift */
    positions[1] = _mm512_srli_epi16(positions[0], 8);
    prefetch(item, ITEM);
    for (int s = 0; s < samples; s++) {
        const uint16_t *x = table + s * apart;
        __m512i low = _mm512_loadu_si512(x), high = _mm512_loadu_si512(x + 32);
        __asm__("" : "+v"(low), "+v"(high)); /* or GCC loads them for each permute */
        for (int i = 0; i < 2; i++) {
            const __m512i here = _mm512_permutex2var_epi16(low, positions[i], high);
            sum[s][at + i] = _mm512_dpbf16_ps(sum[s][at + i], (__m512bh)here, values[i]);
        }
    }
}

GSPI_VECTOR void pairs(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                       int64_t first, int64_t last, int samples) {
    const int64_t apart = product->x_sample;
    const uint16_t *x = (const uint16_t *)product->x + sample * apart;
    for (int64_t unit = first; unit < last; unit++) {
        uint64_t left = plan->start[unit + 1] - plan->start[unit];
        const uint32_t *tables = plan->tables + plan->start[unit];
        const unsigned char *item = plan->packed + plan->start[unit] * ITEM;
        __m512 sum[NARROW_AT_ONCE][4], total[NARROW_AT_ONCE * 2];
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++) sum[s][i] = _mm512_setzero_ps();
        /* Several samples hide among themselves how long a sum takes from one step to the next. */
        for (; samples == 1 && left > 1; left -= 2, tables += 2, item += 2 * ITEM) {
            add_item(x + tables[0], apart, item, samples, sum, 0);
            add_item(x + tables[1], apart, item + ITEM, samples, sum, 2);
        }
        for (; left > 0; left--, item += ITEM)
            add_item(x + *tables++, apart, item, samples, sum, 0);
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 2; i++)
                total[2 * s + i] =
                    samples == 1 ? _mm512_add_ps(sum[s][i], sum[s][2 + i]) : sum[s][i];
        narrow_finish_unit(plan, product, sample, samples, unit, 2, total);
    }
}

#define PAIRS                                                                                      \
    NARROW_CASE(1, pairs)                                                                          \
    NARROW_CASE(2, pairs)                                                                          \
    NARROW_CASE(3, pairs)                                                                          \
    NARROW_CASE(4, pairs)                                                                          \
    NARROW_CASE(5, pairs) NARROW_CASE(6, pairs) NARROW_CASE(7, pairs) NARROW_CASE(8, pairs)

NARROW_KERNEL(gsp_bf16_spmv_pairs64__avx512bf16, NARROW_AT_ONCE, PAIRS)
#endif
