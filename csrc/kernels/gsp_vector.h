/* One register of floats, by the flags that a file is compiled with: what code that is the same for every
 * instruction set is written in. */
#ifndef GSP_VECTOR_H
#define GSP_VECTOR_H

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif
#include <stdint.h>

#define GSPI_VECTOR static inline __attribute__((always_inline))

#if defined(__AVX512F__)

#define V_LANES 16
typedef __m512 gspi_v;
typedef __mmask16 gspi_v_mask;

GSPI_VECTOR gspi_v v_set1(float a) { return _mm512_set1_ps(a); }
GSPI_VECTOR gspi_v v_load(const float *a) { return _mm512_load_ps(a); }
GSPI_VECTOR gspi_v v_loadu(const float *a) { return _mm512_loadu_ps(a); }
GSPI_VECTOR void v_store(float *a, gspi_v v) { _mm512_store_ps(a, v); }
GSPI_VECTOR void v_storeu(float *a, gspi_v v) { _mm512_storeu_ps(a, v); }
/* An aligned store past the caches, where there is one; other threads see it after v_stream_end. */
GSPI_VECTOR void v_stream(float *a, gspi_v v) { _mm512_stream_ps(a, v); }
GSPI_VECTOR void v_stream_end(void) { _mm_sfence(); }
GSPI_VECTOR gspi_v v_add(gspi_v a, gspi_v b) { return _mm512_add_ps(a, b); }
GSPI_VECTOR gspi_v v_sub(gspi_v a, gspi_v b) { return _mm512_sub_ps(a, b); }
GSPI_VECTOR gspi_v v_mul(gspi_v a, gspi_v b) { return _mm512_mul_ps(a, b); }
GSPI_VECTOR gspi_v v_div(gspi_v a, gspi_v b) { return _mm512_div_ps(a, b); }
/* a * b + c, a * b - c, c - a * b */
GSPI_VECTOR gspi_v v_fma(gspi_v a, gspi_v b, gspi_v c) { return _mm512_fmadd_ps(a, b, c); }
GSPI_VECTOR gspi_v v_fms(gspi_v a, gspi_v b, gspi_v c) { return _mm512_fmsub_ps(a, b, c); }
GSPI_VECTOR gspi_v v_fnma(gspi_v a, gspi_v b, gspi_v c) { return _mm512_fnmadd_ps(a, b, c); }
/* The second if either is NaN. */
GSPI_VECTOR gspi_v v_min(gspi_v a, gspi_v b) { return _mm512_min_ps(a, b); }
GSPI_VECTOR gspi_v v_max(gspi_v a, gspi_v b) { return _mm512_max_ps(a, b); }
GSPI_VECTOR gspi_v v_round(gspi_v a) { return _mm512_roundscale_ps(a, 8); }
GSPI_VECTOR gspi_v v_abs(gspi_v a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
/* The size of a with the sign of b. */
GSPI_VECTOR gspi_v v_sign(gspi_v a, gspi_v b) {
    return _mm512_or_ps(v_abs(a), _mm512_and_ps(_mm512_set1_ps(-0.0f), b));
}
/* a < b ? c : d; d where a or b is NaN. */
GSPI_VECTOR gspi_v v_less(gspi_v a, gspi_v b, gspi_v c, gspi_v d) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), d, c);
}
/* a * 2^n for whole n, rounded once. */
GSPI_VECTOR gspi_v v_scale(gspi_v a, gspi_v n) { return _mm512_scalef_ps(a, n); }

/* The first `count` lanes; all of them if there are more. */
GSPI_VECTOR gspi_v_mask v_mask(int64_t count) {
    return count >= V_LANES ? 0xffff : (gspi_v_mask)((1u << (count > 0 ? count : 0)) - 1);
}
GSPI_VECTOR gspi_v v_load_some(const float *a, gspi_v_mask some) {
    return _mm512_maskz_loadu_ps(some, a);
}
GSPI_VECTOR void v_store_some(float *a, gspi_v_mask some, gspi_v v) {
    _mm512_mask_storeu_ps(a, some, v);
}
/* Those lanes of bfloat16 numbers: made floats, 0 in others; and rounded to the nearest, ties to even, a NaN stays
 * one. */
