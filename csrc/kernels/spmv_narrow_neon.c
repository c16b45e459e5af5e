/* SpMV of bfloat16 and int8 values by tables of floats, with NEON: spmv_floats.h. A table is 16 floats, looked up byte
 * by byte as spmv_neon.c explains. */
#if defined(__aarch64__)
#include <string.h>

#include "gsp_vector.h"

typedef uint8x16_t gspi_words;

GSPI_VECTOR gspi_words load_words(const unsigned char *item) { return vld1q_u8(item); }

GSPI_VECTOR gspi_v look_up(const float *x, gspi_words words, int byte) {
    const uint8x16_t lanes = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    const uint8x16_t offsets = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    const uint8x16_t positions = vqtbl1q_u8(words, vaddq_u8(lanes, vdupq_n_u8((uint8_t)byte)));
    uint8x16x4_t table;
    for (int i = 0; i < 4; i++) table.val[i] = vreinterpretq_u8_f32(v_loadu(x + i * V_LANES));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vsliq_n_u8(offsets, positions, 2)));
}

GSPI_VECTOR gspi_v widen(const unsigned char *values, int bytes) {
    if (bytes == 2) {
        uint16_t halves[V_LANES];
        memcpy(halves, values, sizeof halves);
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(halves), 16));
    }
    int8_t four[8] = {0};
    memcpy(four, values, V_LANES);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(four)))));
}

#include "spmv_floats.h"

#define FLOATS_2 NARROW_CASE(1, floats, 2) NARROW_CASE(2, floats, 2)
#define FLOATS_1 NARROW_CASE(1, floats, 1) NARROW_CASE(2, floats, 1)

NARROW_KERNEL(gsp_bf16_spmv_floats16__neon, 2, FLOATS_2)
NARROW_KERNEL(gsp_i8_spmv_floats16__neon, 2, FLOATS_1)

gspi_quantum gspi_to_floats__neon(const float *x, int64_t cols, float *to) {
    return to_floats(x, cols, to);
}
#endif
