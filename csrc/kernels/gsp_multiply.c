/* One product: brings x into the order that the plan wants, runs the kernel, finishes y. Work is shared among threads
 * by rows or by samples, and every element of y is summed by one thread in one order, so results do not depend on
 * how many there are. */
#include <math.h>
#include <string.h>

#include "gsp_kernels.h"

/* Slots times samples from which threads that are awake are worth it, some fifteen microseconds of one thread, by
 * vectors or one by one; and how many times as much it must be to wake a thread for it, which takes five to ten, and
 * more where others use the CPU. */
#define GSPI_PARALLEL_VECTORS (1 << 19)
#define GSPI_PARALLEL_SCALARS (1 << 14)
#define GSPI_WORTH_WAKING 8
/* Parts of the work for each thread, so that one that comes late or is interrupted does less of it. */
#define GSPI_PARTS 4

typedef struct {
    const gsp_plan *plan;
    const char *x;
    char *y;
    int64_t samples;
    gsp_strides strides;
    gsp_epilogue epilogue;
    size_t size; /* of an element of x and y */
    int64_t parts; /* items of parallel work, in units or groups of samples */
    int64_t groups; /* of samples that the kernel takes at once */
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

typedef struct {
    const task *t;
    gspi_product product;
} unit_work;

/* What the units before this one cost, in no unit of time: items or elements, and 1 for each. */
static uint64_t cost_before(const gsp_plan *plan, int64_t unit) {
    const uint64_t items =
        plan->entry->form == GSPI_STORED ? plan->matrix.indptr[unit] : plan->start[unit];
    return items + (uint64_t)unit;
}

/* Where a part begins if all cost the same. */
static int64_t first_of_part(const gsp_plan *plan, int64_t part, int64_t parts) {
    const uint64_t total = cost_before(plan, plan->units);
    const uint64_t cost = total / (uint64_t)parts * (uint64_t)part +
                          total % (uint64_t)parts * (uint64_t)part / (uint64_t)parts;
    int64_t low = 0, high = plan->units;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (cost_before(plan, middle) < cost) low = middle + 1;
        else high = middle;
    }
    return low;
}

static gsp_status run_units(void *argument, int64_t item, int worker) {
    (void)worker;
    const unit_work *work = argument;
    const gsp_plan *plan = work->t->plan;
    const int64_t first = first_of_part(plan, item, work->t->parts),
                  last = first_of_part(plan, item + 1, work->t->parts);
    if (first < last) plan->entry->kernel(plan, &work->product, first, last);
    return GSP_OK;
}

/* The kernel over all units, on several threads if asked to. */
static void run_kernel(const task *t, const gspi_product *product, bool threads) {
    const gsp_plan *plan = t->plan;
    if (threads) {
        unit_work work = {t, *product};
        (void)gspi_parallel(plan->context, t->parts, run_units, &work);
    } else {
        plan->entry->kernel(plan, product, 0, plan->units);
    }
}

/* Samples of a copy are so far apart: not a power of two, so that they do not fall on one another in the cache. */
static int64_t copy_stride(const gsp_plan *plan) { return (plan->x_size + 15) / 16 * 16 + 16; }

/* Whether the kernel cannot read x where it is. */
static bool must_copy(const task *t) {
    const gsp_plan *plan = t->plan;
    return plan->entry->form != GSPI_STORED &&
           (t->strides.x_col != 1 || plan->bank_stride > 0 || plan->x_size > plan->matrix.cols);
}

static bool should_copy(const task *t) {
    if (must_copy(t)) return true;
    const uintptr_t apart = t->samples > 1 ? (uintptr_t)t->strides.x_sample : 0;
    return t->plan->align_x && t->plan->matrix.cols <= GSPI_MAX_COPY &&
           ((uintptr_t)t->x | apart * sizeof(float)) % 64 != 0;
}

/* One sample, bank after bank if the plan says so, and zeros where there is none. */
static void copy_x(const gsp_plan *plan, const float *restrict x, int64_t x_col,
                   float *restrict copy) {
    const int64_t cols = plan->matrix.cols, stride = plan->bank_stride;
    if (stride == 0) {
        if (x_col == 1) memcpy(copy, x, (size_t)cols * sizeof *x);
        else
            for (int64_t col = 0; col < cols; col++) copy[col] = x[col * x_col];
        for (int64_t col = cols; col < plan->x_size; col++) copy[col] = 0;
        return;
    }
    const int64_t banks = plan->matrix.pattern.banks;
    for (int64_t bank = 0; bank < banks; bank++) {
        float *to = copy + bank * stride;
        int64_t place = 0;
        for (int64_t col = bank; col < cols; col += banks) to[place++] = x[col * x_col];
        for (; place < stride; place++) to[place] = 0;
    }
    for (int64_t at = banks * stride; at < plan->x_size; at++) copy[at] = 0;
}

