/* Decoding: a valid compact matrix becomes dense weights, or the columns of its slots. */
#include "gsp_visit.h"

/* What is written for every slot that stands for an element. */
typedef struct {
    const gsp_matrix *matrix;
    size_t value_bytes;
    char *weights;     /* rows x cols, or NULL */
    uint32_t *columns; /* as values, or NULL */
} job;

static void put(void *argument, int64_t row, int64_t col, uint64_t slot) {
    const job *work = argument;
    if (work->columns != NULL) work->columns[slot] = (uint32_t)col;
    if (work->weights == NULL) return;
    const size_t bytes = work->value_bytes, element = (size_t)(row * work->matrix->cols + col);
    gspi_copy(work->weights + element * bytes, (const char *)work->matrix->values + slot * bytes,
              bytes);
}

static gsp_status decode_group(void *argument, int64_t group, int worker) {
    (void)worker;
    gspi_visit(((const job *)argument)->matrix, group, group + 1, put, argument);
    return GSP_OK;
}

static gsp_status decode(gsp_context *context, job *work) {
    const int64_t groups = gsp_groups(&work->matrix->pattern, work->matrix->rows);
    return gspi_parallel(context, groups, decode_group, work);
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
