/* The geometry of banks and groups, against definitions counted out column by column. */
#include "gsp_test.h"

/* The bank of a column, straight from the definition: the contiguous bank b holds the columns
 * floor(b * cols / banks) to floor((b + 1) * cols / banks) - 1. */
static int64_t bank_by_definition(const gsp_pattern *pattern, int64_t cols, int64_t col) {
    const int64_t banks = pattern->banks;
    if (pattern->layout == GSP_INTERLEAVED) return col % banks;
    for (int64_t bank = 0; bank < banks; bank++)
        if (bank * cols / banks <= col && col < (bank + 1) * cols / banks) return bank;
    return -1;
}

static void test_banks(void) {
    for (int layout = GSP_INTERLEAVED; layout <= GSP_CONTIGUOUS; layout++)
        for (uint32_t banks = 1; banks <= 20; banks++)
            for (int64_t cols = 1; cols <= 70; cols++) {
                const gsp_pattern pattern = {
                    .kind = GSP_GS, .banks = banks, .per_row = 1, .layout = (gsp_layout)layout};
                int64_t width[20] = {0};
                bool same = true;
                for (int64_t col = 0; col < cols; col++) {
                    const int64_t bank = bank_by_definition(&pattern, cols, col);
                    same = same && bank >= 0 && gsp_bank_of(&pattern, cols, col) == bank;
                    if (bank >= 0) width[bank]++;
                }
                EXPECT(same);
                for (int64_t bank = 0; bank < banks; bank++)
                    EXPECT_INT(gsp_bank_width(&pattern, cols, bank), width[bank]);
            }

    /* Sizes at the ends of what is allowed. */
    const gsp_pattern most = {
        .kind = GSP_GS, .banks = 65536, .per_row = 65536, .layout = GSP_CONTIGUOUS};
    const int64_t cols = UINT32_MAX - 1;
    EXPECT_INT(gsp_bank_of(&most, cols, cols - 1), 65535);
    EXPECT_INT(gsp_bank_of(&most, cols, 0), 0);
    EXPECT_INT(gsp_bank_begin(65536, cols, 65536), cols);
}

/* Whether rows x (widths of the banks) can hold n bundles: n * per_row elements in every row, at most n in
 * every bank, by the cut condition of the transportation problem counted out over the banks. */
static bool holds(const gsp_pattern *pattern, int64_t cols, int64_t rows, int64_t n) {
    int64_t have = 0;
    for (int64_t bank = 0; bank < pattern->banks; bank++)
        have += gspi_min(gsp_bank_width(pattern, cols, bank) * rows, n);
    return have >= n * pattern->per_row * rows;
}

/* The same by trying all masks of a tiny group. */
static bool holds_by_search(const gsp_pattern *pattern, int cols, int rows, int64_t n) {
    for (uint32_t mask = 0; mask < 1u << (rows * cols); mask++) {
        bool valid = true;
        int64_t in_bank[8] = {0};
        for (int row = 0; row < rows && valid; row++) {
            int64_t in_row = 0;
            for (int col = 0; col < cols; col++)
                if (mask >> (row * cols + col) & 1) {
                    in_row++;
                    valid = valid && ++in_bank[gsp_bank_of(pattern, cols, col)] <= n;
                }
            valid = valid && in_row == n * pattern->per_row;
        }
        if (valid) return true;
    }
    return false;
}

