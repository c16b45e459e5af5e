/* Validation: every rule of the format, of arrays that may hold anything.
 *
 * A rule is one status, and rules are checked in this order: pattern, shape, dtype, lengths, row_order,
 * scales, indptr; then, unit by unit, padding, range of indices, order, banks; and at last duplicates.
 * What a rule reads was made safe to read by those before it. That slot s of a bundle belongs to row
 * s / per_row needs no check, so banks that differ make the row and bank sums of the theorem hold. */
#include <math.h>

#include "gsp_format.h"

typedef struct {
    const gsp_matrix *matrix;
    gsp_fault *fault;
} check;

/* Notes the place, and gives the status back. */
static gsp_status fail(const check *work, gsp_status status, const char *array, uint64_t element,
                       int64_t value, int64_t bound) {
    if (work->fault != NULL) *work->fault = (gsp_fault){array, element, value, bound};
    return status;
}

static gsp_status check_lengths(const check *work, const gsp_lengths *lengths) {
    gsp_lengths right;
    GSP_TRY(gsp_sizes(work->matrix, &right));
    const uint32_t index_bytes = gsp_index_bytes(&work->matrix->pattern, work->matrix->cols);
    if (work->matrix->index_bytes != index_bytes)
        return fail(work, GSP_ERROR_DTYPE, "indices", 0, work->matrix->index_bytes, index_bytes);
    const struct {
        const char *array;
        size_t have, want;
    } arrays[] = {
        {"values", lengths->values, right.values},
        {"indices", lengths->indices, right.indices},
        {"indptr", lengths->indptr, right.indptr},
        {"row_order", lengths->row_order, right.row_order},
        {"scales", lengths->scales, right.scales},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        if (arrays[i].have != arrays[i].want)
            return fail(work, GSP_ERROR_SHAPE, arrays[i].array, 0, (int64_t)arrays[i].have,
                        (int64_t)arrays[i].want);
    return GSP_OK;
}

static gsp_status check_row_order(const check *work, gsp_context *context) {
    const gsp_matrix *matrix = work->matrix;
    if (matrix->row_order == NULL) return GSP_OK;
    GSP_CHECK(matrix->pattern.kind == GSP_GS, GSP_ERROR_PATTERN);
    uint8_t *seen = gspi_calloc(context, (size_t)matrix->rows, 1);
    GSP_CHECK(seen != NULL, GSP_ERROR_MEMORY);
    gsp_status status = GSP_OK;
    for (int64_t p = 0; p < matrix->rows && status == GSP_OK; p++) {
        const uint32_t row = matrix->row_order[p];
        if (row >= matrix->rows || seen[row])
            status = fail(work, GSP_ERROR_ROW_ORDER, "row_order", (uint64_t)p, row, matrix->rows);
        else seen[row] = 1;
    }
    gspi_free(context, seen);
    return status;
}

static gsp_status check_scales(const check *work) {
    const gsp_matrix *matrix = work->matrix;
    if (matrix->dtype != GSP_INT8) return matrix->scales == NULL ? GSP_OK : GSP_ERROR_DTYPE;
    GSP_CHECK(matrix->scales != NULL || matrix->rows == 0, GSP_ERROR_DTYPE);
    for (int64_t row = 0; row < matrix->rows; row++)
        if (!isfinite(matrix->scales[row]))
            return fail(work, GSP_ERROR_SCALES, "scales", (uint64_t)row, 0, 0);
    return GSP_OK;
}

static gsp_status check_indptr(const check *work) {
    const gsp_matrix *matrix = work->matrix;
    const uint32_t *indptr = matrix->indptr;
    const int64_t groups = gsp_groups(&matrix->pattern, matrix->rows);
    if (indptr[0] != 0) return fail(work, GSP_ERROR_INDPTR, "indptr", 0, indptr[0], 0);
    /* Every row of an N:M matrix has the same number of slots. */
    const bool fixed = matrix->pattern.kind == GSP_NM;
    const int64_t slots = fixed ? gspi_nm_row_slots(&matrix->pattern, matrix->cols) : 0;
    for (int64_t g = 0; g < groups; g++)
        if (indptr[g + 1] < indptr[g] || (fixed && indptr[g + 1] - (int64_t)indptr[g] != slots))
            return fail(work, GSP_ERROR_INDPTR, "indptr", (uint64_t)g + 1, indptr[g + 1],
                        indptr[g] + slots);
    if (indptr[groups] != matrix->units)
        return fail(work, GSP_ERROR_INDPTR, "indptr", (uint64_t)groups, indptr[groups],
                    (int64_t)matrix->units);
    return GSP_OK;
}

static bool is_zero(const char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != 0) return false;
    return true;
}

/* Values [first, first + count) must be 0, all bits of them. */
static gsp_status check_empty(const check *work, uint64_t first, uint64_t count) {
    const size_t bytes = gsp_dtype_size(work->matrix->dtype);
    const char *values = (const char *)work->matrix->values + first * bytes;
    if (is_zero(values, count * bytes)) return GSP_OK;
    while (is_zero(values, bytes)) {
        values += bytes;
        first++;
    }
    return fail(work, GSP_ERROR_PADDING, "values", first, 0, 0);
}

