/* One product: brings x into the order that the plan wants, runs the kernel, finishes y. Work is shared among threads
 * by rows or by samples, and every element of y is summed by one thread in one order, so results do not depend on
 * how many there are. */
#include <math.h>
#include <string.h>

#include "gsp_kernels.h"

/* Slots times samples from which starting threads (some 50 us each) is worth it. */
#define GSPI_PARALLEL_WORK (1 << 23)

typedef struct {
    const gsp_plan *plan;
    const char *x;
    char *y;
    int64_t samples;
    gsp_strides strides;
    gsp_epilogue epilogue;
    size_t size; /* of an element of x and y */
    int64_t share; /* units or samples of one item of parallel work */
} task;

/* ----------------------------------------------------------------- finish */

/* y[i] = activation(scales[i * step] * y[i] + bias[i * step] + residual[i]), along one row (step 0) or over the rows
 * of one sample (step 1). NULL scales, bias or residual do nothing. */
#define FINISH(name, type, exp_, tanh_, erf_)                                                      \
    static void finish_##name(type *y, int64_t count, const float *scales, const type *bias,       \
                              int64_t step, const type *residual, gsp_activation activation) {     \
        if (scales != NULL)                                                                        \
            for (int64_t i = 0; i < count; i++) y[i] *= scales[i * step];                          \
        if (bias != NULL)                                                                          \
            for (int64_t i = 0; i < count; i++) y[i] += bias[i * step];                            \
        if (residual != NULL)                                                                      \
            for (int64_t i = 0; i < count; i++) y[i] += residual[i];                               \
        switch (activation) {                                                                      \
        case GSP_NONE: break;                                                                      \
        case GSP_RELU: /* a NaN stays one */                                                       \
            for (int64_t i = 0; i < count; i++) y[i] = y[i] < 0 ? 0 : y[i];                        \
            break;                                                                                 \
        case GSP_SIGMOID:                                                                          \
            for (int64_t i = 0; i < count; i++) y[i] = 1 / (1 + exp_(-y[i]));                      \
            break;                                                                                 \
        case GSP_TANH:                                                                             \
            for (int64_t i = 0; i < count; i++) y[i] = tanh_(y[i]);                                \
            break;                                                                                 \
        case GSP_GELU:                                                                             \
            for (int64_t i = 0; i < count; i++)                                                    \
                y[i] = (type)0.5 * y[i] * (1 + erf_(y[i] * (type)0.70710678118654752440));         \
            break;                                                                                 \
        case GSP_SILU:                                                                             \
            for (int64_t i = 0; i < count; i++) y[i] = y[i] / (1 + exp_(-y[i]));                   \
            break;                                                                                 \
        }                                                                                          \
    }

FINISH(f64, double, exp, tanh, erf)
FINISH(f32, float, expf, tanhf, erff)

static void finish(const task *t, char *y, int64_t count, int64_t row, int64_t step,
                   const char *residual) {
    const gsp_epilogue *epilogue = &t->epilogue;
    const float *scales = t->plan->matrix.scales;
    const char *bias = epilogue->bias;
    if (scales != NULL) scales += row;
    if (bias != NULL) bias += (size_t)row * t->size;
    if (t->size == sizeof(double))
        finish_f64((double *)y, count, scales, (const double *)bias, step, (const double *)residual,
                   epilogue->activation);
    else
        finish_f32((float *)y, count, scales, (const float *)bias, step, (const float *)residual,
                   epilogue->activation);
}

static bool needs_finish(const task *t) {
    return t->plan->matrix.scales != NULL || t->epilogue.bias != NULL ||
           t->epilogue.residual != NULL || t->epilogue.activation != GSP_NONE;
}

static const char *residual_at(const task *t, int64_t row, int64_t sample) {
    if (t->epilogue.residual == NULL) return NULL;
    return (const char *)t->epilogue.residual +
           (row * t->strides.y_row + sample * t->strides.y_sample) * (int64_t)t->size;
}

/* ---------------------------------------------------------------- samples */

/* x bank after bank if the plan says so, and zeros up to x_size. */
static void copy_x(const gsp_plan *plan, const float *x, float *copy) {
    const int64_t cols = plan->matrix.cols, banks = plan->x_banks;
    int64_t to = 0;
    for (int64_t bank = 0; bank < banks; bank++)
        for (int64_t col = bank; col < cols; col += banks) copy[to++] = x[col];
    for (; to < plan->x_size; to++) copy[to] = 0;
}

