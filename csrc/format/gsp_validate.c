/* Validation: every rule of the format, of arrays that may hold anything.
 *
 * A rule is one status, and rules are checked in this order: pattern, shape, dtype, lengths, row_order,
 * scales, indptr; then, unit by unit, padding, range of indices, order, banks; and at last duplicates.
 * What a rule reads was made safe to read by those before it. That slot s of a bundle belongs to row
 * s / per_row needs no check, so banks that differ make the row and bank sums of the theorem hold.
 *
 * Nearly all matrices are valid, and all are checked when they are read and for every plan. So a rule is first
 * checked for a row or a bundle as a whole, without a branch for each index; where it is broken, a second loop
 * finds the place. */
#include <math.h>

#include "gsp_format.h"
#include "gsp_visit.h"

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

/* Whether indices [first, first + count) are all below `limit`. */
GSPI_INLINE bool are_below(const gsp_matrix *matrix, uint64_t first, uint64_t count, uint32_t limit,
                           uint32_t bytes) {
    uint32_t above = 0;
    for (uint64_t i = first; i < first + count; i++)
        above |= gspi_index(matrix->indices, i, bytes) >= limit;
    return above == 0;
}

/* A bundle of a group of one row: an index is a place in the bank of its slot. */
static gsp_status check_places(const check *work, uint64_t unit) {
    const gsp_matrix *matrix = work->matrix;
    const uint64_t banks = matrix->pattern.banks, first = unit * banks;
    /* Every bank is as wide as that, or wider by one. */
    const uint32_t narrow = (uint32_t)(matrix->cols / (int64_t)banks);
    switch (matrix->index_bytes) {
    case 1:
        if (are_below(matrix, first, banks, narrow, 1)) return GSP_OK;
        break;
    case 2:
        if (are_below(matrix, first, banks, narrow, 2)) return GSP_OK;
        break;
    default:
        if (are_below(matrix, first, banks, narrow, 4)) return GSP_OK;
        break;
    }
    for (uint64_t b = 0; b < banks; b++) {
        const int64_t place = gspi_index(matrix->indices, first + b, matrix->index_bytes);
        const int64_t width = gsp_bank_width(&matrix->pattern, matrix->cols, (int64_t)b);
        if (place >= width) return fail(work, GSP_ERROR_INDEX, "indices", first + b, place, width);
    }
    return GSP_OK;
}

/* Whether slots [first, first + used) of a bundle keep the rules, for 2, 4, ..., 64 interleaved banks: as many banks as
 * slots, banks of a row ascend, and no column lies outside. */
GSPI_INLINE bool is_bundle(const gsp_matrix *matrix, uint64_t first, int64_t used, int64_t per_row,
                           uint32_t bytes) {
    const uint32_t count = matrix->pattern.banks, low_bits = count - 1;
    const int64_t last = matrix->cols - 1;
    uint64_t held = 0;
    int64_t room = 0; /* negative once one of those put into it was */
    for (int64_t s = 0; s < used; s++) {
        const uint32_t col = gspi_index(matrix->indices, first + (uint64_t)s, bytes);
        held |= (uint64_t)1 << (col & low_bits);
        room |= last - col;
    }
    for (int64_t begin = 0; per_row > 1 && begin < used; begin += per_row)
        for (int64_t s = begin + 1; s < begin + per_row; s++) {
            const uint64_t slot = first + (uint64_t)s;
            room |= (int64_t)(gspi_index(matrix->indices, slot, bytes) & low_bits) -
                    (gspi_index(matrix->indices, slot - 1, bytes) & low_bits);
        }
    const bool differ =
        used == count ? held == UINT64_MAX >> (64 - count) : __builtin_popcountll(held) == used;
    return differ && room >= 0;
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
    if (used < count) GSP_TRY(check_empty(work, first + (uint64_t)used, (uint64_t)(count - used)));
    if (matrix->pattern.layout == GSP_INTERLEAVED && count <= 64 && (count & (count - 1)) == 0) {
        /* Compiled for the most common patterns. */
        if (matrix->index_bytes != 2) {
            if (is_bundle(matrix, first, used, per_row, 4)) return GSP_OK;
        } else if (count == 16 && used == 16 && per_row == 1) {
            if (is_bundle(matrix, first, 16, 1, 2)) return GSP_OK;
        } else if (count == 16 && used == 16 && per_row == 4) {
            if (is_bundle(matrix, first, 16, 4, 2)) return GSP_OK;
        } else if (is_bundle(matrix, first, used, per_row, 2)) {
            return GSP_OK;
        }
    }
    int64_t before = -1; /* bank of the slot before, in the same row */
    for (int64_t s = 0; s < used; s++) {
        const uint64_t slot = first + (uint64_t)s;
        const uint32_t col = gspi_index(matrix->indices, slot, matrix->index_bytes);
        if (col >= matrix->cols)
            return fail(work, GSP_ERROR_INDEX, "indices", slot, col, matrix->cols);
        const int64_t bank = gsp_bank_of(&matrix->pattern, matrix->cols, col);
        if (held[bank] == unit + 1) return fail(work, GSP_ERROR_BANKS, "indices", slot, col, bank);
        held[bank] = unit + 1;
        if (s % per_row != 0 && bank < before)
            return fail(work, GSP_ERROR_ORDER, "indices", slot, col, bank);
        before = bank;
    }
    return GSP_OK;
}

