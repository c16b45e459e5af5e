/* The geometry of compact matrices: widths of indices, sizes of arrays, banks of columns. */
#include "gsp_format.h"

#define GSP_NM_MAX_WINDOW 256

size_t gsp_dtype_size(gsp_dtype dtype) {
    switch (dtype) {
    case GSP_FLOAT64: return 8;
    case GSP_FLOAT32: return 4;
    case GSP_FLOAT16:
    case GSP_BFLOAT16: return 2;
    case GSP_INT8: return 1;
    }
    return 0;
}

/* Bytes of an index that takes `values` different values; 2 at least where `wide`. */
static uint32_t index_width(int64_t values, bool wide) {
    if (values <= 256 && !wide) return 1;
    return values <= 65536 ? 2 : 4;
}

uint32_t gsp_index_bytes(const gsp_pattern *pattern, int64_t cols) {
    switch (pattern->kind) {
    case GSP_GS:
        /* Banks of either layout differ by one column at most. */
        if (gspi_is_horizontal(pattern))
            return index_width(gspi_ceil_div(cols, pattern->banks), false);
        return index_width(cols, true);
    case GSP_IRREGULAR: return index_width(cols, true);
    case GSP_BLOCK: return index_width(gspi_ceil_div(cols, pattern->block_cols), true);
    case GSP_NM: return pattern->nm_m <= 4 ? 2 : pattern->nm_m <= 16 ? 4 : 8;
    }
    return 0;
}

int64_t gspi_nm_row_slots(const gsp_pattern *pattern, int64_t cols) {
    const int64_t n = pattern->nm_n, m = pattern->nm_m;
    return cols / m * n + gspi_min(n, cols % m);
}

gsp_status gsp_sizes(const gsp_matrix *matrix, gsp_lengths *sizes) {
    const gsp_pattern *pattern = &matrix->pattern;
    GSP_TRY(gspi_check_shape(matrix->rows, matrix->cols));
    GSP_TRY(gspi_check_pattern(pattern));
    GSP_CHECK(pattern->kind != GSP_NM || pattern->nm_m <= GSP_NM_MAX_WINDOW, GSP_ERROR_PATTERN);
    const size_t value_bytes = gsp_dtype_size(matrix->dtype);
    GSP_CHECK(value_bytes != 0, GSP_ERROR_DTYPE);
    GSP_CHECK(matrix->units <= UINT32_MAX, GSP_ERROR_SHAPE);

    size_t per_unit = 1;
    if (pattern->kind == GSP_GS) per_unit = pattern->banks;
    if (pattern->kind == GSP_BLOCK)
        GSP_CHECK(gspi_mul(pattern->block_rows, pattern->block_cols, &per_unit), GSP_ERROR_SHAPE);
    size_t slots;
    GSP_CHECK(gspi_mul((size_t)matrix->units, per_unit, &slots), GSP_ERROR_SHAPE);
    GSP_CHECK(gspi_mul(slots, value_bytes, &sizes->values), GSP_ERROR_SHAPE);

    const uint32_t index_bytes = gsp_index_bytes(pattern, matrix->cols);
    if (pattern->kind == GSP_NM) {
        sizes->indices = ((size_t)matrix->units * index_bytes + 7) / 8;
    } else {
        const size_t indices = pattern->kind == GSP_BLOCK ? (size_t)matrix->units : slots;
        GSP_CHECK(gspi_mul(indices, index_bytes, &sizes->indices), GSP_ERROR_SHAPE);
    }
    sizes->indptr = ((size_t)gsp_groups(pattern, matrix->rows) + 1) * sizeof *matrix->indptr;
    sizes->row_order = matrix->row_order ? (size_t)matrix->rows * sizeof *matrix->row_order : 0;
    sizes->scales = matrix->dtype == GSP_INT8 ? (size_t)matrix->rows * sizeof *matrix->scales : 0;
    return GSP_OK;
}

gsp_status gspi_banks_create(gsp_context *context, const gsp_pattern *pattern, int64_t cols,
                             gspi_banks *banks) {
    const int64_t count = pattern->banks;
    GSP_CHECK(cols + count < UINT32_MAX, GSP_ERROR_SHAPE);
    banks->bank = gspi_alloc(context, (size_t)(cols + count), sizeof *banks->bank);
    banks->place = gspi_alloc(context, (size_t)cols, sizeof *banks->place);
    if (banks->bank == NULL || banks->place == NULL) {
        gspi_banks_destroy(context, banks);
        return GSP_ERROR_MEMORY;
    }
    for (int64_t bank = 0; bank < count; bank++) {
        const bool interleaved = pattern->layout == GSP_INTERLEAVED;
        const int64_t step = interleaved ? count : 1;
        const int64_t width = gsp_bank_width(pattern, cols, bank);
        int64_t col = interleaved ? bank : gsp_bank_begin(bank, cols, count);
        for (int64_t place = 0; place < width; place++, col += step) {
            banks->bank[col] = (uint16_t)bank;
            banks->place[col] = (uint32_t)place;
        }
        banks->bank[cols + bank] = (uint16_t)bank;
    }
    return GSP_OK;
}

void gspi_banks_destroy(gsp_context *context, gspi_banks *banks) {
    gspi_free(context, banks->bank);
    gspi_free(context, banks->place);
    *banks = (gspi_banks){NULL, NULL};
}
