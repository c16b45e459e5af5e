/* Encoding: weights and a mask become the arrays of a compact matrix. */
#include "gsp_format.h"

/* What the bodies of both passes share; workspaces are per worker. */
typedef struct {
    const gsp_matrix *matrix;
    const uint8_t *mask;
    const char *weights;
    size_t value_bytes;
    char *values;
    void *indices;
    uint32_t *indptr;      /* written by the first pass */
    gspi_banks banks;
    gspi_packer **packers; /* groups of several rows only */
    const uint8_t **masks; /* of a group's rows: [workers, group_rows] */
    uint32_t *columns;     /* of a row: [workers, cols] */
    uint32_t *counts;      /* of banks or of block columns: [workers, counts_each] */
    int64_t counts_each;
} job;

/* The row of the matrix at a grouped position. */
static int64_t row_at(const gsp_matrix *matrix, int64_t position) {
    return matrix->row_order ? matrix->row_order[position] : position;
}

static int64_t rows_of_group(const gsp_matrix *matrix, int64_t group) {
    const int64_t full = gsp_group_rows(&matrix->pattern);
    return gspi_min(full, matrix->rows - group * full);
}

/* ---- first pass: the units of every group, in indptr[group + 1] */

static gsp_status measure_gs(void *argument, int64_t group, int worker) {
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t banks = matrix->pattern.banks, per_row = matrix->pattern.per_row;
    uint32_t *columns = work->columns + worker * matrix->cols;
    uint32_t *counts = work->counts + worker * work->counts_each;
    const int64_t rows = rows_of_group(matrix, group), first = group * (banks / per_row);
    memset(counts, 0, (size_t)banks * sizeof *counts);
    int64_t held = 0;
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *mask = work->mask + row_at(matrix, first + r) * matrix->cols;
        const int64_t count = gspi_list_columns(mask, matrix->cols, columns);
        if (r == 0) held = count;
        GSP_CHECK(count == held, GSP_ERROR_MASK);
        for (int64_t i = 0; i < count; i++) counts[work->banks.bank[columns[i]]]++;
    }
    GSP_CHECK(held % per_row == 0, GSP_ERROR_MASK);
    for (int64_t b = 0; b < banks; b++) GSP_CHECK(counts[b] <= held / per_row, GSP_ERROR_MASK);
    work->indptr[group + 1] = (uint32_t)(held / per_row);
    return GSP_OK;
}

static gsp_status measure_irregular(void *argument, int64_t row, int worker) {
    const job *work = argument;
    const int64_t cols = work->matrix->cols;
    uint32_t *columns = work->columns + worker * cols;
    work->indptr[row + 1] = (uint32_t)gspi_list_columns(work->mask + row * cols, cols, columns);
    return GSP_OK;
}

/* Counts the elements of every block; a block that has some must have all that lie in the matrix. */
static gsp_status count_blocks(const job *work, int64_t group, int worker, int64_t *blocks) {
    const gsp_matrix *matrix = work->matrix;
    const int64_t width = matrix->pattern.block_cols, cols = matrix->cols;
    uint32_t *columns = work->columns + worker * cols;
    uint32_t *counts = work->counts + worker * work->counts_each;
    const int64_t rows = rows_of_group(matrix, group), first = group * matrix->pattern.block_rows;
    memset(counts, 0, (size_t)work->counts_each * sizeof *counts);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t count = gspi_list_columns(work->mask + (first + r) * cols, cols, columns);
        for (int64_t i = 0; i < count;) { /* one block after the other */
            const int64_t block = columns[i] / width, end = gspi_min((block + 1) * width, cols);
            const int64_t start = i;
            while (i < count && columns[i] < end) i++;
            GSP_CHECK(i - start == end - block * width, GSP_ERROR_MASK);
            counts[block]++;
        }
    }
    *blocks = 0;
    for (int64_t block = 0; block < work->counts_each; block++) {
        GSP_CHECK(counts[block] == 0 || counts[block] == rows, GSP_ERROR_MASK);
        *blocks += counts[block] != 0;
    }
    return GSP_OK;
}

static gsp_status measure_block(void *argument, int64_t group, int worker) {
    const job *work = argument;
    int64_t blocks;
    GSP_TRY(count_blocks(work, group, worker, &blocks));
    work->indptr[group + 1] = (uint32_t)blocks;
    return GSP_OK;
}