/* Where in `seen` the slot of a bundle is noted. Places in banks are as good as columns, and need no division. */
GSPI_INLINE uint64_t note_of(const gsp_matrix *matrix, uint64_t unit, uint64_t i, bool horizontal,
                             uint32_t bytes) {
    const uint64_t banks = matrix->pattern.banks;
    const uint64_t index = gspi_index(matrix->indices, unit * banks + i, bytes);
    return horizontal ? index * banks + i : index;
}

/* Notes the slots of row r of a group; whether all of them were new. */
GSPI_INLINE bool note_row(const gsp_matrix *matrix, int64_t group, uint64_t r, uint64_t *seen,
                          bool horizontal, uint32_t bytes) {
    const uint64_t per_row = matrix->pattern.per_row;
    uint64_t twice = 0;
    for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++)
        for (uint64_t i = r * per_row; i < (r + 1) * per_row; i++) {
            const uint64_t at = note_of(matrix, unit, i, horizontal, bytes);
            const uint64_t bit = (uint64_t)1 << at % 64;
            twice |= seen[at / 64] & bit;
            seen[at / 64] |= bit;
        }
    return twice == 0;
}

/* No column twice in a row of a group. `seen` has a bit for every column, and for every bank one more; all are 0 before
 * and after: a table of words would let a short file ask for a lot of memory. */
static gsp_status check_duplicates(const check *work, int64_t group, int64_t rows, uint64_t *seen) {
    const gsp_matrix *matrix = work->matrix;
    const uint64_t banks = matrix->pattern.banks, per_row = matrix->pattern.per_row;
    const bool horizontal = gspi_is_horizontal(&matrix->pattern);
    const uint32_t bytes = matrix->index_bytes;
    const uint64_t slots = (matrix->indptr[group + 1] - matrix->indptr[group]) * per_row;
    const size_t words = ((size_t)matrix->cols + banks) / 64 + 1;
    for (uint64_t r = 0; r < (uint64_t)rows; r++) {
        const bool right = horizontal && bytes == 1 ? note_row(matrix, group, r, seen, true, 1)
                           : horizontal             ? note_row(matrix, group, r, seen, true, bytes)
                           : bytes == 2             ? note_row(matrix, group, r, seen, false, 2)
                                                    : note_row(matrix, group, r, seen, false, 4);
        if (!right) memset(seen, 0, words * sizeof *seen);
        for (uint64_t unit = matrix->indptr[group]; !right; unit++)
            for (uint64_t i = r * per_row; i < (r + 1) * per_row; i++) {
                const uint64_t at = note_of(matrix, unit, i, horizontal, bytes);
                if ((seen[at / 64] >> at % 64 & 1) != 0)
                    return fail(work, GSP_ERROR_DUPLICATE, "indices", unit * banks + i,
                                gspi_gs_column(matrix, unit * banks + i, (int64_t)i), 0);
                seen[at / 64] |= (uint64_t)1 << at % 64;
            }
        if (slots > words / 4) {
            memset(seen, 0, words * sizeof *seen);
            continue;
        }
        for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++)
            for (uint64_t i = r * per_row; i < (r + 1) * per_row; i++)
                seen[note_of(matrix, unit, i, horizontal, bytes) / 64] = 0;
    }
    return GSP_OK;
}

