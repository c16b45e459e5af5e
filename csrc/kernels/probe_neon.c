/* Probes with NEON. A loop has 8 chains, none of which waits for another.
 *
 *     for every 8 registers of memory:           8 items
 *         read, ahead:      sum[i] ^= memory[i]
 *         permute:          sum[i] = table[sum[i]]                TBL, four registers
 *         step:             sum[i] += weight * table[positions]
 *         fma:              sum[i] += weight * weight             FMLA
 *         load_fma:         sum[i] += weight * memory[i]
 *
 * FMLA and loads 2 a cycle on a Neoverse N1, by its optimization guide; TBL of four registers 2 in 3 cycles. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "gsp_probe.h"

#define LANES 4
#define CHAINS 8
#define AHEAD (4096 / sizeof(float))

/* Does `work` for every register of the memory, `rounds` times; i is the chain and `here` the register. */
#define EVERY(work)                                                                                \
    for (int64_t round = 0; round < rounds; round++)                                               \
        for (size_t at = 0; at < count; at += CHAINS * LANES)                                      \
            for (int i = 0; i < CHAINS; i++) {                                                     \
                const float *here = memory + at + i * LANES;                                       \
                (void)here;                                                                        \
                work;                                                                              \
            }                                                                                      \
    break

static inline float32x4_t exclusive_or(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
}

static inline float32x4_t look_up(uint8x16x4_t table, float32x4_t bytes) {
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_f32(bytes)));
}

float gspi_probe__neon(gspi_probe_kind kind, const float *memory, size_t bytes, int64_t rounds) {
    const size_t count = bytes / sizeof *memory;
    const float32x4_t weight = vld1q_f32(memory);
    const uint8x16x4_t table = vld1q_u8_x4((const uint8_t *)memory);
    float32x4_t positions = weight;
    float32x4_t sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = vdupq_n_f32(0);
    switch (kind) {
    case GSPI_PROBE_READ: EVERY(sum[i] = exclusive_or(sum[i], vld1q_f32(here)));
    case GSPI_PROBE_AHEAD:
        EVERY(if (i % 4 == 0) __builtin_prefetch(here + AHEAD);
              sum[i] = exclusive_or(sum[i], vld1q_f32(here)));
    case GSPI_PROBE_PERMUTE: EVERY(sum[i] = look_up(table, sum[i]));
    case GSPI_PROBE_STEP:
        /* For all that the compiler knows, the positions are others each time. */
        EVERY(__asm__("" : "+w"(positions));
              sum[i] = vfmaq_f32(sum[i], look_up(table, positions), weight));
    case GSPI_PROBE_FMA: EVERY(sum[i] = vfmaq_f32(sum[i], weight, weight));
    case GSPI_PROBE_LOAD_FMA: EVERY(sum[i] = vfmaq_f32(sum[i], weight, vld1q_f32(here)));
    case GSPI_PROBE_PAIRS:
    case GSPI_PROBE_BYTES: break; /* not here */
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = exclusive_or(sum[0], sum[i]);
    return vgetq_lane_f32(sum[0], 0);
}
#endif
