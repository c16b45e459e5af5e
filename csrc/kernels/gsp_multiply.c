/* One product: brings x into the order that the plan wants, runs the kernel, finishes y. Work is shared among threads
 * by rows or by samples, and every element of y is summed by one thread in one order, so results do not depend on
 * how many there are. */
#include <string.h>

#include "gsp_narrow.h"

/* Slots times samples from which threads that are awake are worth it, some fifteen microseconds of one thread, by
 * vectors or one by one; and how many times as much it must be to wake a thread for it, which takes five to ten, and
 * more where others use the CPU. */
#define GSPI_PARALLEL_VECTORS (1 << 19)
#define GSPI_PARALLEL_SCALARS (1 << 14)
#define GSPI_WORTH_WAKING 8

typedef struct {
    const gsp_plan *plan;
    const char *x;
    char *y;
    int64_t samples;
    gsp_strides strides;
    gsp_epilogue epilogue;
    size_t size; /* of an element of x and y */
    int64_t parts; /* items of parallel work, in units or groups of samples */
    int64_t part; /* the one to do; -1: all */
    int64_t groups; /* of samples that the kernel takes at once */
} task;

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

/* The kernel over all units, on several threads if asked to, or over those of one part. */
static void run_kernel(const task *t, const gspi_product *product, bool threads) {
    const gsp_plan *plan = t->plan;
    unit_work work = {t, *product};
    if (t->part >= 0) {
        (void)run_units(&work, t->part, 0);
    } else if (threads) {
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

/* Narrow forms: x is turned into what the kernel takes, for as many samples as the stack holds. */
#define NARROW_SAMPLES 40
#define NARROW_COPY (GSPI_MAX_COPY * (int64_t)sizeof(float) + 256)

static bool is_narrow(const gsp_plan *plan) {
    return plan->operand == GSP_BFLOAT16 || plan->operand == GSP_INT8;
}

static int64_t narrow_group_size(const task *t) {
    return gspi_max(1, gspi_min(NARROW_SAMPLES, NARROW_COPY / gspi_narrow_stride(t->plan)));
}

static __attribute__((noinline)) void run_narrow_copied(const task *t, gspi_product product,
                                                        bool threads) {
    _Alignas(64) char copy[NARROW_COPY];
    float room[GSPI_MAX_COPY];
    gspi_quantum quanta[NARROW_SAMPLES];
    const gsp_plan *plan = t->plan;
    const int64_t stride = gspi_narrow_stride(plan);
    for (int64_t sample = 0; sample < product.samples; sample++)
        quanta[sample] = gspi_narrow_copy(
            plan, (const char *)product.x + sample * product.x_sample * (int64_t)t->size,
            product.x_col, copy + sample * stride, room);
    product.x = copy;
    product.x_col = 1;
    product.x_sample = stride / gspi_narrow_size(plan);
    product.quanta = quanta;
    run_kernel(t, &product, threads);
}

static void multiply_narrow(const task *t, gspi_product product, const void *residual,
                            bool threads) {
    const gsp_plan *plan = t->plan;
    gspi_quantum quanta[NARROW_SAMPLES];
    gsp_epilogue epilogue = t->epilogue;
    epilogue.residual = residual;
    product.epilogue = &epilogue;
    product.quanta = quanta;
    const uintptr_t apart = product.samples > 1 ? (uintptr_t)product.x_sample : 0;
    const bool aligned = ((uintptr_t)product.x | apart * t->size) % 64 == 0;
    if (gspi_narrow_copies(plan, product.x_col) ||
        (plan->align_x && !aligned && gspi_narrow_stride(plan) <= NARROW_COPY)) {
        run_narrow_copied(t, product, threads);
        return;
    }
    for (int64_t sample = 0; plan->operand == GSP_INT8 && sample < product.samples; sample++)
        quanta[sample] = gspi_measure__scalar((const float *)product.x + sample * product.x_sample,
                                              product.x_col, plan->matrix.cols);
    run_kernel(t, &product, threads);
}

/* Samples of a group: as many as the kernel wants and the copy holds. Which samples are grouped depends on their
 * number only. */
static int64_t group_size(const task *t) {
    if (is_narrow(t->plan)) return narrow_group_size(t);
    if (!should_copy(t)) return GSPI_MAX_SAMPLES;
    return gspi_max(1, gspi_min(GSPI_MAX_SAMPLES, (GSPI_MAX_COPY + 32) / copy_stride(t->plan)));
}

static void multiply_group(const task *t, int64_t group, bool threads) {
    const int64_t size = (int64_t)t->size, rows = t->plan->matrix.rows;
    const int64_t first = group * t->samples / t->groups,
                  last = (group + 1) * t->samples / t->groups;
    const gsp_strides *s = &t->strides;
    char *y = t->y + first * s->y_sample * size;
    const gspi_product product = {.x = t->x + first * s->x_sample * size,
                                  .y = y,
                                  .samples = last - first,
                                  .x_col = s->x_col,
                                  .x_sample = s->x_sample,
                                  .y_row = s->y_row,
                                  .y_sample = s->y_sample};
    if (is_narrow(t->plan)) {
        multiply_narrow(t, product, residual_at(t, 0, first), threads);
        return;
    }
    if (should_copy(t)) run_copied(t, product, threads);
    else run_kernel(t, &product, threads);
    if (s->y_row == 1)
        for (int64_t sample = first; sample < last; sample++)
            gspi_finish(t->plan, t->y + sample * s->y_sample * size, rows, 0, 1,
                        residual_at(t, 0, sample), &t->epilogue);
    else if (s->y_sample == 1)
        for (int64_t row = 0; row < rows; row++)
            gspi_finish(t->plan, t->y + (row * s->y_row + first) * size, last - first, row, 0,
                        residual_at(t, row, first), &t->epilogue);
    else
        for (int64_t i = 0; i < rows * (last - first); i++) {
            const int64_t row = i / (last - first), sample = first + i % (last - first);
            gspi_finish(t->plan, t->y + (row * s->y_row + sample * s->y_sample) * size, 1, row, 0,
                        residual_at(t, row, sample), &t->epilogue);
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

/* ---------------------------------------------------------------- columns */

/* SpMM of `samples` samples from `sample` on, and the units [first, last). */
static void multiply_columns(const task *t, int64_t sample, int64_t samples, int64_t first,
                             int64_t last) {
    const gsp_plan *plan = t->plan;
    const gsp_strides *strides = &t->strides;
    const int64_t size = (int64_t)t->size;
    gsp_epilogue epilogue = t->epilogue;
    epilogue.residual = residual_at(t, 0, sample);
    const gspi_product product = {.x = t->x + sample * strides->x_sample * size,
                                  .y = t->y + sample * strides->y_sample * size,
                                  .samples = samples,
                                  .x_col = strides->x_col,
                                  .y_row = strides->y_row,
                                  .x_sample = strides->x_sample,
                                  .y_sample = strides->y_sample,
                                  .epilogue = &epilogue};
    plan->entry->kernel(plan, &product, first, last);
    if (plan->entry->form != GSPI_STORED) return; /* the others finish what they store */
    if (strides->y_sample == 1)
        for (int64_t row = 0; row < plan->matrix.rows; row++)
            gspi_finish(plan, t->y + (row * strides->y_row + sample) * size, samples, row, 0,
                        residual_at(t, row, sample), &t->epilogue);
    else
        for (int64_t s = sample; s < sample + samples; s++)
            gspi_finish(plan, t->y + s * strides->y_sample * size, plan->matrix.rows, 0, 1,
                        residual_at(t, 0, s), &t->epilogue);
}

typedef struct {
    const task *t;
    int64_t tile, tiles; /* samples of a tile */
    int64_t row_parts, sample_parts;
} column_work;

static gsp_status run_columns(void *argument, int64_t item, int worker) {
    (void)worker;
    const column_work *work = argument;
    const int64_t part = item % work->row_parts, units = work->t->plan->units;
    const int64_t across = item / work->row_parts;
    const int64_t sample = across * work->tiles / work->sample_parts * work->tile;
    const int64_t end = (across + 1) * work->tiles / work->sample_parts * work->tile;
    multiply_columns(work->t, sample, gspi_min(end, work->t->samples) - sample,
                     part * units / work->row_parts, (part + 1) * units / work->row_parts);
    return GSP_OK;
}

/* Shares tiles of samples first, since each takes its x from memory once; then rows. */
static void share_columns(const task *t, int64_t workers) {
    const gsp_plan *plan = t->plan;
    const bool stored = plan->entry->form == GSPI_STORED; /* whose rows are finished together */
    column_work work = {.t = t, .tile = stored ? 16 : plan->x_stride / (int64_t)sizeof(float)};
    work.tiles = gspi_ceil_div(t->samples, work.tile);
    work.sample_parts = gspi_min(work.tiles, GSPI_PARTS * workers);
    work.row_parts =
        stored ? 1 : gspi_min(plan->units, gspi_ceil_div(GSPI_PARTS * workers, work.sample_parts));
    (void)gspi_parallel(plan->context, work.row_parts * work.sample_parts, run_columns, &work);
}

/* --------------------------------------------------------------- multiply */

gsp_status gspi_check_epilogue(const gsp_epilogue *epilogue) {
    GSP_CHECK(epilogue->activation >= GSP_NONE && epilogue->activation <= GSP_CLAMP,
              GSP_ERROR_SHAPE);
    GSP_CHECK(epilogue->activation != GSP_CLAMP || epilogue->low <= epilogue->high,
              GSP_ERROR_SHAPE);
    return GSP_OK;
}

bool gspi_threads_pay(const gsp_plan *plan, int64_t samples, int64_t *workers) {
    const uint64_t least =
        (plan->entry->backend == GSP_SCALAR ? GSPI_PARALLEL_SCALARS : GSPI_PARALLEL_VECTORS) /
        (uint64_t)samples;
    *workers = gspi_workers(plan->context, INT64_MAX);
    return *workers > 1 && plan->slots >= least &&
           (plan->slots >= GSPI_WORTH_WAKING * least || gspi_is_busy(plan->context));
}

gsp_status gsp_multiply(const gsp_plan *plan, const void *x, int64_t samples,
                        const gsp_strides *strides, void *y, const gsp_epilogue *epilogue) {
    const bool columns = plan->entry->op == GSPI_SPMM;
    const int64_t rows = plan->matrix.rows, cols = plan->matrix.cols;
    task t = {.plan = plan,
              .x = x,
              .y = y,
              .samples = samples,
              .part = -1,
              .strides =
                  columns ? (gsp_strides){samples, 1, samples, 1} : (gsp_strides){1, cols, 1, rows},
              .size = plan->operand == GSP_FLOAT64    ? sizeof(double)
                      : plan->operand == GSP_BFLOAT16 ? sizeof(uint16_t)
                                                      : sizeof(float)};
    if (strides != NULL) t.strides = *strides;
    if (epilogue != NULL) t.epilogue = *epilogue;
    GSP_CHECK(samples >= 0, GSP_ERROR_SHAPE);
    GSP_TRY(gspi_check_epilogue(&t.epilogue));
    if (samples == 0 || rows == 0) return GSP_OK;
    if (columns)
        GSP_CHECK((t.strides.x_col == 1 || t.strides.x_sample == 1) &&
                      (t.strides.y_row == 1 || t.strides.y_sample == 1),
                  GSP_ERROR_SHAPE);
    else if (is_narrow(plan))
        GSP_CHECK(t.strides.x_col == 1 || plan->entry->form == GSPI_ROWS || cols <= GSPI_MAX_COPY,
                  GSP_ERROR_SHAPE);
    else GSP_CHECK(!must_copy(&t) || cols <= GSPI_MAX_COPY, GSP_ERROR_SHAPE);

    int64_t workers;
    const bool threads = gspi_threads_pay(plan, samples, &workers);
    t.parts = gspi_min(GSPI_PARTS * workers, plan->units);
    if (columns) {
        if (threads) share_columns(&t, workers);
        else multiply_columns(&t, 0, samples, 0, plan->units);
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

int64_t gspi_parts_for(const gsp_plan *plan, int64_t workers) {
    /* Where scales are applied to y as a whole, and where a kernel has no parts, there is but one. */
    const bool columns = plan->entry->op == GSPI_SPMM;
    if (plan->matrix.scales != NULL || (columns && plan->entry->form == GSPI_STORED)) return 1;
    /* A part of SpMM packs all of x for itself. */
    return gspi_max(1, gspi_min(plan->units, (columns ? 2 : GSPI_PARTS) * workers));
}

void gspi_multiply_part(const gsp_plan *plan, const void *x, int64_t samples,
                        const gsp_strides *strides, void *y, int64_t part, int64_t parts) {
    if (parts == 1) {
        (void)gsp_multiply(plan, x, samples, strides, y, NULL);
        return;
    }
    task t = {.plan = plan,
              .x = x,
              .y = y,
              .samples = samples,
              .strides = *strides,
              .size = plan->matrix.dtype == GSP_FLOAT64 ? sizeof(double) : sizeof(float),
              .parts = parts,
              .part = part};
    if (plan->entry->op == GSPI_SPMM) {
        multiply_columns(&t, 0, samples, part * plan->units / parts,
                         (part + 1) * plan->units / parts);
        return;
    }
    t.groups = gspi_ceil_div(samples, group_size(&t));
    for (int64_t group = 0; group < t.groups; group++) multiply_group(&t, group, false);
}