static gsp_status check_gs(const check *work, gsp_context *context, bool duplicates) {
    const gsp_matrix *matrix = work->matrix;
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t group_rows = gsp_group_rows(pattern), groups = gsp_groups(pattern, matrix->rows);
    if (matrix->units == 0) return GSP_OK;
    uint64_t *held = gspi_calloc(context, pattern->banks, sizeof *held);
    uint64_t *seen =
        gspi_calloc(context, ((size_t)matrix->cols + pattern->banks) / 64 + 1, sizeof *seen);
    gsp_status status = held != NULL && seen != NULL ? GSP_OK : GSP_ERROR_MEMORY;
    for (int64_t g = 0; g < groups && status == GSP_OK; g++) {
        const int64_t rows = gspi_min(group_rows, matrix->rows - g * group_rows);
        for (uint64_t unit = matrix->indptr[g]; unit < matrix->indptr[g + 1] && status == GSP_OK;
             unit++)
            status = gspi_is_horizontal(pattern) ? check_places(work, unit)
                                                 : check_bundle(work, unit, rows, held);
        if (status == GSP_OK && duplicates) status = check_duplicates(work, g, rows, seen);
    }
    gspi_free(context, seen);
    gspi_free(context, held);
    return status;
}

/* Whether indices [first, last) ascend. */
GSPI_INLINE bool do_ascend(const gsp_matrix *matrix, uint64_t first, uint64_t last,
                           uint32_t bytes) {
    uint32_t falls = 0;
    for (uint64_t i = first + 1; i < last; i++)
        falls |= gspi_index(matrix->indices, i, bytes) <= gspi_index(matrix->indices, i - 1, bytes);
    return falls == 0;
}

/* Columns, or block columns, ascend within a row and are below `limit`. */
static gsp_status check_ascending(const check *work, int64_t group, int64_t limit) {
    const gsp_matrix *matrix = work->matrix;
    const uint64_t first = matrix->indptr[group], last = matrix->indptr[group + 1];
    const uint32_t bytes = matrix->index_bytes;
    if (first == last) return GSP_OK;
    if (gspi_index(matrix->indices, last - 1, bytes) < limit &&
        (bytes == 2 ? do_ascend(matrix, first, last, 2) : do_ascend(matrix, first, last, 4)))
        return GSP_OK;
    int64_t before = -1;
    for (uint64_t unit = first; unit < last; unit++) {
        const int64_t col = gspi_index(matrix->indices, unit, bytes);
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
            if (rows < height)
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

gsp_status gspi_validate(gsp_context *context, const gsp_matrix *matrix, const gsp_lengths *lengths,
                         gsp_fault *fault, bool duplicates) {
    if (fault != NULL) *fault = (gsp_fault){NULL, 0, 0, 0};
    const check work = {matrix, fault};
    GSP_TRY(check_lengths(&work, lengths));
    GSP_TRY(check_row_order(&work, context));
    GSP_TRY(check_scales(&work));
    GSP_TRY(check_indptr(&work));
    switch (matrix->pattern.kind) {
    case GSP_GS: return check_gs(&work, context, duplicates);
    case GSP_IRREGULAR: return check_irregular(&work);
    case GSP_BLOCK: return check_block(&work);
    case GSP_NM: return check_nm(&work, lengths);
    }
    return GSP_ERROR_PATTERN;
}

gsp_status gsp_validate(gsp_context *context, const gsp_matrix *matrix, const gsp_lengths *lengths,
                        gsp_fault *fault) {
    return gspi_validate(context, matrix, lengths, fault, true);
}
