/* Memory and threads of a context, and the texts of the statuses. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../gsp_internal.h"

#define GSP_MAX_THREADS 256
#define GSP_ALIGNMENT 64

struct gsp_context {
    gsp_allocator allocator;
    atomic_int threads;
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

static void *default_allocate(void *user, size_t bytes) {
    (void)user;
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
    *context = made;
    return GSP_OK;
}

void gsp_context_destroy(gsp_context *context) {
    if (context == NULL) return;
    const gsp_allocator allocator = context->allocator;
    allocator.release(allocator.user, context);
}

gsp_status gsp_context_set_threads(gsp_context *context, int threads) {
    GSP_CHECK(threads >= 1 && threads <= GSP_MAX_THREADS, GSP_ERROR_SHAPE);
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

/* One call of gspi_parallel, seen by all its threads. */
typedef struct {
    gspi_body body;
    void *argument;
    int64_t items;
    _Atomic int64_t next;
    _Atomic int64_t failed; /* lowest item that failed, or items */
    pthread_mutex_t lock;
    gsp_status status; /* of that item */
} job;

typedef struct {
    job *work;
    int worker;
} share;

static void run(job *work, int worker) {
    for (;;) {
        const int64_t item = atomic_fetch_add(&work->next, 1);
        /* Items below a failed one still run, so that the status does not depend on the threads. */
        if (item >= atomic_load(&work->failed)) return;
        const gsp_status status = work->body(work->argument, item, worker);
        if (status == GSP_OK) continue;
        pthread_mutex_lock(&work->lock);
        if (item < atomic_load(&work->failed)) {
            atomic_store(&work->failed, item);
            work->status = status;
        }
        pthread_mutex_unlock(&work->lock);
    }
}

static void *thread_main(void *argument) {
    const share *part = argument;
    run(part->work, part->worker);
    return NULL;
}

int gspi_workers(const gsp_context *context, int64_t items) {
    return (int)gspi_max(1, gspi_min(items, gsp_context_threads(context)));
}

gsp_status gspi_parallel_on(int workers, int64_t items, gspi_body body, void *argument) {
    job work = {.body = body, .argument = argument, .items = items, .status = GSP_OK};
    atomic_init(&work.next, 0);
    atomic_init(&work.failed, items);
    pthread_mutex_init(&work.lock, NULL);

    pthread_t threads[GSP_MAX_THREADS];
    share shares[GSP_MAX_THREADS];
    int started = 0;
    for (int worker = 1; worker < workers; worker++) {
        shares[started] = (share){&work, worker};
        /* Fewer threads than asked for are slower, not wrong. */
        if (pthread_create(&threads[started], NULL, thread_main, &shares[started]) != 0) break;
        started++;
    }
    run(&work, 0);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&work.lock);
    return work.status;
}

gsp_status gspi_parallel(gsp_context *context, int64_t items, gspi_body body, void *argument) {
    return gspi_parallel_on(gspi_workers(context, items), items, body, argument);
}
