/* SpMV of bfloat16 and int8 values by tables of floats, with AVX2: spmv_floats.h. VPERMPS looks 8 positions up in 8
 * floats; a table of 16 takes two and a blend by bit 3, moved to the sign. */
#if defined(__AVX2__) && defined(__FMA__)
#include "gsp_vector.h"

typedef __m256i gspi_words;

GSPI_VECTOR gspi_words load_words(const unsigned char *item) {
    return _mm256_load_si256((const __m256i *)(const void *)item);
}

GSPI_VECTOR gspi_v look_up(const float *x, gspi_words words, int byte) {
    const __m256i positions = _mm256_srli_epi32(words, 8 * byte);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(v_loadu(x), positions),
                            _mm256_permutevar8x32_ps(v_loadu(x + V_LANES), positions),
                            _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - 8 * byte)));
}

GSPI_VECTOR gspi_v widen(const unsigned char *values, int bytes) {
    if (bytes == 2)
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i *)(const void *)values)), 16));
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)values)));
}

#include "spmv_floats.h"

#define FLOATS_2 NARROW_CASE(1, floats, 2) NARROW_CASE(2, floats, 2)
#define FLOATS_1 NARROW_CASE(1, floats, 1) NARROW_CASE(2, floats, 1)

NARROW_KERNEL(gsp_bf16_spmv_floats16__avx2, 2, FLOATS_2)
NARROW_KERNEL(gsp_i8_spmv_floats16__avx2, 2, FLOATS_1)

gspi_quantum gspi_to_floats__avx2(const float *x, int64_t cols, float *to) {
    return to_floats(x, cols, to);
}
#endif
