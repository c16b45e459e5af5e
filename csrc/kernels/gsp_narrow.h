/* Numbers of 8 and 16 bits: bfloat16, and x rounded to 8 bits for a sample. Every backend rounds alike. */
#ifndef GSP_NARROW_H
#define GSP_NARROW_H

#include <math.h>

#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

/* To the nearest, ties to even; a NaN stays one. */
static inline uint16_t gspi_to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16);
}

/* What a sample is rounded with: low <= 0 and high >= 0 are its least and largest entries, wrong is 0, or NaN if one
 * of them is not finite. 0 is a whole step, so that it stays 0. */
static inline gspi_quantum gspi_quantum_of(float low, float high, float wrong) {
    const float range = high / 255 - low / 255, least = 0x1p-126f;
    gspi_quantum quantum = {.scale = (range > least ? range : least) + wrong};
    if (quantum.scale != quantum.scale) return quantum;
    quantum.inverse = 1 / quantum.scale;
    quantum.zero = rintf(-low * quantum.inverse);
    return quantum;
}

/* q - zero, a whole number of at most 255; 0 in a sample that gives NaN whatever it is. */
static inline int gspi_quantized(float x, const gspi_quantum *quantum) {
    if (quantum->scale != quantum->scale) return 0;
    const float step = rintf(x * quantum->inverse) + quantum->zero;
    return (int)((step < 0 ? 0 : step > 255 ? 255 : step) - quantum->zero);
}

/* Measures a sample and rounds it: to floats, which hold q - zero, or to bytes, which hold q. */
gspi_quantum gspi_measure__scalar(const float *x, int64_t x_col, int64_t cols);
gspi_quantum gspi_to_floats__avx512(const float *x, int64_t cols, float *to);
gspi_quantum gspi_to_floats__avx2(const float *x, int64_t cols, float *to);
gspi_quantum gspi_to_floats__neon(const float *x, int64_t cols, float *to);
gspi_quantum gspi_to_bytes__avx512vnni(const float *x, int64_t cols, unsigned char *to);

/* Narrow forms: whether the kernel cannot read x where it is; bytes of an entry and of a sample in the copy; and the
 * copy of one sample, with what it was rounded with. `room` is for GSPI_MAX_COPY floats. */
bool gspi_narrow_copies(const gsp_plan *plan, int64_t x_col);
int64_t gspi_narrow_size(const gsp_plan *plan);
int64_t gspi_narrow_stride(const gsp_plan *plan);
gspi_quantum gspi_narrow_copy(const gsp_plan *plan, const void *x, int64_t x_col, void *copy,
                              float *room);

#endif
