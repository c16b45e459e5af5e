/* What the files of this folder share: how wide an index is, where a column lies, how masks are read. */
#ifndef GSP_FORMAT_H
#define GSP_FORMAT_H

#include <string.h>

#include "../gsp_internal.h"

/* Which bank every column is in, and its place among that bank's columns. */
typedef struct gspi_banks {
    uint16_t *bank; /* cols, then one virtual column for every bank, as packing wants them */
    uint32_t *place; /* cols; only where an index is a place */
} gspi_banks;

gsp_status gspi_banks_create(gsp_context *context, const gsp_pattern *pattern, int64_t cols,
                             gspi_banks *banks);
void gspi_banks_destroy(gsp_context *context, gspi_banks *banks);

/* A GS pattern whose groups are single rows: slot b is bank b, and an index is a place in the bank. */
static inline bool gspi_is_horizontal(const gsp_pattern *pattern) {
    return pattern->kind == GSP_GS && pattern->per_row == pattern->banks;
}

/* gsp_validate, but for columns that are twice in a row of a GS matrix if `duplicates` is false: who decodes rows finds
 * these on the way. */
gsp_status gspi_validate(gsp_context *context, const gsp_matrix *matrix, const gsp_lengths *lengths,
                         gsp_fault *fault, bool duplicates);

/* Slots of one row of an N:M matrix. */
int64_t gspi_nm_row_slots(const gsp_pattern *pattern, int64_t cols);
/* Rows of an N:M matrix whose packed positions fill whole bytes for any number of slots. */
#define GSPI_NM_ROWS 4

static inline uint32_t gspi_index(const void *indices, uint64_t at, uint32_t bytes) {
    switch (bytes) {
    case 1: return ((const uint8_t *)indices)[at];
    case 2: return ((const uint16_t *)indices)[at];
    default: return ((const uint32_t *)indices)[at];
    }
}

static inline void gspi_set_index(void *indices, uint64_t at, uint32_t bytes, uint32_t value) {
    switch (bytes) {
    case 1: ((uint8_t *)indices)[at] = (uint8_t)value; return;
    case 2: ((uint16_t *)indices)[at] = (uint16_t)value; return;
    default: ((uint32_t *)indices)[at] = value; return;
    }
}

/* The column of a slot of a GS matrix; `place` is the slot's number in its bundle. */
static inline uint32_t gspi_gs_column(const gsp_matrix *matrix, uint64_t slot, int64_t place) {
    const uint32_t index = gspi_index(matrix->indices, slot, matrix->index_bytes);
    if (!gspi_is_horizontal(&matrix->pattern)) return index;
    if (matrix->pattern.layout == GSP_INTERLEAVED)
        return (uint32_t)(index * (int64_t)matrix->pattern.banks + place);
    return (uint32_t)(index + gsp_bank_begin(place, matrix->cols, matrix->pattern.banks));
}

/* Packed position `at`: bits of a stream that fills every byte from its lowest bit. */
static inline uint32_t gspi_position(const void *indices, uint64_t at, uint32_t bits) {
    const uint64_t first = at * bits;
    return ((const uint8_t *)indices)[first / 8] >> (first % 8) & ((1u << bits) - 1);
}

/* Copies one value; a switch, so that each size is one load and one store. */
static inline void gspi_copy(void *target, const void *source, size_t bytes) {
    switch (bytes) {
    case 1: memcpy(target, source, 1); return;
    case 2: memcpy(target, source, 2); return;
    case 4: memcpy(target, source, 4); return;
    default: memcpy(target, source, 8); return;
    }
}

/* Writes the columns of the nonzero bytes of a row of a mask, ascending; returns how many. */
static inline int64_t gspi_list_columns(const uint8_t *mask, int64_t cols, uint32_t *columns) {
    int64_t count = 0, col = 0;
    for (; col + 8 <= cols; col += 8) {
        uint64_t word;
        memcpy(&word, mask + col, sizeof word);
        if (word == 0) continue; /* most words of a sparse mask */
        for (int64_t i = 0; i < 8; i++) {
            columns[count] = (uint32_t)(col + i); /* kept only if the count moves on */
            count += mask[col + i] != 0;
        }
    }
    for (; col < cols; col++)
        if (mask[col] != 0) columns[count++] = (uint32_t)col;
    return count;
}

/* Splits the elements of one group into bundles. */
typedef struct gspi_packer gspi_packer;

/* For groups of at most `bundles` bundles. NULL if there is no memory. `banks` must outlive the packer. */
gspi_packer *gspi_packer_create(gsp_context *context, const gsp_pattern *pattern, int64_t cols,
                                const gspi_banks *banks, int64_t bundles);
void gspi_packer_destroy(gsp_context *context, gspi_packer *packer);
/* Packs a group of `rows` rows whose masks are at masks[0..rows). Gives columns [bundles, banks] by slot,
 * valid until the next call; slots that a short group lacks hold a number that means nothing.
 * GSP_ERROR_MASK if the rows do not hold exactly `bundles` bundles. */
gsp_status gspi_pack(gspi_packer *packer, const uint8_t *const *masks, int64_t rows,
                     int64_t bundles, const uint32_t **columns);

#endif
