/* Makes plans: takes the kernels of the backend that take the matrix, and lays it out for the cheapest. */
#include <string.h>

#include "../format/gsp_format.h"
#include "gsp_plan.h"

void *gspi_plan_alloc(gsp_plan *plan, uint64_t count, size_t size) {
    if ((size_t)count != count) return NULL;
    void *memory = gspi_alloc(plan->context, (size_t)count, size);
    if (memory != NULL) plan->bytes += count * size;
    return memory;
}

bool gspi_takes(const gspi_entry *entry, const gsp_matrix *matrix, gspi_op op) {
    if (entry->op != op || !(entry->operands >> GSP_FLOAT32 & 1) ||
        !(entry->dtypes >> matrix->dtype & 1) || !(entry->kinds >> matrix->pattern.kind & 1))
        return false;
    /* Gathers and scatters take signed 32-bit indices, and a window must not reach beyond. */
    return entry->form == GSPI_STORED ||
           (matrix->rows <= INT32_MAX && matrix->cols <= INT32_MAX - 64);
}

/* A copy of an array that the plan owns; NULL stays NULL. `copy` points to a pointer. */
static gsp_status own(gsp_plan *plan, const void *array, size_t bytes, void *copy) {
    if (array == NULL) return GSP_OK;
    void *memory = gspi_plan_alloc(plan, bytes, 1);
    GSP_CHECK(memory != NULL, GSP_ERROR_MEMORY);
    memcpy(memory, array, bytes);
    memcpy(copy, &memory, sizeof memory);
    return GSP_OK;
}

static gsp_status copy_stored(gsp_plan *plan, const gsp_matrix *matrix) {
    gsp_lengths bytes;
    GSP_TRY(gsp_sizes(matrix, &bytes));
    /* Nobody decodes the rows. */
    GSP_TRY(gspi_validate(plan->context, matrix, &bytes, NULL, true));
    plan->units = gsp_groups(&matrix->pattern, matrix->rows);
    plan->entries = plan->slots = bytes.values / gsp_dtype_size(matrix->dtype);
    GSP_TRY(own(plan, matrix->values, bytes.values, &plan->matrix.values));
    GSP_TRY(own(plan, matrix->indices, bytes.indices, &plan->matrix.indices));
    GSP_TRY(own(plan, matrix->indptr, bytes.indptr, &plan->matrix.indptr));
    return own(plan, matrix->row_order, bytes.row_order, &plan->matrix.row_order);
}

/* Narrows [*first, *end) to the best backend that has a kernel for the matrix and the product. */
static gsp_status find_kernels(const gsp_matrix *matrix, gspi_op op, const gspi_entry **first,
                               const gspi_entry **end) {
    const gspi_entry *entry = *first, *last;
    while (entry < *end && !gspi_takes(entry, matrix, op)) entry++;
    GSP_CHECK(entry < *end, GSP_ERROR_DTYPE);
    for (last = entry; last < *end && last->backend == entry->backend;) last++;
    *first = entry;
    *end = last;
    return GSP_OK;
}

/* Sets plan->most, and lays the matrix out for SpMV if n is not above it. */
static gsp_status try_few(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                          const gspi_entry *end, int64_t n) {
    GSP_TRY(find_kernels(matrix, GSPI_SPMV, &first, &end));
    if (first->form == GSPI_STORED) {
        plan->entry = first;
        plan->most = (int64_t)first->most;
        return n <= plan->most ? copy_stored(plan, matrix) : GSP_OK;
    }
    /* A few columns are brought into order first; that copy has its limit. */
    if (n > 1 && matrix->cols > GSPI_MAX_COPY) return GSP_OK;
    return gspi_plan_rows(plan, matrix, first, end, n);
}

void gspi_weigh(gsp_plan *plan, const gspi_entry *best, float best_cost, const gspi_entry *entry,
                float cost) {
    plan->cost = best_cost;
    if (entry == best || (plan->next != NULL && plan->next_cost <= cost)) return;
    plan->next = entry;
    plan->next_cost = cost;
}

