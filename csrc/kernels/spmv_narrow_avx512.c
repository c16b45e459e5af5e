/* SpMV of bfloat16 and int8 values by tables of floats, with AVX-512 F, BW, DQ and VL alone: spmv_floats.h. VPERMI2PS
 * looks 16 positions up in 32 floats, 1 a cycle on Intel, 2 on AMD Zen 5. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "gsp_vector.h"

typedef __m512i gspi_words;

GSPI_VECTOR gspi_words load_words(const unsigned char *item) {
    gspi_words words = _mm512_load_si512(item);
    __asm__("" : "+v"(words)); /* or GCC loads them once for every shift */
    return words;
}

GSPI_VECTOR gspi_v look_up(const float *x, gspi_words words, int byte) {
    return _mm512_permutex2var_ps(v_loadu(x), _mm512_srli_epi32(words, 8 * (unsigned)byte),
                                  v_loadu(x + V_LANES));
}

GSPI_VECTOR gspi_v widen(const unsigned char *values, int bytes) {
    if (bytes == 2)
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(const void *)values)), 16));
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(const void *)values)));
}

#include "spmv_floats.h"

#define FLOATS_2                                                                                   \
    NARROW_CASE(1, floats, 2)                                                                      \
    NARROW_CASE(2, floats, 2)                                                                      \
    NARROW_CASE(3, floats, 2) NARROW_CASE(4, floats, 2) NARROW_CASE(5, floats, 2)
#define FLOATS_1                                                                                   \
    NARROW_CASE(1, floats, 1)                                                                      \
    NARROW_CASE(2, floats, 1)                                                                      \
    NARROW_CASE(3, floats, 1) NARROW_CASE(4, floats, 1) NARROW_CASE(5, floats, 1)

NARROW_KERNEL(gsp_bf16_spmv_floats32__avx512, 5, FLOATS_2)
NARROW_KERNEL(gsp_i8_spmv_floats32__avx512, 5, FLOATS_1)

gspi_quantum gspi_to_floats__avx512(const float *x, int64_t cols, float *to) {
    return to_floats(x, cols, to);
}
#endif
