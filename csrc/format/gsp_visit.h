/* The one place that knows how each valid format is read: every stored element of some groups, in stored order. */
#ifndef GSP_VISIT_H
#define GSP_VISIT_H

#include "gsp_format.h"

/* element: its place in matrix->values. */
typedef void gspi_visitor(void *argument, int64_t row, int64_t col, uint64_t element);

#define GSPI_INLINE static inline __attribute__((always_inline))

/* One row is one group, and the slot is the bank: the index is the place in it. */
GSPI_INLINE void gspi_visit_horizontal(const gsp_matrix *matrix, int64_t first, int64_t last,
                                       gspi_visitor *visit, void *argument) {
    const int64_t banks = matrix->pattern.banks, narrow = matrix->cols / banks,
                  wide = matrix->cols % banks;
    const bool contiguous = matrix->pattern.layout == GSP_CONTIGUOUS;
    for (int64_t group = first; group < last; group++) {
        const int64_t row = matrix->row_order ? matrix->row_order[group] : group;
        for (uint64_t bundle = matrix->indptr[group]; bundle < matrix->indptr[group + 1];
             bundle++) {
            int64_t begin = 0,
                    rest = 0; /* floor(slot * cols / banks), without a division for every slot */
            for (int64_t slot = 0; slot < banks; slot++) {
                const uint64_t element = bundle * (uint64_t)banks + (uint64_t)slot;
                const int64_t index =
                    (int64_t)gspi_index(matrix->indices, element, matrix->index_bytes);
                visit(argument, row, contiguous ? begin + index : index * banks + slot, element);
                begin += narrow;
                rest += wide;
                if (rest >= banks) {
                    rest -= banks;
                    begin++;
                }
            }
        }
    }
}

/* Slots of a bundle go by row, and within a row by bank; the index is the column. Slots of rows that a short last
 * group lacks are skipped. */
GSPI_INLINE void gspi_visit_gs(const gsp_matrix *matrix, int64_t first, int64_t last,
                               gspi_visitor *visit, void *argument) {
    const int64_t banks = matrix->pattern.banks, per_row = matrix->pattern.per_row,
                  group_rows = banks / per_row;
    for (int64_t group = first; group < last; group++) {
        const int64_t here = gspi_min(group_rows, matrix->rows - group * group_rows);
        for (uint64_t bundle = matrix->indptr[group]; bundle < matrix->indptr[group + 1];
             bundle++) {
            for (int64_t place = 0; place < here; place++) {
                const int64_t position = group * group_rows + place;
                const int64_t row = matrix->row_order ? matrix->row_order[position] : position;
                for (int64_t slot = place * per_row; slot < (place + 1) * per_row; slot++) {
                    const uint64_t element = bundle * (uint64_t)banks + (uint64_t)slot;
                    visit(argument, row,
                          (int64_t)gspi_index(matrix->indices, element, matrix->index_bytes),
                          element);
                }
            }
        }
    }
}

GSPI_INLINE void gspi_visit_irregular(const gsp_matrix *matrix, int64_t first, int64_t last,
                                      gspi_visitor *visit, void *argument) {
    for (int64_t row = first; row < last; row++)
        for (uint64_t element = matrix->indptr[row]; element < matrix->indptr[row + 1]; element++)
            visit(argument, row, (int64_t)gspi_index(matrix->indices, element, matrix->index_bytes),
                  element);
}

/* Blocks at the right and lower edge reach beyond the matrix; what lies there is skipped. */
GSPI_INLINE void gspi_visit_block(const gsp_matrix *matrix, int64_t first, int64_t last,
                                  gspi_visitor *visit, void *argument) {
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    for (int64_t group = first; group < last; group++) {
        const int64_t rows = gspi_min(height, matrix->rows - group * height);
        for (uint64_t block = matrix->indptr[group]; block < matrix->indptr[group + 1]; block++) {
            const int64_t left =
                (int64_t)gspi_index(matrix->indices, block, matrix->index_bytes) * width;
            const int64_t cols = gspi_min(width, matrix->cols - left);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++)
                    visit(argument, group * height + r, left + c,
                          (block * (uint64_t)height + (uint64_t)r) * (uint64_t)width + (uint64_t)c);
        }
    }
}

/* Every window of m columns has n slots (a last, narrower one at most its width); a slot's position in its window
 * takes index_bytes bits, lowest bits first. */
GSPI_INLINE void gspi_visit_nm(const gsp_matrix *matrix, int64_t first, int64_t last,
                               gspi_visitor *visit, void *argument) {
    const int64_t n = matrix->pattern.nm_n, m = matrix->pattern.nm_m;
    for (int64_t row = first; row < last; row++) {
        uint64_t element = matrix->indptr[row];
        for (int64_t left = 0; left < matrix->cols; left += m) {
            const int64_t slots = gspi_min(n, matrix->cols - left);
            for (int64_t slot = 0; slot < slots; slot++, element++)
                visit(argument, row,
                      left + gspi_position(matrix->indices, element, matrix->index_bytes), element);
        }
    }
}

/* Calls visit for every element that groups [first, last) store. */
GSPI_INLINE void gspi_visit(const gsp_matrix *matrix, int64_t first, int64_t last,
                            gspi_visitor *visit, void *argument) {
    switch (matrix->pattern.kind) {
    case GSP_GS:
        if (matrix->pattern.per_row == matrix->pattern.banks)
            gspi_visit_horizontal(matrix, first, last, visit, argument);
        else gspi_visit_gs(matrix, first, last, visit, argument);
        break;
    case GSP_IRREGULAR: gspi_visit_irregular(matrix, first, last, visit, argument); break;
    case GSP_BLOCK: gspi_visit_block(matrix, first, last, visit, argument); break;
    case GSP_NM: gspi_visit_nm(matrix, first, last, visit, argument); break;
    }
}

/* IEEE half and bfloat16 to float, by their bits. */
GSPI_INLINE float gspi_from_bits(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

GSPI_INLINE float gspi_from_bfloat16(uint16_t bits) { return gspi_from_bits((uint32_t)bits << 16); }

GSPI_INLINE float gspi_from_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00)
        return gspi_from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13); /* infinity, NaN */
    if (rest >= 0x400)
        return gspi_from_bits(sign | ((rest << 13) + 0x38000000)); /* exponent + 112 */
    const float tiny = (float)rest * 0x1p-24f; /* subnormal */
    return sign ? -tiny : tiny;
}

/* A stored value as float; float64 has a reader of its own. */
GSPI_INLINE float gspi_value(const gsp_matrix *matrix, gsp_dtype dtype, uint64_t element) {
    switch (dtype) {
    case GSP_FLOAT64: return (float)((const double *)matrix->values)[element];
    case GSP_FLOAT32: return ((const float *)matrix->values)[element];
    case GSP_FLOAT16: return gspi_from_float16(((const uint16_t *)matrix->values)[element]);
    case GSP_BFLOAT16: return gspi_from_bfloat16(((const uint16_t *)matrix->values)[element]);
    case GSP_INT8: return ((const int8_t *)matrix->values)[element];
    }
    return 0;
}

#endif