static gsp_status make(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                       const gspi_entry *end, uint32_t features, int64_t n) {
    plan->matrix = *matrix;
    plan->matrix.values = plan->matrix.indices = NULL;
    plan->matrix.indptr = plan->matrix.row_order = NULL;
    plan->matrix.scales = NULL;
    if (plan->operand == GSP_BFLOAT16 || plan->operand == GSP_INT8) {
        return gspi_plan_narrow(plan, matrix, first, end, features, n);
    }
    GSP_TRY(own(plan, matrix->scales, (size_t)matrix->rows * sizeof(float), &plan->matrix.scales));
    if (n < GSPI_MANY_COLUMNS) {
        GSP_TRY(try_few(plan, matrix, first, end, n));
        if (n <= plan->most) return GSP_OK;
    }
    GSP_TRY(find_kernels(matrix, GSPI_SPMM, &first, &end));
    plan->entry = first;
    plan->next = NULL;
    plan->most = 0;
    return first->form == GSPI_STORED ? copy_stored(plan, matrix)
                                      : gspi_plan_strips(plan, matrix, first, end, n);
}

static gsp_dtype wide_of(const gsp_matrix *matrix) {
    return matrix->dtype == GSP_FLOAT64 ? GSP_FLOAT64 : GSP_FLOAT32;
}

gsp_status gsp_plan_create(gsp_context *context, const gsp_matrix *matrix, gsp_backend backend,
                           int64_t n, gsp_plan **plan) {
    return gsp_plan_create_for(context, matrix, backend, n, wide_of(matrix), plan);
}

gsp_status gsp_plan_create_for(gsp_context *context, const gsp_matrix *matrix, gsp_backend backend,
                               int64_t n, gsp_dtype x, gsp_plan **plan) {
    gsp_backend backends[GSP_BACKENDS];
    bool runs = false;
    for (int i = gsp_backends(backends); i > 0; i--) runs = runs || backends[i - 1] == backend;
    GSP_CHECK(runs, GSP_ERROR_BACKEND);
    /* The kernels of AVX-512 say what else they need. */
    const uint32_t features = backend == GSP_AVX512_BASE ? 0 : gspi_features();
    const gspi_entry *first = gspi_kernels;
    while (first->backend > (backend == GSP_AVX512_BASE ? GSP_AVX512 : backend)) first++;
    const gspi_entry *end = first;
    while (end->name != NULL) end++;
    return gspi_plan_create(context, matrix, first, end, features, n, x, plan);
}

gsp_status gspi_plan_create(gsp_context *context, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, uint32_t features, int64_t n, gsp_dtype x,
                            gsp_plan **plan) {
    GSP_CHECK(n >= 0, GSP_ERROR_SHAPE);
    GSP_CHECK(x == wide_of(matrix) || (x == matrix->dtype && (x == GSP_BFLOAT16 || x == GSP_INT8)),
              GSP_ERROR_DTYPE);
    gsp_lengths lengths;
    GSP_TRY(gsp_sizes(matrix, &lengths));
    GSP_TRY(gspi_validate(context, matrix, &lengths, NULL, false));
    gsp_plan *made = gspi_calloc(context, 1, sizeof *made);
    GSP_CHECK(made != NULL, GSP_ERROR_MEMORY);
    made->context = context;
    made->bytes = sizeof *made;
    made->operand = x;
    const gsp_status status = make(made, matrix, first, end, features, n);
    if (status == GSP_OK) *plan = made;
    else gsp_plan_destroy(made);
    return status;
}

void gsp_plan_destroy(gsp_plan *plan) {
    if (plan == NULL) return;
    gsp_context *context = plan->context;
    /* The arrays of the plan's own matrix are const only to its readers. */
    const void *const owned[] = {plan->matrix.values, plan->matrix.indices,   plan->matrix.indptr,
                                 plan->matrix.scales, plan->matrix.row_order, plan->start,
                                 plan->packed,        plan->tables,           plan->row_map,
                                 plan->strips,        plan->positions,        plan->fours,
                                 plan->scales,        plan->weights};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        gspi_free(context, (void *)(uintptr_t)owned[i]);
    gspi_free(context, plan);
}

gsp_plan_info gsp_plan_describe(const gsp_plan *plan) {
    return (gsp_plan_info){
        .kernel = plan->entry->name,
        .backend = plan->entry->backend,
        .columns = plan->entry->op == GSPI_SPMM,
        .strided = plan->entry->op == GSPI_SPMM || plan->entry->form == GSPI_STORED ||
                   plan->entry->form == GSPI_ROWS || plan->matrix.cols <= GSPI_MAX_COPY,
        .most = plan->most,
        .bytes = plan->bytes,
        .entries = plan->entries,
        .slots = plan->slots,
        .efficiency = plan->slots == 0 ? 1.0 : (double)plan->entries / (double)plan->slots,
        .next = plan->next == NULL ? NULL : plan->next->name,
        .next_cost = plan->cost > 0 ? plan->next_cost / plan->cost : 1.0,
    };
}
