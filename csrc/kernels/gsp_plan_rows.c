/* First step of a plan: the rows of a matrix, fullest first, each in the order of x.
 *
 * Formats that keep their columns in order are copied. The slots of bundles are not in order: they go to a dense
 * row, with a bit for each that is there and a bit for each 64 bits, and are read back by those bits. That costs the
 * same for any number of bundles, and no comparison. */
#include <string.h>

#include "gsp_plan.h"
#include "../format/gsp_visit.h"

static uint32_t count_stored(const gsp_matrix *matrix, int64_t group) {
    return matrix->indptr[group + 1] - matrix->indptr[group];
}

/* Columns of the blocks of one row of blocks: those of the last one may reach beyond the matrix. */
static uint32_t block_cols(const gsp_matrix *matrix, int64_t group) {
    const int64_t width = matrix->pattern.block_cols;
    const uint32_t blocks = count_stored(matrix, group);
    if (blocks == 0) return 0;
    const int64_t last =
        (int64_t)gspi_index(matrix->indices, matrix->indptr[group + 1] - 1, matrix->index_bytes);
    return (uint32_t)(blocks * width - gspi_max(0, (last + 1) * width - matrix->cols));
}

void gspi_count_rows(const gsp_matrix *matrix, uint32_t *counts) {
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t group_rows = gsp_group_rows(pattern);
    for (int64_t group = 0; group < gsp_groups(pattern, matrix->rows); group++) {
        const uint32_t count = pattern->kind == GSP_BLOCK ? block_cols(matrix, group)
                               : pattern->kind == GSP_GS
                                   ? count_stored(matrix, group) * pattern->per_row
                                   : count_stored(matrix, group);
        for (int64_t p = group * group_rows; p < gspi_min((group + 1) * group_rows, matrix->rows);
             p++)
            counts[matrix->row_order ? matrix->row_order[p] : p] = count;
    }
}

gsp_status gspi_fullest_first(gsp_context *context, const gsp_matrix *matrix,
                              const uint32_t *counts, uint32_t *order) {
    uint32_t most = 0;
    for (int64_t row = 0; row < matrix->rows; row++) most = counts[row] > most ? counts[row] : most;
    uint32_t *next = gspi_calloc(context, (size_t)most + 2, sizeof *next);
    GSP_CHECK(next != NULL, GSP_ERROR_MEMORY);
    for (int64_t row = 0; row < matrix->rows; row++) next[most - counts[row] + 1]++;
    for (uint32_t i = 0; i < most; i++) next[i + 1] += next[i];
    for (int64_t place = 0; place < matrix->rows; place++) {
        const uint32_t row = matrix->row_order ? matrix->row_order[place] : (uint32_t)place;
        order[next[most - counts[row]]++] = row;
    }
    gspi_free(context, next);
    return GSP_OK;
}

/* ----------------------------------------------------------------- decode */

/* A dense row: values, a bit for each that is there, and a bit for each word of those. All bits are 0 between rows. */
typedef struct {
    float *values;
    uint64_t *bits, *words;
    int64_t size;
} dense_row;

static void put(const dense_row *row, int64_t at, float value) {
    row->values[at] = value;
    row->bits[at / 64] |= (uint64_t)1 << at % 64;
    row->words[at / 4096] |= (uint64_t)1 << at / 64 % 64;
}

/* Moves what is there to key and values, in order. */
static void take(const dense_row *row, int32_t *key, float *values) {
    for (int64_t i = 0; i <= row->size / 4096; i++) {
        for (uint64_t words = row->words[i]; words != 0; words &= words - 1) {
            const int64_t word = 64 * i + __builtin_ctzll(words);
            for (uint64_t bits = row->bits[word]; bits != 0; bits &= bits - 1) {
                const int64_t at = 64 * word + __builtin_ctzll(bits);
                *key++ = (int32_t)at;
                *values++ = row->values[at];
            }
            row->bits[word] = 0;
        }
        row->words[i] = 0;
    }
}

typedef struct {
    const gsp_matrix *matrix;
    const float *values;
    const uint32_t *place_of; /* row -> row of the list */
    const int64_t *bank_key; /* where each bank begins; groups of one row only */
    int64_t place_step; /* from one place in a bank to the next */
    dense_row dense;
    gspi_rows *list;
} decoding;

