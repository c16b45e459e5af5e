/* Decoding: a valid compact matrix becomes dense weights, or the columns of its slots. */
#include "gsp_format.h"

/* What is written for every slot that stands for an element. */
typedef struct {
    const gsp_matrix *matrix;
    size_t value_bytes;
    char *weights;     /* rows x cols, or NULL */
    uint32_t *columns; /* as values, or NULL */
} job;

static void put(const job *work, int64_t row, uint32_t col, uint64_t slot) {
    if (work->columns != NULL) work->columns[slot] = col;
    if (work->weights == NULL) return;
    const size_t bytes = work->value_bytes, element = (size_t)(row * work->matrix->cols + col);
    gspi_copy(work->weights + element * bytes, (const char *)work->matrix->values + slot * bytes,
              bytes);
}

static gsp_status decode_gs(void *argument, int64_t group, int worker) {
    (void)worker;
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t banks = pattern->banks, per_row = pattern->per_row, group_rows = banks / per_row;
    const int64_t rows = gspi_min(group_rows, matrix->rows - group * group_rows);
    for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++) {
        uint64_t slot = unit * (uint64_t)banks;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t position = group * group_rows + r;
            const int64_t row = matrix->row_order ? matrix->row_order[position] : position;
            for (int64_t i = r * per_row; i < (r + 1) * per_row; i++, slot++)
                put(work, row, gspi_gs_column(matrix, slot, i), slot);
        }
    }
    return GSP_OK;
}

static gsp_status decode_irregular(void *argument, int64_t row, int worker) {
    (void)worker;
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    for (uint64_t slot = matrix->indptr[row]; slot < matrix->indptr[row + 1]; slot++)
        put(work, row, gspi_index(matrix->indices, slot, matrix->index_bytes), slot);
    return GSP_OK;
}

static gsp_status decode_block(void *argument, int64_t group, int worker) {
    (void)worker;
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    const int64_t rows = gspi_min(height, matrix->rows - group * height);
    for (uint64_t unit = matrix->indptr[group]; unit < matrix->indptr[group + 1]; unit++) {
        const int64_t first = width * gspi_index(matrix->indices, unit, matrix->index_bytes);
        const int64_t cols = gspi_min(width, matrix->cols - first);
        for (int64_t r = 0; r < rows; r++) {
            const uint64_t slot = unit * (uint64_t)(height * width) + (uint64_t)(r * width);
            for (int64_t c = 0; c < cols; c++)
                put(work, group * height + r, (uint32_t)(first + c), slot + (uint64_t)c);
        }
    }
    return GSP_OK;
}

static gsp_status decode_nm(void *argument, int64_t row, int worker) {
    (void)worker;
    const job *work = argument;
    const gsp_matrix *matrix = work->matrix;
    const int64_t n = matrix->pattern.nm_n, m = matrix->pattern.nm_m;
    uint64_t slot = matrix->indptr[row];
    for (int64_t window = 0; window < matrix->cols; window += m) {
        const int64_t slots = gspi_min(n, matrix->cols - window);
        for (int64_t i = 0; i < slots; i++, slot++) {
            const uint32_t position = gspi_position(matrix->indices, slot, matrix->index_bytes);
            put(work, row, (uint32_t)window + position, slot);
        }
    }
    return GSP_OK;
}

static gsp_status decode(gsp_context *context, job *work) {
    static const gspi_body bodies[] = {decode_gs, decode_irregular, decode_block, decode_nm};
    const gsp_matrix *matrix = work->matrix;
    const int64_t groups = gsp_groups(&matrix->pattern, matrix->rows);
    return gspi_parallel(context, groups, bodies[matrix->pattern.kind], work);
}

gsp_status gsp_decode(gsp_context *context, const gsp_matrix *matrix, void *weights) {
    job work = {.matrix = matrix, .value_bytes = gsp_dtype_size(matrix->dtype), .weights = weights};
    gspi_clear(weights, (size_t)(matrix->rows * matrix->cols) * work.value_bytes);
    return decode(context, &work);
}

gsp_status gsp_columns(gsp_context *context, const gsp_matrix *matrix, uint32_t *columns) {
    gsp_lengths lengths;
    GSP_TRY(gsp_sizes(matrix, &lengths));
    job work = {.matrix = matrix, .columns = columns};
    gspi_clear(columns, lengths.values / gsp_dtype_size(matrix->dtype) * sizeof *columns);
    return decode(context, &work);
}