/* A bundle of a group of one row: an index is a place in the bank of its slot. */
static gsp_status check_places(const check *work, uint64_t unit) {
    const gsp_matrix *matrix = work->matrix;
    const int64_t banks = matrix->pattern.banks, narrow = matrix->cols / banks;
    for (int64_t b = 0; b < banks; b++) {
        const uint64_t slot = unit * (uint64_t)banks + (uint64_t)b;
        const int64_t place = gspi_index(matrix->indices, slot, matrix->index_bytes);
        if (place < narrow) continue; /* every bank is as wide as that, or wider by one */
        const int64_t width = gsp_bank_width(&matrix->pattern, matrix->cols, b);
        if (place >= width) return fail(work, GSP_ERROR_INDEX, "indices", slot, place, width);
    }
    return GSP_OK;
}

/* A bundle of a group of several rows. `held` [banks] notes the unit that used a bank last, plus 1. */
static gsp_status check_bundle(const check *work, uint64_t unit, int64_t rows, uint64_t *held) {
    const gsp_matrix *matrix = work->matrix;
    const int64_t count = matrix->pattern.banks, per_row = matrix->pattern.per_row,
                  used = rows * per_row;
    const uint64_t first = unit * (uint64_t)count;
    for (int64_t s = used; s < count; s++) {
        const uint32_t col = gspi_index(matrix->indices, first + (uint64_t)s, matrix->index_bytes);
        if (col != 0) return fail(work, GSP_ERROR_PADDING, "indices", first + (uint64_t)s, col, 0);
    }
    GSP_TRY(check_empty(work, first + (uint64_t)used, (uint64_t)(count - used)));
    /* A remainder without a division, for the most common patterns. */
    const uint32_t low_bits = matrix->pattern.banks - 1;
    const bool interleaved =
        matrix->pattern.layout == GSP_INTERLEAVED && (matrix->pattern.banks & low_bits) == 0;
    int64_t before = -1; /* bank of the slot before, in the same row */
    for (int64_t s = 0; s < used; s++) {
        const uint64_t slot = first + (uint64_t)s;
        const uint32_t col = gspi_index(matrix->indices, slot, matrix->index_bytes);
        if (col >= matrix->cols)
            return fail(work, GSP_ERROR_INDEX, "indices", slot, col, matrix->cols);
        const int64_t bank =
            interleaved ? col & low_bits : gsp_bank_of(&matrix->pattern, matrix->cols, col);
        if (held[bank] == unit + 1) return fail(work, GSP_ERROR_BANKS, "indices", slot, col, bank);
        held[bank] = unit + 1;
        if (per_row > 1 && s % per_row != 0 && bank < before)
            return fail(work, GSP_ERROR_ORDER, "indices", slot, col, bank);
        before = bank;
    }
    return GSP_OK;
}

/* No column twice in a row of a group. `seen` has a bit for every column, and for every bank one more; all are 0 before
 * and after: a table of words would let a short file ask for a lot of memory. */
static gsp_status check_duplicates(const check *work, int64_t group, int64_t rows, uint8_t *seen) {
    const gsp_matrix *matrix = work->matrix;
    const uint64_t banks = matrix->pattern.banks, per_row = matrix->pattern.per_row;
    const bool horizontal = gspi_is_horizontal(&matrix->pattern);
    const size_t all = ((size_t)matrix->cols + banks) / 8 + 1;
    for (uint64_t r = 0; r < (uint64_t)rows; r++) {
        for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++)
            for (uint64_t i = r * per_row; i < (r + 1) * per_row; i++) {
                const uint64_t slot = unit * banks + i;
                const uint64_t index = gspi_index(matrix->indices, slot, matrix->index_bytes);
                /* Places in banks are as good as columns, and need no division. */
                const uint64_t at = horizontal ? index * banks + i : index;
                const uint8_t bit = (uint8_t)(1u << at % 8);
                if ((seen[at / 8] & bit) != 0)
                    return fail(work, GSP_ERROR_DUPLICATE, "indices", slot,
                                gspi_gs_column(matrix, slot, (int64_t)i), 0);
                seen[at / 8] |= bit;
            }
        const uint64_t units = matrix->indptr[group + 1] - matrix->indptr[group];
        if (units * per_row > all / 16) {
            memset(seen, 0, all);
            continue;
        }
        for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++)
            for (uint64_t i = r * per_row; i < (r + 1) * per_row; i++) {
                const uint64_t index =
                    gspi_index(matrix->indices, unit * banks + i, matrix->index_bytes);
                seen[(horizontal ? index * banks + i : index) / 8] = 0;
            }
    }
    return GSP_OK;
}