/* One row of one group: per_row slots of every bundle, from `slot` on. */
GSPI_INLINE void decode_gs_row(const decoding *d, int64_t group, int64_t slot, int64_t row,
                               bool horizontal, uint32_t bytes) {
    const gsp_matrix *matrix = d->matrix;
    const uint64_t banks = matrix->pattern.banks;
    const int64_t per_row = matrix->pattern.per_row, step = d->place_step;
    for (uint64_t bundle = matrix->indptr[group]; bundle < matrix->indptr[group + 1]; bundle++) {
        const uint64_t first = bundle * banks + (uint64_t)slot;
        for (int64_t i = 0; i < per_row; i++) {
            const int64_t index = gspi_index(matrix->indices, first + (uint64_t)i, bytes);
            put(&d->dense, horizontal ? d->bank_key[i] + index * step : index,
                d->values[first + (uint64_t)i]);
        }
    }
    const uint64_t to = d->list->start[d->place_of[row]];
    take(&d->dense, d->list->key + to, d->list->values + to);
}

static void decode_gs(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const int64_t per_row = matrix->pattern.per_row, group_rows = gsp_group_rows(&matrix->pattern);
    for (int64_t p = 0; p < matrix->rows; p++) {
        const int64_t row = matrix->row_order ? matrix->row_order[p] : p, group = p / group_rows,
                      slot = p % group_rows * per_row;
        /* Compiled for each width of an index, and for rows that are groups. */
        if (group_rows == 1) {
            switch (matrix->index_bytes) {
            case 1: decode_gs_row(d, group, slot, row, true, 1); break;
            case 2: decode_gs_row(d, group, slot, row, true, 2); break;
            default: decode_gs_row(d, group, slot, row, true, 4); break;
            }
        } else {
            switch (matrix->index_bytes) {
            case 2: decode_gs_row(d, group, slot, row, false, 2); break;
            default: decode_gs_row(d, group, slot, row, false, 4); break;
            }
        }
    }
}

static void decode_irregular(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const uint32_t bytes = matrix->index_bytes;
    for (int64_t row = 0; row < matrix->rows; row++) {
        const uint64_t from = matrix->indptr[row], count = matrix->indptr[row + 1] - from;
        const uint64_t to = d->list->start[d->place_of[row]];
        for (uint64_t i = 0; i < count; i++)
            d->list->key[to + i] = (int32_t)gspi_index(matrix->indices, from + i, bytes);
        memcpy(d->list->values + to, d->values + from, count * sizeof(float));
    }
}

static void decode_blocks(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    for (int64_t row = 0; row < matrix->rows; row++) {
        const int64_t group = row / height;
        uint64_t to = d->list->start[d->place_of[row]];
        for (uint64_t block = matrix->indptr[group]; block < matrix->indptr[group + 1]; block++) {
            const int64_t left =
                (int64_t)gspi_index(matrix->indices, block, matrix->index_bytes) * width;
            const float *values = d->values + ((int64_t)block * height + row % height) * width;
            for (int64_t c = 0; c < gspi_min(width, matrix->cols - left); c++, to++) {
                d->list->key[to] = (int32_t)(left + c);
                d->list->values[to] = values[c];
            }
        }
    }
}

static void put_nm(void *argument, int64_t row, int64_t col, uint64_t element) {
    const decoding *d = argument;
    const uint64_t to = d->list->start[d->place_of[row]] + element - d->matrix->indptr[row];
    d->list->key[to] = (int32_t)col;
    d->list->values[to] = d->values[element];
}

/* All values of a matrix as floats: its own, or a copy that the caller frees. */
static const float *as_floats(gsp_context *context, const gsp_matrix *matrix, uint64_t count,
                              float **copy) {
    *copy = NULL;
    if (matrix->dtype == GSP_FLOAT32 && count > 0) return matrix->values;
    float *made = *copy = gspi_alloc(context, count, sizeof *made);
    for (uint64_t i = 0; made != NULL && i < count; i++)
        made[i] = gspi_value(matrix, matrix->dtype, i);
    return made;
}

static uint64_t values_of(const gsp_matrix *matrix) {
    const gsp_pattern *pattern = &matrix->pattern;
    return matrix->units * (pattern->kind == GSP_GS ? pattern->banks
                            : pattern->kind == GSP_BLOCK
                                ? (uint64_t)pattern->block_rows * pattern->block_cols
                                : 1);
}

