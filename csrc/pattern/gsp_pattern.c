/* The geometry of patterns: banks, groups, how much a group can hold, and what is well formed. */
#include "../gsp_internal.h"

#define GSP_MAX_BANKS 65536

gsp_status gspi_check_shape(int64_t rows, int64_t cols) {
    size_t bytes;
    GSP_CHECK(rows >= 0 && rows < UINT32_MAX && cols >= 0 && cols < UINT32_MAX, GSP_ERROR_SHAPE);
    GSP_CHECK(gspi_mul((size_t)rows, (size_t)cols, &bytes) && gspi_mul(bytes, 8, &bytes),
              GSP_ERROR_SHAPE);
    return GSP_OK;
}

gsp_status gspi_check_pattern(const gsp_pattern *pattern) {
    switch (pattern->kind) {
    case GSP_GS:
        GSP_CHECK(pattern->banks >= 1 && pattern->banks <= GSP_MAX_BANKS, GSP_ERROR_PATTERN);
        GSP_CHECK(pattern->per_row >= 1 && pattern->banks % pattern->per_row == 0,
                  GSP_ERROR_PATTERN);
        GSP_CHECK(pattern->layout == GSP_INTERLEAVED || pattern->layout == GSP_CONTIGUOUS,
                  GSP_ERROR_PATTERN);
        return GSP_OK;
    case GSP_IRREGULAR: return GSP_OK;
    case GSP_BLOCK:
        GSP_CHECK(pattern->block_rows >= 1 && pattern->block_cols >= 1, GSP_ERROR_PATTERN);
        return GSP_OK;
    case GSP_NM:
        GSP_CHECK(pattern->nm_n >= 1 && pattern->nm_m >= pattern->nm_n, GSP_ERROR_PATTERN);
        return GSP_OK;
    }
    return GSP_ERROR_PATTERN;
}

gsp_status gspi_check_row_order(gsp_context *context, const uint32_t *row_order, int64_t rows) {
    if (row_order == NULL) return GSP_OK;
    uint8_t *seen = gspi_calloc(context, (size_t)rows, 1);
    GSP_CHECK(seen != NULL, GSP_ERROR_MEMORY);
    gsp_status status = GSP_OK;
    for (int64_t p = 0; p < rows && status == GSP_OK; p++) {
        if (row_order[p] >= rows || seen[row_order[p]]) status = GSP_ERROR_ROW_ORDER;
        else seen[row_order[p]] = 1;
    }
    gspi_free(context, seen);
    return status;
}

int64_t gsp_group_rows(const gsp_pattern *pattern) {
    switch (pattern->kind) {
    case GSP_GS: return pattern->banks / pattern->per_row;
    case GSP_BLOCK: return pattern->block_rows;
    default: return 1;
    }
}

int64_t gsp_groups(const gsp_pattern *pattern, int64_t rows) {
    return gspi_ceil_div(rows, gsp_group_rows(pattern));
}

int64_t gsp_bank_begin(int64_t bank, int64_t cols, int64_t banks) { return bank * cols / banks; }

int64_t gsp_bank_width(const gsp_pattern *pattern, int64_t cols, int64_t bank) {
    const int64_t banks = pattern->banks;
    if (pattern->layout == GSP_CONTIGUOUS)
        return gsp_bank_begin(bank + 1, cols, banks) - gsp_bank_begin(bank, cols, banks);
    return cols / banks + (bank < cols % banks);
}

int64_t gsp_bank_of(const gsp_pattern *pattern, int64_t cols, int64_t col) {
    const int64_t banks = pattern->banks;
    if (pattern->layout == GSP_INTERLEAVED) return col % banks;
    /* The last bank that begins at or before the column: floor(b * cols / banks) <= col. */
    return ((col + 1) * banks - 1) / cols;
}

/* n bundles fit if sum over banks of min(width, n / rows) >= n * per_row. Widths of either
 * layout are floor(cols / banks) or one more, so the sum has two terms; multiply by rows to stay
 * in integers. */
int64_t gsp_max_bundles(const gsp_pattern *pattern, int64_t cols, int64_t group_rows) {
    const int64_t banks = pattern->banks, per_row = pattern->per_row;
    const int64_t narrow = cols / banks, wide_banks = cols % banks;
    if (group_rows == 0) return 0;
    /* Up to narrow * rows every bank still has room for its share n / rows, and banks >= rows *
     * per_row. A row has cols elements and n bundles take per_row of them each; short groups
     * come near to that. */
    int64_t low = narrow * group_rows, high = cols / per_row;
    while (low < high) {
        const int64_t n = low + (high - low + 1) / 2;
        const int64_t have = (banks - wide_banks) * gspi_min(narrow * group_rows, n) +
                             wide_banks * gspi_min((narrow + 1) * group_rows, n);
        if (have >= n * per_row * group_rows) low = n;
        else high = n - 1;
    }
    return low;
}
