/* Memory and threads of a context, and the texts of the statuses. */
#if defined(__linux__)
#define _DEFAULT_SOURCE /* madvise */
#else
#define _POSIX_C_SOURCE 200809L
#endif
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gsp_pool.h"

#define GSP_ALIGNMENT 64

struct gsp_context {
    gsp_allocator allocator;
    atomic_int threads;
    gspi_pool pool;
};

const char *gsp_status_text(gsp_status status) {
    switch (status) {
    case GSP_OK: return "no error";
    case GSP_ERROR_MEMORY: return "out of memory";
    case GSP_ERROR_SHAPE: return "the shape is not possible, or sizes do not agree";
    case GSP_ERROR_PATTERN: return "the pattern is malformed or does not fit the matrix";
    case GSP_ERROR_SCORE: return "a score is NaN, infinite or negative";
    case GSP_ERROR_BUDGET: return "no valid mask has that many nonzeros";
    case GSP_ERROR_MASK: return "the mask is not valid for the pattern";
    case GSP_ERROR_ROW_ORDER: return "the row order is not a permutation of the rows";
    case GSP_ERROR_INDPTR:
        return "indptr must start at 0, never fall, and end at the number of units";
    case GSP_ERROR_INDEX: return "an index points outside its bank or the matrix";
    case GSP_ERROR_BANKS: return "two slots of a bundle share a bank";
    case GSP_ERROR_DUPLICATE: return "one element is stored twice";
    case GSP_ERROR_PADDING: return "a slot that must be empty is not 0";
    case GSP_ERROR_DTYPE: return "the dtype is unknown or not possible here";
    case GSP_ERROR_BACKEND: return "this CPU or this build cannot run that backend";
    case GSP_ERROR_ORDER: return "indices must ascend, by bank within a row of a bundle";
    case GSP_ERROR_SCALES: return "scales must be finite";
    }
    return "unknown status";
}

/* Large plans are read from end to end, and large scratch is written once: pages of 2 MiB save most page faults of
 * the latter and most misses of the TLB of the former. */
#define HUGE_PAGE ((size_t)2 << 20)

static void *default_allocate(void *user, size_t bytes) {
    (void)user;
#if defined(MADV_HUGEPAGE)
    void *memory;
    if (bytes >= 2 * HUGE_PAGE && posix_memalign(&memory, HUGE_PAGE, bytes) == 0) {
        (void)madvise(memory, bytes, MADV_HUGEPAGE); /* a wish */
        return memory;
    }
#endif
    return malloc(bytes);
}

static void default_release(void *user, void *memory) {
    (void)user;
    free(memory);
}

gsp_status gsp_context_create(const gsp_allocator *allocator, gsp_context **context) {
    const gsp_allocator standard = {default_allocate, default_release, NULL};
    if (allocator == NULL) allocator = &standard;
    gsp_context *made = allocator->allocate(allocator->user, sizeof *made);
    GSP_CHECK(made != NULL, GSP_ERROR_MEMORY);
    made->allocator = *allocator;
    atomic_init(&made->threads, 1);
    const gsp_status status = gspi_pool_init(&made->pool);
    if (status == GSP_OK) *context = made;
    else made->allocator.release(made->allocator.user, made);
    return status;
}

void gsp_context_destroy(gsp_context *context) {
    if (context == NULL) return;
    gspi_pool_clear(&context->pool);
    const gsp_allocator allocator = context->allocator;
    allocator.release(allocator.user, context);
}

gsp_status gsp_context_set_threads(gsp_context *context, int threads) {
    GSP_CHECK(threads >= 1 && threads <= GSPI_MAX_THREADS, GSP_ERROR_SHAPE);
    atomic_store(&context->threads, threads);
    return GSP_OK;
}

int gsp_context_threads(const gsp_context *context) { return atomic_load(&context->threads); }

/* The allocator promises no alignment of ours: the address that it gave stands just below ours. */
void *gspi_alloc(gsp_context *context, size_t count, size_t size) {
    size_t bytes;
    if (!gspi_mul(count, size, &bytes) || !gspi_add(bytes, GSP_ALIGNMENT + sizeof(void *), &bytes))
        return NULL;
    char *base = context->allocator.allocate(context->allocator.user, bytes);
    if (base == NULL) return NULL;
    const uintptr_t first = (uintptr_t)base + sizeof(void *);
    const size_t skip = (size_t)(-first % GSP_ALIGNMENT) + sizeof(void *);
    char *memory = base + skip;
    memcpy(memory - sizeof(void *), &base, sizeof base);
    return memory;
}

void *gspi_calloc(gsp_context *context, size_t count, size_t size) {
    void *memory = gspi_alloc(context, count, size);
    if (memory != NULL) memset(memory, 0, count * size);
    return memory;
}

void gspi_free(gsp_context *context, void *memory) {
    if (memory == NULL) return;
    void *base;
    memcpy(&base, (char *)memory - sizeof(void *), sizeof base);
    context->allocator.release(context->allocator.user, base);
}

/* ----------------------------------------------------------------- threads */

int gspi_workers(const gsp_context *context, int64_t items) {
    return (int)gspi_max(1, gspi_min(items, gsp_context_threads(context)));
}

bool gspi_is_busy(gsp_context *context) { return gspi_pool_is_busy(&context->pool); }

gsp_status gspi_parallel_on(gsp_context *context, int workers, int64_t items, gspi_body body,
                            void *argument) {
    return gspi_pool_run(&context->pool, workers, items, body, argument);
}

gsp_status gspi_parallel(gsp_context *context, int64_t items, gspi_body body, void *argument) {
    return gspi_parallel_on(context, gspi_workers(context, items), items, body, argument);
}