/* Where rows of the list begin, and what lies behind each. */
static gsp_status start_rows(gsp_context *context, const gsp_matrix *matrix, const uint32_t *order,
                             uint32_t *place_of, gspi_rows *list) {
    const int64_t rows = matrix->rows;
    uint32_t *counts = gspi_alloc(context, (size_t)rows, sizeof *counts);
    list->start = gspi_alloc(context, (size_t)rows + 1, sizeof *list->start);
    if (counts != NULL && list->start != NULL) {
        gspi_count_rows(matrix, counts);
        list->start[0] = 0;
        for (int64_t place = 0; place < rows; place++) {
            const uint32_t row = order ? order[place] : (uint32_t)place;
            place_of[row] = (uint32_t)place;
            list->entries += counts[row];
            list->start[place + 1] = list->start[place] + counts[row] + 1;
        }
        list->key = gspi_alloc(context, list->start[rows], sizeof *list->key);
        list->values = gspi_alloc(context, list->start[rows], sizeof *list->values);
    }
    gspi_free(context, counts);
    GSP_CHECK(list->key != NULL && list->values != NULL, GSP_ERROR_MEMORY);
    for (int64_t place = 0; place < rows; place++) {
        list->key[list->start[place + 1] - 1] = GSPI_NO_KEY;
        list->values[list->start[place + 1] - 1] = 0;
    }
    return GSP_OK;
}

gsp_status gspi_decode_rows(gsp_context *context, const gsp_matrix *matrix, const uint32_t *order,
                            int64_t bank_stride, gspi_rows *list) {
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t banks = pattern->kind == GSP_GS ? pattern->banks : 0;
    const int64_t size = gspi_max(matrix->cols, banks * bank_stride);
    *list = (gspi_rows){.rows = matrix->rows};
    float *copy;
    uint32_t *place_of = gspi_alloc(context, (size_t)matrix->rows, sizeof *place_of);
    int64_t *bank_key = gspi_alloc(context, (size_t)banks, sizeof *bank_key);
    decoding d = {
        .matrix = matrix,
        .values = as_floats(context, matrix, values_of(matrix), &copy),
        .place_of = place_of,
        .bank_key = bank_key,
        .place_step = bank_stride > 0 || pattern->layout == GSP_CONTIGUOUS ? 1 : banks,
        .dense = {gspi_alloc(context, banks > 0 ? (size_t)size : 0, sizeof(float)),
                  gspi_calloc(context, banks > 0 ? (size_t)size / 64 + 1 : 0, sizeof(uint64_t)),
                  gspi_calloc(context, banks > 0 ? (size_t)size / 4096 + 1 : 0, sizeof(uint64_t)),
                  size},
        .list = list};
    gsp_status status = d.values != NULL && place_of != NULL && bank_key != NULL &&
                                d.dense.values != NULL && d.dense.bits != NULL &&
                                d.dense.words != NULL
                            ? GSP_OK
                            : GSP_ERROR_MEMORY;
    if (status == GSP_OK) status = start_rows(context, matrix, order, place_of, list);
    if (status == GSP_OK) {
        for (int64_t bank = 0; bank < banks; bank++)
            bank_key[bank] = bank_stride > 0 ? bank * bank_stride
                             : pattern->layout == GSP_CONTIGUOUS
                                 ? gsp_bank_begin(bank, matrix->cols, banks)
                                 : bank;
        switch (pattern->kind) {
        case GSP_GS: decode_gs(&d); break;
        case GSP_IRREGULAR: decode_irregular(&d); break;
        case GSP_BLOCK: decode_blocks(&d); break;
        case GSP_NM: gspi_visit(matrix, 0, matrix->rows, put_nm, &d); break;
        }
    }
    void *const scratch[] = {d.dense.values, d.dense.bits, d.dense.words, bank_key, place_of, copy};
    for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) gspi_free(context, scratch[i]);
    if (status != GSP_OK) gspi_free_rows(context, list);
    return status;
}

void gspi_free_rows(gsp_context *context, gspi_rows *list) {
    gspi_free(context, list->start);
    gspi_free(context, list->key);
    gspi_free(context, list->values);
    *list = (gspi_rows){0};
}
