/* First step of a plan: the rows of a matrix, fullest first, each in the order of x.
 *
 * Formats that keep their columns in order are copied. The slots of bundles are not in order: they go to a dense
 * row, with a bit for each that is there, and are read back by those bits. That costs the same for any number of
 * bundles, and no comparison. */
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

/* A dense row: values, and a bit for each that is there. All bits are 0 between rows. */
typedef struct {
    float *values;
    uint64_t *bits;
    uint64_t
        *words; /* a bit for each word of bits; NULL for rows so short that all are looked at */
    int64_t size;
} dense_row;

/* Rows of so many words of bits are read without a look at which are empty. */
#define FEW_WORDS 64

GSPI_INLINE void put(const dense_row *row, int64_t at, float value) {
    row->values[at] = value;
    row->bits[at / 64] |= (uint64_t)1 << at % 64;
    if (row->words != NULL) row->words[at / 4096] |= (uint64_t)1 << at / 64 % 64;
}

/* Moves what one word holds to where the elements go, in order; returns the place behind. */
static gspi_element *take_word(const dense_row *row, int64_t word, gspi_element *to) {
    for (uint64_t bits = row->bits[word]; bits != 0; bits &= bits - 1) {
        const int64_t at = 64 * word + __builtin_ctzll(bits);
        *to++ = (gspi_element){(int32_t)at, row->values[at]};
    }
    row->bits[word] = 0;
    return to;
}

static gspi_element *take(const dense_row *row, gspi_element *to) {
    if (row->words == NULL) {
        for (int64_t word = 0; word <= row->size / 64; word++) to = take_word(row, word, to);
        return to;
    }
    for (int64_t i = 0; i <= row->size / 4096; i++) {
        for (uint64_t words = row->words[i]; words != 0; words &= words - 1)
            to = take_word(row, 64 * i + __builtin_ctzll(words), to);
        row->words[i] = 0;
    }
    return to;
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

static gspi_element *elements_of(const decoding *d, int64_t row) {
    return d->list->elements + d->list->start[d->place_of[row]];
}

/* One row of one group: per_row slots of every bundle, from `slot` on. Returns whether all have columns of their
 * own. */
GSPI_INLINE bool decode_gs_row(const decoding *d, int64_t group, int64_t slot, int64_t row,
                               bool horizontal, uint32_t bytes) {
    const gsp_matrix *matrix = d->matrix;
    const dense_row dense = d->dense;
    const uint64_t banks = matrix->pattern.banks;
    const int64_t per_row = matrix->pattern.per_row, step = d->place_step;
    for (uint64_t bundle = matrix->indptr[group]; bundle < matrix->indptr[group + 1]; bundle++) {
        const uint64_t first = bundle * banks + (uint64_t)slot;
        for (int64_t i = 0; i < per_row; i++) {
            const int64_t index = gspi_index(matrix->indices, first + (uint64_t)i, bytes);
            put(&dense, horizontal ? d->bank_key[i] + index * step : index,
                d->values[first + (uint64_t)i]);
        }
    }
    const gspi_element *const end = take(&dense, elements_of(d, row));
    return end == d->list->elements + d->list->start[d->place_of[row] + 1] - 1;
}

static gsp_status decode_gs(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const int64_t per_row = matrix->pattern.per_row, group_rows = gsp_group_rows(&matrix->pattern);
    for (int64_t p = 0; p < matrix->rows; p++) {
        const int64_t row = matrix->row_order ? matrix->row_order[p] : p, group = p / group_rows,
                      slot = p % group_rows * per_row;
        bool right;
        /* Compiled for each width of an index, and for rows that are groups. */
        if (group_rows == 1) {
            switch (matrix->index_bytes) {
            case 1: right = decode_gs_row(d, group, slot, row, true, 1); break;
            case 2: right = decode_gs_row(d, group, slot, row, true, 2); break;
            default: right = decode_gs_row(d, group, slot, row, true, 4); break;
            }
        } else {
            switch (matrix->index_bytes) {
            case 2: right = decode_gs_row(d, group, slot, row, false, 2); break;
            default: right = decode_gs_row(d, group, slot, row, false, 4); break;
            }
        }
        GSP_CHECK(right, GSP_ERROR_DUPLICATE);
    }
    return GSP_OK;
}

static void decode_irregular(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const uint32_t bytes = matrix->index_bytes;
    for (int64_t row = 0; row < matrix->rows; row++) {
        gspi_element *to = elements_of(d, row);
        for (uint64_t i = matrix->indptr[row]; i < matrix->indptr[row + 1]; i++)
            *to++ = (gspi_element){(int32_t)gspi_index(matrix->indices, i, bytes), d->values[i]};
    }
}

static void decode_blocks(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    for (int64_t row = 0; row < matrix->rows; row++) {
        const int64_t group = row / height;
        gspi_element *to = elements_of(d, row);
        for (uint64_t block = matrix->indptr[group]; block < matrix->indptr[group + 1]; block++) {
            const int64_t left =
                (int64_t)gspi_index(matrix->indices, block, matrix->index_bytes) * width;
            const float *values = d->values + ((int64_t)block * height + row % height) * width;
            for (int64_t c = 0; c < gspi_min(width, matrix->cols - left); c++)
                *to++ = (gspi_element){(int32_t)(left + c), values[c]};
        }
    }
}

static void decode_nm(const decoding *d) {
    const gsp_matrix *matrix = d->matrix;
    const int64_t n = matrix->pattern.nm_n, m = matrix->pattern.nm_m;
    for (int64_t row = 0; row < matrix->rows; row++) {
        uint64_t slot = matrix->indptr[row];
        gspi_element *to = elements_of(d, row);
        for (int64_t left = 0; left < matrix->cols; left += m)
            for (int64_t i = gspi_min(n, matrix->cols - left); i > 0; i--, slot++) {
                const uint32_t position = gspi_position(matrix->indices, slot, matrix->index_bytes);
                *to++ = (gspi_element){(int32_t)(left + position), d->values[slot]};
            }
    }
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
        list->elements = gspi_alloc(context, list->start[rows], sizeof *list->elements);
    }
    gspi_free(context, counts);
    GSP_CHECK(list->elements != NULL, GSP_ERROR_MEMORY);
    for (int64_t place = 0; place < rows; place++)
        list->elements[list->start[place + 1] - 1] = (gspi_element){GSPI_NO_KEY, 0};
    return GSP_OK;
}