typedef struct {
    const task *t;
    gspi_product product;
} unit_work;

static gsp_status run_units(void *argument, int64_t item, int worker) {
    (void)worker;
    const unit_work *work = argument;
    const gsp_plan *plan = work->t->plan;
    const int64_t first = item * work->t->share;
    plan->entry->kernel(plan, &work->product, first, gspi_min(first + work->t->share, plan->units));
    return GSP_OK;
}

/* The kernel over all units, on several threads if asked to. */
static void run_kernel(const task *t, const gspi_product *product, bool threads) {
    const gsp_plan *plan = t->plan;
    if (threads) {
        unit_work work = {t, *product};
        (void)gspi_parallel(plan->context, gspi_ceil_div(plan->units, t->share), run_units, &work);
    } else {
        plan->entry->kernel(plan, product, 0, plan->units);
    }
}

/* A function of its own, so that only plans that copy x use the stack. */
static __attribute__((noinline)) void run_copied(const task *t, gspi_product *product,
                                                 bool threads) {
    _Alignas(64) float copy[GSPI_MAX_COPY];
    copy_x(t->plan, product->x, copy);
    product->x = copy;
    run_kernel(t, product, threads);
}

static void multiply_sample(const task *t, int64_t sample, bool threads) {
    const int64_t size = (int64_t)t->size;
    char *y = t->y + sample * t->strides.y_sample * size;
    gspi_product product = {.x = t->x + sample * t->strides.x_sample * size, .y = y, .samples = 1};
    if (t->plan->copy_x) run_copied(t, &product, threads);
    else run_kernel(t, &product, threads);
    if (needs_finish(t)) finish(t, y, t->plan->matrix.rows, 0, 1, residual_at(t, 0, sample));
}

static gsp_status run_samples(void *argument, int64_t item, int worker) {
    (void)worker;
    const task *t = argument;
    const int64_t first = item * t->share;
    for (int64_t sample = first; sample < gspi_min(first + t->share, t->samples); sample++)
        multiply_sample(t, sample, false);
    return GSP_OK;
}

/* --------------------------------------------------------------- multiply */

gsp_status gsp_multiply(const gsp_plan *plan, const void *x, int64_t samples,
                        const gsp_strides *strides, void *y, const gsp_epilogue *epilogue) {
    const bool columns = plan->entry->op == GSPI_SPMM;
    const int64_t rows = plan->matrix.rows, cols = plan->matrix.cols;
    task t = {.plan = plan,
              .x = x,
              .y = y,
              .samples = samples,
              .strides =
                  columns ? (gsp_strides){samples, 1, samples, 1} : (gsp_strides){1, cols, 1, rows},
              .size = plan->matrix.dtype == GSP_FLOAT64 ? sizeof(double) : sizeof(float)};
    if (strides != NULL) t.strides = *strides;
    if (epilogue != NULL) t.epilogue = *epilogue;
    GSP_CHECK(samples >= 0, GSP_ERROR_SHAPE);
    GSP_CHECK(t.epilogue.activation >= GSP_NONE && t.epilogue.activation <= GSP_SILU,
              GSP_ERROR_SHAPE);
    if (samples == 0 || rows == 0) return GSP_OK;
    if (columns) GSP_CHECK(t.strides.x_sample == 1 && t.strides.y_sample == 1, GSP_ERROR_SHAPE);
    else GSP_CHECK(t.strides.x_col == 1 && t.strides.y_row == 1, GSP_ERROR_SHAPE);

    const int workers = gspi_workers(plan->context, plan->units);
    const bool threads =
        workers > 1 && plan->slots >= (uint64_t)GSPI_PARALLEL_WORK / (uint64_t)samples;
    t.share = gspi_max(1, plan->units / (4 * workers));
    if (columns) {
        const gspi_product product = {x, y, samples, t.strides.x_col, t.strides.y_row};
        run_kernel(&t, &product, threads);
        for (int64_t row = 0; row < rows && needs_finish(&t); row++)
            finish(&t, t.y + row * t.strides.y_row * (int64_t)t.size, samples, row, 0,
                   residual_at(&t, row, 0));
    } else if (threads && samples >= workers) {
        t.share = gspi_max(1, samples / (4 * workers));
        (void)gspi_parallel(plan->context, gspi_ceil_div(samples, t.share), run_samples, &t);
    } else {
        for (int64_t sample = 0; sample < samples; sample++) multiply_sample(&t, sample, threads);
    }
    return GSP_OK;
}