static gsp_status check_gs(const check *work, gsp_context *context) {
    const gsp_matrix *matrix = work->matrix;
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t group_rows = gsp_group_rows(pattern), groups = gsp_groups(pattern, matrix->rows);
    if (matrix->units == 0) return GSP_OK;
    uint64_t *held = gspi_calloc(context, pattern->banks, sizeof *held);
    uint8_t *seen = gspi_calloc(context, ((size_t)matrix->cols + pattern->banks) / 8 + 1, 1);
    gsp_status status = held != NULL && seen != NULL ? GSP_OK : GSP_ERROR_MEMORY;
    for (int64_t g = 0; g < groups && status == GSP_OK; g++) {
        const int64_t rows = gspi_min(group_rows, matrix->rows - g * group_rows);
        for (uint64_t unit = matrix->indptr[g]; unit < matrix->indptr[g + 1] && status == GSP_OK;
             unit++)
            status = gspi_is_horizontal(pattern) ? check_places(work, unit)
                                                 : check_bundle(work, unit, rows, held);
        if (status == GSP_OK) status = check_duplicates(work, g, rows, seen);
    }
    gspi_free(context, seen);
    gspi_free(context, held);
    return status;
}

/* Columns, or block columns, ascend within a row and are below `limit`. */
static gsp_status check_ascending(const check *work, int64_t group, int64_t limit) {
    const gsp_matrix *matrix = work->matrix;
    int64_t before = -1;
    for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++) {
        const int64_t col = gspi_index(matrix->indices, unit, matrix->index_bytes);
        if (col >= limit) return fail(work, GSP_ERROR_INDEX, "indices", unit, col, limit);
        if (col == before) return fail(work, GSP_ERROR_DUPLICATE, "indices", unit, col, 0);
        if (col < before) return fail(work, GSP_ERROR_ORDER, "indices", unit, col, before);
        before = col;
    }
    return GSP_OK;
}

static gsp_status check_irregular(const check *work) {
    for (int64_t row = 0; row < work->matrix->rows; row++)
        GSP_TRY(check_ascending(work, row, work->matrix->cols));
    return GSP_OK;
}

/* What of a block lies outside the matrix must be 0. */
static gsp_status check_block(const check *work) {
    const gsp_matrix *matrix = work->matrix;
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    const int64_t groups = gsp_groups(&matrix->pattern, matrix->rows);
    const int64_t limit = gspi_ceil_div(matrix->cols, width);
    for (int64_t g = 0; g < groups; g++) {
        GSP_TRY(check_ascending(work, g, limit));
        const int64_t rows = gspi_min(height, matrix->rows - g * height);
        for (uint64_t unit = matrix->indptr[g]; unit < matrix->indptr[g + 1]; unit++) {
            const int64_t block = gspi_index(matrix->indices, unit, matrix->index_bytes);
            const int64_t cols = gspi_min(width, matrix->cols - block * width);
            const uint64_t first = unit * (uint64_t)(height * width);
            for (int64_t r = 0; r < rows && cols < width; r++)
                GSP_TRY(check_empty(work, first + (uint64_t)(r * width + cols),
                                    (uint64_t)(width - cols)));
            GSP_TRY(check_empty(work, first + (uint64_t)(rows * width),
                                (uint64_t)((height - rows) * width)));
        }
    }
    return GSP_OK;
}

static gsp_status check_nm(const check *work, const gsp_lengths *lengths) {
    const gsp_matrix *matrix = work->matrix;
    const int64_t n = matrix->pattern.nm_n, m = matrix->pattern.nm_m;
    const uint32_t bits = matrix->index_bytes;
    uint64_t slot = 0;
    for (int64_t row = 0; row < matrix->rows; row++)
        for (int64_t window = 0; window < matrix->cols; window += m) {
            const int64_t width = gspi_min(m, matrix->cols - window);
            int64_t before = -1;
            for (int64_t i = 0; i < gspi_min(n, width); i++, slot++) {
                const int64_t position = gspi_position(matrix->indices, slot, bits);
                if (position >= width)
                    return fail(work, GSP_ERROR_INDEX, "indices", slot, position, width);
                if (position == before)
                    return fail(work, GSP_ERROR_DUPLICATE, "indices", slot, position, 0);
                if (position < before)
                    return fail(work, GSP_ERROR_ORDER, "indices", slot, position, before);
                before = position;
            }
        }
    /* Bits behind the last position. */
    for (; slot < (uint64_t)lengths->indices * (8 / bits); slot++) {
        const uint32_t position = gspi_position(matrix->indices, slot, bits);
        if (position != 0) return fail(work, GSP_ERROR_PADDING, "indices", slot, position, 0);
    }
    return GSP_OK;
}

gsp_status gsp_validate(gsp_context *context, const gsp_matrix *matrix, const gsp_lengths *lengths,
                        gsp_fault *fault) {
    if (fault != NULL) *fault = (gsp_fault){NULL, 0, 0, 0};
    const check work = {matrix, fault};
    GSP_TRY(check_lengths(&work, lengths));
    GSP_TRY(check_row_order(&work, context));
    GSP_TRY(check_scales(&work));
    GSP_TRY(check_indptr(&work));
    switch (matrix->pattern.kind) {
    case GSP_GS: return check_gs(&work, context);
    case GSP_IRREGULAR: return check_irregular(&work);
    case GSP_BLOCK: return check_block(&work);
    case GSP_NM: return check_nm(&work, lengths);
    }
    return GSP_ERROR_PATTERN;
}