GSPI_VECTOR gspi_v v_load_halves(const uint16_t *a, gspi_v_mask some) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, a));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
GSPI_VECTOR void v_store_halves(uint16_t *a, gspi_v_mask some, gspi_v v) {
    const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits,
                                   _mm512_set1_epi32(0x400000));
    _mm256_mask_storeu_epi16(a, some, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
/* The lanes whose bits are set. */
GSPI_VECTOR gspi_v_mask v_mask_of(uint32_t bits) { return (gspi_v_mask)bits; }
/* b in those lanes, a in the others. */
GSPI_VECTOR gspi_v v_blend(gspi_v a, gspi_v b, gspi_v_mask some) {
    return _mm512_mask_blend_ps(some, a, b);
}
/* Lanes 0, 2, 4, .. of a and b one after the other. */
GSPI_VECTOR gspi_v v_even(gspi_v a, gspi_v b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, even, b);
}

/* Lane 4 r + s: the sum of lanes 4 r .. 4 r + 3 of sum[s]. */
GSPI_VECTOR gspi_v v_sum_fours(const gspi_v sum[4]) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sum[0], sum[1]),
                                   _mm512_unpackhi_ps(sum[0], sum[1])),
                 b = _mm512_add_ps(_mm512_unpacklo_ps(sum[2], sum[3]),
                                   _mm512_unpackhi_ps(sum[2], sum[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

/* m[i][j] = m[j][i] */
GSPI_VECTOR void v_transpose(gspi_v m[V_LANES]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
            m[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            m[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(m[i], m[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(m[i], m[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(m[i + 8], m[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(m[i + 8], m[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        m[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        m[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

#elif defined(__AVX2__)

#define V_LANES 8
typedef __m256 gspi_v;
typedef __m256i gspi_v_mask;

GSPI_VECTOR gspi_v v_set1(float a) { return _mm256_set1_ps(a); }
GSPI_VECTOR gspi_v v_load(const float *a) { return _mm256_load_ps(a); }
GSPI_VECTOR gspi_v v_loadu(const float *a) { return _mm256_loadu_ps(a); }
GSPI_VECTOR void v_store(float *a, gspi_v v) { _mm256_store_ps(a, v); }
GSPI_VECTOR void v_storeu(float *a, gspi_v v) { _mm256_storeu_ps(a, v); }
GSPI_VECTOR void v_stream(float *a, gspi_v v) { _mm256_stream_ps(a, v); }
GSPI_VECTOR void v_stream_end(void) { _mm_sfence(); }
GSPI_VECTOR gspi_v v_add(gspi_v a, gspi_v b) { return _mm256_add_ps(a, b); }
GSPI_VECTOR gspi_v v_sub(gspi_v a, gspi_v b) { return _mm256_sub_ps(a, b); }
GSPI_VECTOR gspi_v v_mul(gspi_v a, gspi_v b) { return _mm256_mul_ps(a, b); }
GSPI_VECTOR gspi_v v_div(gspi_v a, gspi_v b) { return _mm256_div_ps(a, b); }
GSPI_VECTOR gspi_v v_fma(gspi_v a, gspi_v b, gspi_v c) { return _mm256_fmadd_ps(a, b, c); }
GSPI_VECTOR gspi_v v_fms(gspi_v a, gspi_v b, gspi_v c) { return _mm256_fmsub_ps(a, b, c); }
GSPI_VECTOR gspi_v v_fnma(gspi_v a, gspi_v b, gspi_v c) { return _mm256_fnmadd_ps(a, b, c); }
GSPI_VECTOR gspi_v v_min(gspi_v a, gspi_v b) { return _mm256_min_ps(a, b); }
GSPI_VECTOR gspi_v v_max(gspi_v a, gspi_v b) { return _mm256_max_ps(a, b); }
GSPI_VECTOR gspi_v v_round(gspi_v a) { return _mm256_round_ps(a, 8); }
GSPI_VECTOR gspi_v v_abs(gspi_v a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
GSPI_VECTOR gspi_v v_sign(gspi_v a, gspi_v b) {
    return _mm256_or_ps(v_abs(a), _mm256_and_ps(_mm256_set1_ps(-0.0f), b));
}
GSPI_VECTOR gspi_v v_less(gspi_v a, gspi_v b, gspi_v c, gspi_v d) {
    return _mm256_blendv_ps(d, c, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
/* In two halves, so that 2^half is normal; the first product is exact, the second rounds. */
GSPI_VECTOR gspi_v v_scale(gspi_v a, gspi_v n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    const __m256i one = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i two = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return v_mul(v_mul(a, _mm256_castsi256_ps(one)), _mm256_castsi256_ps(two));
}

GSPI_VECTOR gspi_v_mask v_mask(int64_t count) {
    const int some = count >= V_LANES ? V_LANES : (int)count;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(some), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GSPI_VECTOR gspi_v v_load_some(const float *a, gspi_v_mask some) {
    return _mm256_maskload_ps(a, some);
}
GSPI_VECTOR void v_store_some(float *a, gspi_v_mask some, gspi_v v) {
    _mm256_maskstore_ps(a, some, v);
}
/* No instruction loads or stores some halves: full registers are told apart, which are nearly all. */
GSPI_VECTOR gspi_v v_load_halves(const uint16_t *a, gspi_v_mask some) {
    const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(some));
    uint16_t room[V_LANES] = {0};
    for (int i = 0; bits != 255 && i < V_LANES; i++)
        if (bits >> i & 1) room[i] = a[i];
    const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(bits == 255 ? a : room));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
GSPI_VECTOR void v_store_halves(uint16_t *a, gspi_v_mask some, gspi_v v) {
    const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i wide = _mm256_castps_si256(_mm256_blendv_ps(
        _mm256_castsi256_ps(rounded), _mm256_castsi256_ps(nan), _mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i high = _mm256_srli_epi32(wide, 16);
    const __m128i halves =
        _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 8));
    const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(some));
    uint16_t room[V_LANES];
    _mm_storeu_si128((__m128i *)(void *)(lanes == 255 ? a : room), halves);
    for (int i = 0; lanes != 255 && i < V_LANES; i++)
        if (lanes >> i & 1) a[i] = room[i];
}
GSPI_VECTOR gspi_v_mask v_mask_of(uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lanes), lanes);
}
GSPI_VECTOR gspi_v v_blend(gspi_v a, gspi_v b, gspi_v_mask some) {
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(some));
}
GSPI_VECTOR gspi_v v_even(gspi_v a, gspi_v b) {
    const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
}

GSPI_VECTOR gspi_v v_sum_fours(const gspi_v sum[4]) {
    const __m256 a = _mm256_hadd_ps(sum[0], sum[1]), b = _mm256_hadd_ps(sum[2], sum[3]);
    return _mm256_hadd_ps(a, b);
}

GSPI_VECTOR void v_transpose(gspi_v m[V_LANES]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            m[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
            m[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(m[i], m[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(m[i], m[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) m[i] = t[i];
}

#elif defined(__aarch64__)

#define V_LANES 4
typedef float32x4_t gspi_v;
typedef uint32_t gspi_v_mask; /* a bit for each lane */

GSPI_VECTOR gspi_v v_set1(float a) { return vdupq_n_f32(a); }
GSPI_VECTOR gspi_v v_load(const float *a) { return vld1q_f32(a); }
GSPI_VECTOR gspi_v v_loadu(const float *a) { return vld1q_f32(a); }
GSPI_VECTOR void v_store(float *a, gspi_v v) { vst1q_f32(a, v); }
GSPI_VECTOR void v_storeu(float *a, gspi_v v) { vst1q_f32(a, v); }
GSPI_VECTOR void v_stream(float *a, gspi_v v) { v_store(a, v); }
GSPI_VECTOR void v_stream_end(void) {}
GSPI_VECTOR gspi_v v_add(gspi_v a, gspi_v b) { return vaddq_f32(a, b); }
GSPI_VECTOR gspi_v v_sub(gspi_v a, gspi_v b) { return vsubq_f32(a, b); }
GSPI_VECTOR gspi_v v_mul(gspi_v a, gspi_v b) { return vmulq_f32(a, b); }
GSPI_VECTOR gspi_v v_div(gspi_v a, gspi_v b) { return vdivq_f32(a, b); }
GSPI_VECTOR gspi_v v_fma(gspi_v a, gspi_v b, gspi_v c) { return vfmaq_f32(c, a, b); }
GSPI_VECTOR gspi_v v_fms(gspi_v a, gspi_v b, gspi_v c) { return vfmaq_f32(vnegq_f32(c), a, b); }
GSPI_VECTOR gspi_v v_fnma(gspi_v a, gspi_v b, gspi_v c) { return vfmsq_f32(c, a, b); }
/* FMIN and FMAX treat NaN and the sign of zero otherwise. */
GSPI_VECTOR gspi_v v_min(gspi_v a, gspi_v b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
GSPI_VECTOR gspi_v v_max(gspi_v a, gspi_v b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
GSPI_VECTOR gspi_v v_round(gspi_v a) { return vrndnq_f32(a); }
GSPI_VECTOR gspi_v v_abs(gspi_v a) { return vabsq_f32(a); }
GSPI_VECTOR gspi_v v_sign(gspi_v a, gspi_v b) { return vbslq_f32(vdupq_n_u32(0x80000000), b, a); }
GSPI_VECTOR gspi_v v_less(gspi_v a, gspi_v b, gspi_v c, gspi_v d) {
    return vbslq_f32(vcltq_f32(a, b), c, d);
}
/* In two halves, as with AVX2. */
GSPI_VECTOR gspi_v v_scale(gspi_v a, gspi_v n) {
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    const int32x4_t rest = vsubq_s32(whole, half), bias = vdupq_n_s32(127);
    const int32x4_t one = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t two = vshlq_n_s32(vaddq_s32(rest, bias), 23);
    return v_mul(v_mul(a, vreinterpretq_f32_s32(one)), vreinterpretq_f32_s32(two));
}

GSPI_VECTOR gspi_v_mask v_mask(int64_t count) {
    return count >= V_LANES ? 15 : (1u << (count > 0 ? count : 0)) - 1;
}
/* No instruction loads or stores some lanes: full registers are told apart, which are nearly all. */
GSPI_VECTOR gspi_v v_load_some(const float *a, gspi_v_mask some) {
    if (some == 15) return vld1q_f32(a);
    gspi_v v = v_set1(0.0f);
    if (some & 1) v = vld1q_lane_f32(a, v, 0);
    if (some & 2) v = vld1q_lane_f32(a + 1, v, 1);
    if (some & 4) v = vld1q_lane_f32(a + 2, v, 2);
    if (some & 8) v = vld1q_lane_f32(a + 3, v, 3);
    return v;
}
GSPI_VECTOR void v_store_some(float *a, gspi_v_mask some, gspi_v v) {
    if (some == 15) {
        vst1q_f32(a, v);
        return;
    }
    if (some & 1) vst1q_lane_f32(a, v, 0);
    if (some & 2) vst1q_lane_f32(a + 1, v, 1);
    if (some & 4) vst1q_lane_f32(a + 2, v, 2);
    if (some & 8) vst1q_lane_f32(a + 3, v, 3);
}
GSPI_VECTOR gspi_v v_load_halves(const uint16_t *a, gspi_v_mask some) {
    uint16_t room[V_LANES] = {0};
    for (int i = 0; some != 15 && i < V_LANES; i++)
        if (some >> i & 1) room[i] = a[i];
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(some == 15 ? a : room), 16));
}
GSPI_VECTOR void v_store_halves(uint16_t *a, gspi_v_mask some, gspi_v v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint16x4_t halves = vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, nan), 16);
    uint16_t room[V_LANES];
    vst1_u16(some == 15 ? a : room, halves);
    for (int i = 0; some != 15 && i < V_LANES; i++)
        if (some >> i & 1) a[i] = room[i];
}
GSPI_VECTOR gspi_v_mask v_mask_of(uint32_t bits) { return bits; }
GSPI_VECTOR gspi_v v_blend(gspi_v a, gspi_v b, gspi_v_mask some) {
    const uint32x4_t lanes = {1, 2, 4, 8};
    return vbslq_f32(vtstq_u32(vdupq_n_u32(some), lanes), b, a);
}
GSPI_VECTOR gspi_v v_even(gspi_v a, gspi_v b) { return vuzp1q_f32(a, b); }

GSPI_VECTOR gspi_v v_sum_fours(const gspi_v sum[4]) {
    return vpaddq_f32(vpaddq_f32(sum[0], sum[1]), vpaddq_f32(sum[2], sum[3]));
}

GSPI_VECTOR void v_transpose(gspi_v m[V_LANES]) {
    float64x2_t t[4];
    for (int i = 0; i < 4; i += 2) {
        t[i] = vreinterpretq_f64_f32(vtrn1q_f32(m[i], m[i + 1]));
        t[i + 1] = vreinterpretq_f64_f32(vtrn2q_f32(m[i], m[i + 1]));
    }
    for (int i = 0; i < 2; i++) {
        m[i] = vreinterpretq_f32_f64(vtrn1q_f64(t[i], t[i + 2]));
        m[i + 2] = vreinterpretq_f32_f64(vtrn2q_f64(t[i], t[i + 2]));
    }
}

#endif
#endif