gsp_status gspi_decode_rows(gsp_context *context, const gsp_matrix *matrix, const uint32_t *order,
                            int64_t bank_stride, gspi_rows *list) {
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t banks = pattern->kind == GSP_GS ? pattern->banks : 0;
    const int64_t size = gspi_max(matrix->cols, banks * bank_stride);
    *list = (gspi_rows){.rows = matrix->rows};
    const int64_t words = banks > 0 ? size / 64 + 1 : 0;
    float *copy;
    uint32_t *place_of = gspi_alloc(context, (size_t)matrix->rows, sizeof *place_of);
    int64_t *bank_key = gspi_alloc(context, (size_t)banks, sizeof *bank_key);
    decoding d = {.matrix = matrix,
                  .values = as_floats(context, matrix, values_of(matrix), &copy),
                  .place_of = place_of,
                  .bank_key = bank_key,
                  .place_step = bank_stride > 0 || pattern->layout == GSP_CONTIGUOUS ? 1 : banks,
                  .dense = {.values = gspi_alloc(context, 64 * (size_t)words, sizeof(float)),
                            .bits = gspi_calloc(context, (size_t)words, sizeof(uint64_t)),
                            .size = size},
                  .list = list};
    if (words > FEW_WORDS)
        d.dense.words = gspi_calloc(context, (size_t)words / 64 + 1, sizeof(uint64_t));
    gsp_status status = d.values != NULL && place_of != NULL && bank_key != NULL &&
                                d.dense.values != NULL && d.dense.bits != NULL &&
                                (words <= FEW_WORDS || d.dense.words != NULL)
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
        case GSP_GS: status = decode_gs(&d); break;
        case GSP_IRREGULAR: decode_irregular(&d); break;
        case GSP_BLOCK: decode_blocks(&d); break;
        case GSP_NM: decode_nm(&d); break;
        }
    }
    void *const scratch[] = {d.dense.values, d.dense.bits, d.dense.words, bank_key, place_of, copy};
    for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) gspi_free(context, scratch[i]);
    if (status != GSP_OK) gspi_free_rows(context, list);
    return status;
}

void gspi_free_rows(gsp_context *context, gspi_rows *list) {
    gspi_free(context, list->start);
    gspi_free(context, list->elements);
    *list = (gspi_rows){0};
}