static gsp_status measure_nm(void *argument, int64_t row, int worker) {
    const job *work = argument;
    const int64_t cols = work->matrix->cols;
    const uint32_t n = work->matrix->pattern.nm_n, m = work->matrix->pattern.nm_m;
    uint32_t *columns = work->columns + worker * cols;
    const int64_t count = gspi_list_columns(work->mask + row * cols, cols, columns);
    for (int64_t i = n; i < count; i++) /* element i and the one n before it: not in one window */
        GSP_CHECK(columns[i] / m != columns[i - n] / m, GSP_ERROR_MASK);
    const int64_t slots = gspi_nm_row_slots(&work->matrix->pattern, cols);
    work->indptr[row + 1] = (uint32_t)slots;
    return GSP_OK;
}

/* ---- second pass: values and indices */

/* A group of one row: bundle t takes the t-th element of every bank. */
static gsp_status encode_horizontal(void *argument, int64_t group, int worker) {
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t banks = matrix->pattern.banks, row = row_at(matrix, group);
    const uint32_t begin = matrix->indptr[group], bundles = matrix->indptr[group + 1] - begin;
    const uint32_t index_bytes = matrix->index_bytes;
    const size_t bytes = work->value_bytes;
    const char *weights = work->weights + (size_t)(row * matrix->cols) * bytes;
    uint32_t *columns = work->columns + worker * matrix->cols;
    uint32_t *next = work->counts + worker * work->counts_each;
    const int64_t count = gspi_list_columns(work->mask + row * matrix->cols, matrix->cols, columns);
    GSP_CHECK(count == bundles * banks, GSP_ERROR_MASK);
    memset(next, 0, (size_t)banks * sizeof *next);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t col = columns[i], b = work->banks.bank[col];
        GSP_CHECK(next[b] < bundles, GSP_ERROR_MASK);
        const uint64_t slot = (uint64_t)(begin + (uint64_t)next[b]++) * (uint64_t)banks + b;
        gspi_set_index(work->indices, slot, index_bytes, work->banks.place[col]);
        gspi_copy(work->values + slot * bytes, weights + col * bytes, bytes);
    }
    return GSP_OK;
}

static gsp_status encode_group(void *argument, int64_t group, int worker) {
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t banks = matrix->pattern.banks, per_row = matrix->pattern.per_row;
    const int64_t group_rows = banks / per_row, rows = rows_of_group(matrix, group);
    const uint32_t begin = matrix->indptr[group], bundles = matrix->indptr[group + 1] - begin;
    const uint32_t index_bytes = matrix->index_bytes;
    const size_t bytes = work->value_bytes;
    const uint8_t **masks = work->masks + worker * group_rows;
    for (int64_t r = 0; r < rows; r++)
        masks[r] = work->mask + row_at(matrix, group * group_rows + r) * matrix->cols;
    const uint32_t *columns;
    GSP_TRY(gspi_pack(work->packers[worker], masks, rows, bundles, &columns));

    uint64_t slot = (uint64_t)begin * (uint64_t)banks;
    for (uint32_t i = 0; i < bundles; i++, columns += banks, slot += (uint64_t)banks) {
        const int64_t used = rows * per_row;
        for (int64_t s = 0; s < used; s++)
            gspi_set_index(work->indices, slot + (uint64_t)s, index_bytes, columns[s]);
        for (int64_t r = 0, s = 0; r < rows; r++) {
            const int64_t row = row_at(matrix, group * group_rows + r);
            const char *weights = work->weights + (size_t)(row * matrix->cols) * bytes;
            for (int64_t end = s + per_row; s < end; s++)
                gspi_copy(work->values + (slot + (uint64_t)s) * bytes, weights + columns[s] * bytes,
                          bytes);
        }
        for (int64_t s = used; s < banks; s++)
            gspi_set_index(work->indices, slot + (uint64_t)s, index_bytes, 0);
        memset(work->values + (slot + (uint64_t)used) * bytes, 0, (size_t)(banks - used) * bytes);
    }
    return GSP_OK;
}

static gsp_status encode_irregular(void *argument, int64_t row, int worker) {
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t cols = matrix->cols;
    const uint64_t begin = matrix->indptr[row];
    const size_t bytes = work->value_bytes;
    const char *weights = work->weights + (size_t)(row * cols) * bytes;
    uint32_t *columns = work->columns + worker * cols;
    const int64_t count = gspi_list_columns(work->mask + row * cols, cols, columns);
    GSP_CHECK(count == matrix->indptr[row + 1] - (int64_t)begin, GSP_ERROR_MASK);
    for (int64_t i = 0; i < count; i++) {
        gspi_set_index(work->indices, begin + (uint64_t)i, matrix->index_bytes, columns[i]);
        gspi_copy(work->values + (begin + (uint64_t)i) * bytes, weights + columns[i] * bytes,
                  bytes);
    }
    return GSP_OK;
}