static void test_groups(void) {
    for (uint32_t banks = 1; banks <= 12; banks++)
        for (uint32_t per_row = 1; per_row <= banks; per_row++) {
            if (banks % per_row != 0) continue;
            for (int layout = GSP_INTERLEAVED; layout <= GSP_CONTIGUOUS; layout++) {
                const gsp_pattern pattern = {.kind = GSP_GS,
                                             .banks = banks,
                                             .per_row = per_row,
                                             .layout = (gsp_layout)layout};
                EXPECT_INT(gspi_check_pattern(&pattern), GSP_OK);
                const int64_t full = gsp_group_rows(&pattern);
                EXPECT_INT(full, banks / per_row);
                for (int64_t rows = 0; rows <= 3 * full; rows++)
                    EXPECT_INT(gsp_groups(&pattern, rows), (rows + full - 1) / full);
                for (int64_t cols = 0; cols <= 40; cols++)
                    for (int64_t rows = 1; rows <= full; rows++) {
                        const int64_t most = gsp_max_bundles(&pattern, cols, rows);
                        EXPECT(most >= 0 && holds(&pattern, cols, rows, most));
                        EXPECT(!holds(&pattern, cols, rows, most + 1));
                    }
            }
        }

    static const uint32_t small[][2] = {{2, 1}, {2, 2}, {3, 1}, {3, 3}, {4, 2}, {4, 4}, {6, 2}};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        for (int rows = 1; rows <= (int)(small[i][0] / small[i][1]); rows++)
            for (int cols = 1; rows * cols <= 12; cols++) {
                const gsp_pattern pattern = {
                    .kind = GSP_GS, .banks = small[i][0], .per_row = small[i][1]};
                const int64_t most = gsp_max_bundles(&pattern, cols, rows);
                EXPECT(holds_by_search(&pattern, cols, rows, most));
                EXPECT(!holds_by_search(&pattern, cols, rows, most + 1));
            }

    const gsp_pattern block = {.kind = GSP_BLOCK, .block_rows = 16, .block_cols = 1};
    EXPECT_INT(gsp_group_rows(&block), 16);
    EXPECT_INT(gsp_groups(&block, 33), 3);
    const gsp_pattern irregular = {.kind = GSP_IRREGULAR};
    EXPECT_INT(gsp_groups(&irregular, 33), 33);
}

static void test_malformed(void) {
    const gsp_pattern bad[] = {
        {.kind = GSP_GS, .banks = 0, .per_row = 1},
        {.kind = GSP_GS, .banks = 65537, .per_row = 1},
        {.kind = GSP_GS, .banks = 4, .per_row = 0},
        {.kind = GSP_GS, .banks = 4, .per_row = 3},
        {.kind = GSP_GS, .banks = 4, .per_row = 8},
        {.kind = GSP_GS, .banks = 4, .per_row = 4, .layout = (gsp_layout)2},
        {.kind = GSP_BLOCK, .block_rows = 0, .block_cols = 1},
        {.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 0},
        {.kind = GSP_NM, .nm_n = 0, .nm_m = 4},
        {.kind = GSP_NM, .nm_n = 3, .nm_m = 2},
        {.kind = (gsp_kind)4},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT_INT(gspi_check_pattern(&bad[i]), GSP_ERROR_PATTERN);

    EXPECT_INT(gspi_check_shape(0, 0), GSP_OK);
    EXPECT_INT(gspi_check_shape(-1, 1), GSP_ERROR_SHAPE);
    EXPECT_INT(gspi_check_shape(1, -1), GSP_ERROR_SHAPE);
    EXPECT_INT(gspi_check_shape(UINT32_MAX, 1), GSP_ERROR_SHAPE);
    EXPECT_INT(gspi_check_shape(UINT32_MAX - 1, UINT32_MAX - 1), GSP_ERROR_SHAPE);
}

static void test_row_order(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    const uint32_t good[] = {3, 0, 2, 1}, twice[] = {3, 0, 2, 0}, outside[] = {4, 0, 2, 1};
    EXPECT_INT(gspi_check_row_order(context, NULL, 4), GSP_OK);
    EXPECT_INT(gspi_check_row_order(context, good, 4), GSP_OK);
    EXPECT_INT(gspi_check_row_order(context, good, 0), GSP_OK);
    EXPECT_INT(gspi_check_row_order(context, twice, 4), GSP_ERROR_ROW_ORDER);
    EXPECT_INT(gspi_check_row_order(context, outside, 4), GSP_ERROR_ROW_ORDER);
    EXPECT_INT(gspi_check_row_order(context, good, 3), GSP_ERROR_ROW_ORDER);
    gsp_context_destroy(context);
}

int main(void) {
    test_banks();
    test_groups();
    test_malformed();
    test_row_order();
    return gsp_test_done("pattern");
}
