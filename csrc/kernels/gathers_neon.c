/* Gathers with NEON, which only has them from tables in registers; four chains of sums.
 *
 *     for every 4 indices:
 *         permute:          sum += bits of (16 floats around the first)[indices % 16]    TBL, four registers
 *
 * TBL looks up bytes: an index becomes four of them by a multiply-add. 2 in 3 cycles on a Neoverse N1. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "gsp_gathers.h"

#define LANES 4
#define CHAINS 4
#define REACH 16

uint32_t gspi_permute__neon(const int32_t *indices, int64_t count, float *table) {
    uint32x4_t sum[CHAINS] = {vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0)};
    for (int64_t at = 0; at < count; at += CHAINS * LANES)
        for (int i = 0; i < CHAINS; i++) {
            const int32_t *here = indices + at + i * LANES;
            const uint32x4_t position =
                vandq_u32(vreinterpretq_u32_s32(vld1q_s32(here)), vdupq_n_u32(REACH - 1));
            const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), position, 0x04040404);
            const uint8x16x4_t entries = vld1q_u8_x4((const uint8_t *)(table + (*here & -REACH)));
            const uint8x16_t found = vqtbl4q_u8(entries, vreinterpretq_u8_u32(bytes));
            sum[i] = vaddq_u32(sum[i], vreinterpretq_u32_u8(found));
        }
    return vaddvq_u32(vaddq_u32(vaddq_u32(sum[0], sum[1]), vaddq_u32(sum[2], sum[3])));
}
#endif
