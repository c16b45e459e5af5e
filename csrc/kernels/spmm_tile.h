/* SpMM: sizes of a tile, and the way of sums to y. */
#ifndef SPMM_TILE_H
#define SPMM_TILE_H

#include <math.h>

#include "gsp_activation.h"

#define GSPI_VECTOR_FLOATS                                                                         \
    16 /* of the 64 bytes in which tiles are counted, whatever the registers */
#define GSPI_TILE_SAMPLES (GSPI_TILE_VECTORS * GSPI_VECTOR_FLOATS) /* at most 64: a bit for each */
#define GSPI_TILE_REGISTERS (GSPI_TILE_SAMPLES / V_LANES)

/* Pointers to before and behind an array are only used under masks. */
GSPI_VECTOR const float *beside(const float *array, int64_t offset) {
    return (const float *)((uintptr_t)array + (uintptr_t)offset * sizeof(float));
}

/* Of an array of floats, or of bfloat16: the place of an element, and some lanes from there on. */
GSPI_VECTOR const void *place_in(const void *array, bool halves, int64_t offset) {
    return (const void *)((uintptr_t)array + (uintptr_t)offset * (halves ? 2 : 4));
}
GSPI_VECTOR gspi_v load_some_of(const void *array, bool halves, int64_t offset, gspi_v_mask some) {
    const void *from = place_in(array, halves, offset);
    return halves ? v_load_halves(from, some) : v_load_some(from, some);
}
GSPI_VECTOR void store_some_of(void *array, bool halves, int64_t offset, gspi_v_mask some,
                               gspi_v v) {
    void *to = (void *)(uintptr_t)place_in(array, halves, offset);
    if (halves) v_store_halves(to, some, v);
    else v_store_some(to, some, v);
}

/* Lanes of one register of sums that lie together in y: at y[row * row_step + at + lane]. */
typedef struct {
    int64_t at;
    int from; /* the first sample of the register in the tile */
    gspi_v_mask lanes;
} gspi_target;

/* Where the sums of a tile go, along the samples. With as many targets as registers, the one of register v is v. */
typedef struct {
    float *y;
    bool halves; /* y, bias and residual are bfloat16: only finish_rows knows */
    gsp_epilogue epilogue; /* a copy, which no store can change */
    float low, high;
    const float *scales, *bias; /* NULL; bias[row * bias_step] */
    int64_t bias_step;
    int64_t row_step;
    int64_t rows; /* of the matrix */
    int64_t first, count; /* rows of the unit */
    bool stream; /* strips go past the caches: all registers are full, and their places aligned */
    int targets;
    gspi_target target[GSPI_TILE_SAMPLES];
} gspi_out;

/* Whether the activation is none or a clamp, which strips apply to their registers: out->low and high say which. Others
 * would be compiled for every register, and are applied to sums in the panel. */
static bool out_clamps(gspi_out *out) {
    const gsp_epilogue *epilogue = &out->epilogue;
    static const float none = 0;
    out->bias = epilogue->bias == NULL ? &none : epilogue->bias;
    out->bias_step = epilogue->bias != NULL;
    out->low = -INFINITY;
    out->high = INFINITY;
    switch (epilogue->activation) {
    case GSP_NONE: return true;
    case GSP_RELU: out->low = 0; return true;
    case GSP_CLAMP:
        out->low = (float)epilogue->low;
        out->high = (float)epilogue->high;
        return true;
    default: return false;
    }
}

/* Rows of a strip, from their registers: sums[r] is row out->first + rows[r], if there is one, sums[r][v]
 * for target first + v. Inlined where `count`, `registers` and `plain` (no scales, no residual) are constants. */
GSPI_VECTOR void finish_strip_of(const gspi_out *out, const uint16_t *rows, int count,
                                 const gspi_v (*sums)[GSPI_TILE_REGISTERS], int first,
                                 int registers, bool plain) {
    const gspi_v low = v_set1(out->low), high = v_set1(out->high);
    const int64_t row_step = out->row_step;
    const uint64_t end = (uint64_t)out->count;
    float *const y = out->y + out->first * row_step;
    const float *const bias = out->bias + out->first * out->bias_step;
    const int64_t bias_step = out->bias_step;
    const bool stream = out->stream;
    int64_t at[GSPI_TILE_REGISTERS];
    gspi_v_mask lanes[GSPI_TILE_REGISTERS];
    for (int v = 0; v < registers; v++) {
        at[v] = out->target[first + v].at;
        lanes[v] = out->target[first + v].lanes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) {
        const uint64_t row = rows[r];
        if (__builtin_expect(row >= end, 0)) continue;
        const gspi_v add = v_set1(bias[(int64_t)row * bias_step]);
        const int64_t line = (int64_t)row * row_step;
#pragma GCC unroll 4
        for (int v = 0; v < registers; v++) {
            gspi_v sum = sums[r][v];
            if (!plain && out->scales != NULL)
                sum = v_mul(sum, v_set1(out->scales[out->first + (int64_t)row]));
            sum = v_add(sum, add);
            if (!plain && out->epilogue.residual != NULL)
                sum = v_add(sum, v_load_some(beside(out->epilogue.residual,
                                                    out->first * row_step + line + at[v]),
                                             lanes[v]));
            sum = v_min(high, v_max(low, sum));
            float *to = (float *)(uintptr_t)beside(y, line + at[v]);
            if (stream) v_stream(to, sum);
            else v_store_some(to, lanes[v], sum);
        }
    }
}

GSPI_VECTOR void finish_strip(const gspi_out *out, const uint16_t *rows, int count,
                              const gspi_v (*sums)[GSPI_TILE_REGISTERS], int first, int registers) {
    if (out->scales == NULL && out->epilogue.residual == NULL)
        finish_strip_of(out, rows, count, sums, first, registers, true);
    else finish_strip_of(out, rows, count, sums, first, registers, false);
}

/* Rows [first, last) of the matrix, whose sums lie `stride` bytes apart: y = activation(scale * sum + bias + residual),
 * for any activation and targets. */
static __attribute__((noinline)) void finish_rows(const gspi_out *out, int64_t first, int64_t last,
                                                  const char *sums, uint32_t stride) {
    const void *bias = out->epilogue.bias, *residual = out->epilogue.residual;
    const gspi_v_mask one = v_mask_of(1);
    for (int64_t row = first; row < last; row++, sums += stride) {
        _Alignas(64) float add[V_LANES] = {0};
        if (bias != NULL) v_store(add, load_some_of(bias, out->halves, row, one));
        for (int i = 0; i < out->targets; i++) {
            const gspi_target *target = &out->target[i];
            const int64_t at = row * out->row_step + target->at;
            gspi_v sum = v_load((const float *)(const void *)sums + target->from);
            if (out->scales != NULL) sum = v_mul(sum, v_set1(out->scales[row]));
            if (bias != NULL) sum = v_add(sum, v_set1(add[0]));
            if (residual != NULL)
                sum = v_add(sum, load_some_of(residual, out->halves, at, target->lanes));
            store_some_of(out->y, out->halves, at, target->lanes, v_activate(sum, &out->epilogue));
        }
    }
}

#endif