static gsp_status encode_block(void *argument, int64_t group, int worker) {
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    const int64_t rows = rows_of_group(matrix, group);
    const uint32_t *counts = work->counts + worker * work->counts_each;
    const size_t bytes = work->value_bytes, row_bytes = (size_t)width * bytes;
    int64_t blocks;
    GSP_TRY(count_blocks(work, group, worker, &blocks));
    uint64_t unit = matrix->indptr[group];
    GSP_CHECK(blocks == matrix->indptr[group + 1] - (int64_t)unit, GSP_ERROR_MASK);
    for (int64_t block = 0; block < work->counts_each; block++) {
        if (counts[block] == 0) continue;
        gspi_set_index(work->indices, unit, matrix->index_bytes, (uint32_t)block);
        const int64_t col = block * width;
        const size_t inside = (size_t)gspi_min(width, matrix->cols - col) * bytes;
        char *values = work->values + unit++ * (size_t)height * row_bytes;
        memset(values, 0, (size_t)height * row_bytes);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t element = (group * height + r) * matrix->cols + col;
            memcpy(values + (size_t)r * row_bytes, work->weights + (size_t)element * bytes, inside);
        }
    }
    return GSP_OK;
}

/* One row: every window gives min(n, its width) slots; those that the mask leaves take the smallest free
 * positions and the value 0. */
static gsp_status encode_nm_row(const job *work, int64_t row) {
    const gsp_matrix *matrix = work->matrix;
    const int64_t n = matrix->pattern.nm_n, m = matrix->pattern.nm_m, cols = matrix->cols;
    const uint8_t *mask = work->mask + row * cols;
    const size_t bytes = work->value_bytes;
    const char *weights = work->weights + (size_t)(row * cols) * bytes;
    const uint32_t bits = matrix->index_bytes;
    uint64_t slot = matrix->indptr[row];
    for (int64_t window = 0; window < cols; window += m) {
        const int64_t width = gspi_min(m, cols - window);
        int64_t free_slots = gspi_min(n, width);
        for (int64_t i = 0; i < width; i++) free_slots -= mask[window + i] != 0;
        GSP_CHECK(free_slots >= 0, GSP_ERROR_MASK);
        int64_t slots = gspi_min(n, width);
        for (int64_t i = 0; i < width && slots > 0; i++) {
            const bool kept = mask[window + i] != 0;
            if (!kept && free_slots-- <= 0) continue;
            uint8_t *byte = (uint8_t *)work->indices + slot * bits / 8;
            *byte = (uint8_t)(*byte | (uint8_t)i << slot * bits % 8);
            if (kept)
                gspi_copy(work->values + slot * bytes, weights + (size_t)(window + i) * bytes,
                          bytes);
            else memset(work->values + slot * bytes, 0, bytes);
            slot++;
            slots--;
        }
    }
    return GSP_OK;
}

/* So many rows at a time that no two items write to one byte. */
static gsp_status encode_nm(void *argument, int64_t item, int worker) {
    const job *work = argument;
    (void)worker;
    const int64_t end = gspi_min((item + 1) * GSPI_NM_ROWS, work->matrix->rows);
    for (int64_t row = item * GSPI_NM_ROWS; row < end; row++) GSP_TRY(encode_nm_row(work, row));
    return GSP_OK;
}

/* ---- memory of both passes */

static void job_clear(gsp_context *context, job *work, int workers) {
    gspi_banks_destroy(context, &work->banks);
    if (work->packers != NULL)
        for (int worker = 0; worker < workers; worker++)
            gspi_packer_destroy(context, work->packers[worker]);
    gspi_free(context, work->packers);
    gspi_free(context, (void *)work->masks);
    gspi_free(context, work->columns);
    gspi_free(context, work->counts);
}

static gsp_status job_create(gsp_context *context, job *work, int workers) {
    const gsp_matrix *matrix = work->matrix;
    const gsp_pattern *pattern = &matrix->pattern;
    const size_t count = (size_t)workers;
    size_t columns, counts;
    if (pattern->kind == GSP_GS) {
        GSP_TRY(gspi_banks_create(context, pattern, matrix->cols, &work->banks));
        work->counts_each = pattern->banks;
    } else if (pattern->kind == GSP_BLOCK) {
        work->counts_each = gspi_ceil_div(matrix->cols, pattern->block_cols);
    }
    if (!gspi_mul(count, (size_t)matrix->cols, &columns) ||
        !gspi_mul(count, (size_t)work->counts_each, &counts))
        return GSP_ERROR_SHAPE;
    work->columns = gspi_alloc(context, columns, sizeof *work->columns);
    work->counts = gspi_alloc(context, counts, sizeof *work->counts);
    return work->columns != NULL && work->counts != NULL ? GSP_OK : GSP_ERROR_MEMORY;
}