/* A function of its own, so that only products that copy x use the stack. */
static __attribute__((noinline)) void run_copied(const task *t, gspi_product product,
                                                 bool threads) {
    _Alignas(64) float copy[GSPI_MAX_COPY + 32];
    const int64_t stride = copy_stride(t->plan);
    for (int64_t sample = 0; sample < product.samples; sample++)
        copy_x(t->plan, (const float *)product.x + sample * product.x_sample, product.x_col,
               copy + sample * stride);
    product.x = copy;
    product.x_col = 1;
    product.x_sample = stride;
    run_kernel(t, &product, threads);
}

/* Samples of a group: as many as the kernel wants and the copy holds. Which samples are grouped depends on their
 * number only. */
static int64_t group_size(const task *t) {
    if (!should_copy(t)) return GSPI_MAX_SAMPLES;
    return gspi_max(1, gspi_min(GSPI_MAX_SAMPLES, (GSPI_MAX_COPY + 32) / copy_stride(t->plan)));
}

static void multiply_group(const task *t, int64_t group, bool threads) {
    const int64_t size = (int64_t)t->size, rows = t->plan->matrix.rows;
    const int64_t first = group * t->samples / t->groups,
                  last = (group + 1) * t->samples / t->groups;
    const gsp_strides *s = &t->strides;
    char *y = t->y + first * s->y_sample * size;
    const gspi_product product = {t->x + first * s->x_sample * size,
                                  y,
                                  last - first,
                                  s->x_col,
                                  s->x_sample,
                                  s->y_row,
                                  s->y_sample};
    if (should_copy(t)) run_copied(t, product, threads);
    else run_kernel(t, &product, threads);
    if (!needs_finish(t)) return;
    for (int64_t sample = first; sample < last; sample++) {
        if (s->y_row == 1) {
            finish(t, t->y + sample * s->y_sample * size, rows, 0, 1, residual_at(t, 0, sample));
            continue;
        }
        for (int64_t row = 0; row < rows; row++)
            finish(t, t->y + (row * s->y_row + sample * s->y_sample) * size, 1, row, 0,
                   residual_at(t, row, sample));
    }
}

static gsp_status run_groups(void *argument, int64_t item, int worker) {
    (void)worker;
    const task *t = argument;
    for (int64_t group = item * t->groups / t->parts; group < (item + 1) * t->groups / t->parts;
         group++)
        multiply_group(t, group, false);
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
    else GSP_CHECK(!must_copy(&t) || cols <= GSPI_MAX_COPY, GSP_ERROR_SHAPE);

    const uint64_t least =
        plan->entry->backend == GSP_SCALAR ? GSPI_PARALLEL_SCALARS : GSPI_PARALLEL_VECTORS;
    const int64_t workers = gspi_workers(plan->context, INT64_MAX);
    const bool threads = workers > 1 && plan->slots >= least / (uint64_t)samples &&
                         (plan->slots >= GSPI_WORTH_WAKING * least / (uint64_t)samples ||
                          gspi_is_busy(plan->context));
    t.parts = gspi_min(GSPI_PARTS * workers, plan->units);
    if (columns) {
        const gspi_product product = {x, y, samples, t.strides.x_col, 1, t.strides.y_row, 1};
        run_kernel(&t, &product, threads);
        for (int64_t row = 0; row < rows && needs_finish(&t); row++)
            finish(&t, t.y + row * t.strides.y_row * (int64_t)t.size, samples, row, 0,
                   residual_at(&t, row, 0));
        return GSP_OK;
    }
    t.groups = gspi_ceil_div(samples, group_size(&t));
    if (threads && t.groups >= GSPI_PARTS * workers) {
        t.parts = GSPI_PARTS * workers;
        (void)gspi_parallel(plan->context, t.parts, run_groups, &t);
    } else {
        for (int64_t group = 0; group < t.groups; group++) multiply_group(&t, group, threads);
    }
    return GSP_OK;
}