static gsp_status packers_create(gsp_context *context, job *work, int workers, int64_t groups) {
    const gsp_matrix *matrix = work->matrix;
    int64_t most = 0;
    for (int64_t g = 0; g < groups; g++) {
        GSP_CHECK(matrix->indptr[g] <= matrix->indptr[g + 1], GSP_ERROR_INDPTR);
        most = gspi_max(most, matrix->indptr[g + 1] - (int64_t)matrix->indptr[g]);
    }
    GSP_CHECK(most * matrix->pattern.banks < UINT32_MAX, GSP_ERROR_SHAPE);
    const size_t count = (size_t)workers;
    work->packers = gspi_calloc(context, count, sizeof *work->packers);
    work->masks =
        gspi_alloc(context, count * (size_t)gsp_group_rows(&matrix->pattern), sizeof *work->masks);
    GSP_CHECK(work->packers != NULL && work->masks != NULL, GSP_ERROR_MEMORY);
    for (int worker = 0; worker < workers; worker++) {
        work->packers[worker] =
            gspi_packer_create(context, &matrix->pattern, matrix->cols, &work->banks, most);
        GSP_CHECK(work->packers[worker] != NULL, GSP_ERROR_MEMORY);
    }
    return GSP_OK;
}

gsp_status gsp_measure(gsp_context *context, const uint8_t *mask, gsp_matrix *matrix,
                       uint32_t *indptr) {
    gsp_lengths lengths;
    matrix->units = 0;
    matrix->indptr = indptr;
    GSP_TRY(gsp_sizes(matrix, &lengths));
    GSP_CHECK(matrix->row_order == NULL || matrix->pattern.kind == GSP_GS, GSP_ERROR_PATTERN);
    GSP_TRY(gspi_check_row_order(context, matrix->row_order, matrix->rows));
    matrix->index_bytes = gsp_index_bytes(&matrix->pattern, matrix->cols);

    static const gspi_body bodies[] = {measure_gs, measure_irregular, measure_block, measure_nm};
    const int64_t groups = gsp_groups(&matrix->pattern, matrix->rows);
    const int workers = gspi_workers(context, groups);
    job work = {.matrix = matrix, .mask = mask, .indptr = indptr};
    gsp_status status = job_create(context, &work, workers);
    if (status == GSP_OK)
        status = gspi_parallel_on(context, workers, groups, bodies[matrix->pattern.kind], &work);
    job_clear(context, &work, workers);
    GSP_TRY(status);

    uint64_t units = 0;
    indptr[0] = 0;
    for (int64_t g = 0; g < groups; g++) {
        units += indptr[g + 1];
        GSP_CHECK(units <= UINT32_MAX, GSP_ERROR_SHAPE);
        indptr[g + 1] = (uint32_t)units;
    }
    matrix->units = units;
    return gsp_sizes(matrix, &lengths);
}

gsp_status gsp_encode(gsp_context *context, const void *weights, const uint8_t *mask,
                      const gsp_matrix *matrix, void *values, void *indices) {
    gsp_lengths lengths;
    GSP_TRY(gsp_sizes(matrix, &lengths));
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t groups = gsp_groups(pattern, matrix->rows);
    int64_t items = groups;
    gspi_body body = encode_irregular;
    if (pattern->kind == GSP_GS)
        body = gspi_is_horizontal(pattern) ? encode_horizontal : encode_group;
    if (pattern->kind == GSP_BLOCK) body = encode_block;
    if (pattern->kind == GSP_NM) {
        body = encode_nm;
        items = gspi_ceil_div(groups, GSPI_NM_ROWS);
        gspi_clear(indices, lengths.indices);
    }
    const int workers = gspi_workers(context, items);
    job work = {.matrix = matrix,
                .mask = mask,
                .weights = weights,
                .value_bytes = gsp_dtype_size(matrix->dtype),
                .values = values,
                .indices = indices};
    gsp_status status = job_create(context, &work, workers);
    if (status == GSP_OK && body == encode_group)
        status = packers_create(context, &work, workers, groups);
    if (status == GSP_OK) status = gspi_parallel_on(context, workers, items, body, &work);
    job_clear(context, &work, workers);
    return status;
}
