/* Memory and threads of a context. */
#include <stdatomic.h>

#include "gsp_sample.h"

static void test_statuses(void) {
    EXPECT(strcmp(gsp_status_text(GSP_OK), "no error") == 0);
    for (int status = GSP_OK; status <= GSP_ERROR_SCALES; status++) {
        const char *text = gsp_status_text((gsp_status)status);
        EXPECT(text != NULL && strcmp(text, "unknown status") != 0);
        for (int other = GSP_OK; other < status; other++)
            EXPECT(strcmp(text, gsp_status_text((gsp_status)other)) != 0);
    }
    EXPECT(strcmp(gsp_status_text((gsp_status)999), "unknown status") == 0);
}

static void test_allocation(void) {
    gsp_test_memory memory = {.fail_at = -1};
    const gsp_allocator allocator = {gsp_test_allocate, gsp_test_release, &memory};
    gsp_context *context;
    EXPECT_INT(gsp_context_create(&allocator, &context), GSP_OK);
    const int64_t own = memory.outstanding;

    for (size_t bytes = 0; bytes < 200; bytes++) {
        unsigned char *block = gspi_alloc(context, bytes, 1);
        EXPECT(block != NULL && (uintptr_t)block % 64 == 0);
        memset(block, 0xa5, bytes);
        unsigned char *zeros = gspi_calloc(context, 1, bytes);
        bool all_zero = zeros != NULL;
        for (size_t i = 0; i < bytes; i++) all_zero = all_zero && zeros[i] == 0;
        EXPECT(all_zero);
        EXPECT_INT(memory.outstanding, own + 2);
        gspi_free(context, zeros);
        gspi_free(context, block);
    }
    gspi_free(context, NULL);

    /* Sizes that do not fit are refused before anybody is asked. */
    const int64_t requests = memory.requests;
    EXPECT(gspi_alloc(context, SIZE_MAX / 2 + 1, 2) == NULL);
    EXPECT(gspi_calloc(context, SIZE_MAX, SIZE_MAX) == NULL);
    EXPECT(gspi_alloc(context, SIZE_MAX, 1) == NULL);
    EXPECT_INT(memory.requests, requests);

    memory.fail_at = memory.requests;
    EXPECT(gspi_alloc(context, 8, 8) == NULL);
    gsp_context_destroy(context);
    gsp_context_destroy(NULL);
    EXPECT_INT(memory.outstanding, 0);
}

typedef struct {
    atomic_int runs[1000];
    int64_t fails_from; /* items from here on fail, each with a status of its own */
    int workers;
    atomic_int strangers; /* worker numbers out of range */
} tally;

static gsp_status count_run(void *argument, int64_t item, int worker) {
    tally *count = argument;
    atomic_fetch_add(&count->runs[item], 1);
    if (worker < 0 || worker >= count->workers) atomic_fetch_add(&count->strangers, 1);
    return item < count->fails_from ? GSP_OK : item % 2 ? GSP_ERROR_MASK : GSP_ERROR_INDEX;
}

static void test_parallel(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    EXPECT_INT(gsp_context_threads(context), 1);
    EXPECT_INT(gsp_context_set_threads(context, 0), GSP_ERROR_SHAPE);
    EXPECT_INT(gsp_context_set_threads(context, 257), GSP_ERROR_SHAPE);
    EXPECT_INT(gsp_context_threads(context), 1);

    static const int thread_counts[] = {1, 2, 3, 16, 256};
    static const int64_t item_counts[] = {0, 1, 2, 17, 1000};
    for (size_t t = 0; t < sizeof thread_counts / sizeof *thread_counts; t++) {
        EXPECT_INT(gsp_context_set_threads(context, thread_counts[t]), GSP_OK);
        EXPECT_INT(gsp_context_threads(context), thread_counts[t]);
        for (size_t i = 0; i < sizeof item_counts / sizeof *item_counts; i++) {
            const int64_t items = item_counts[i];
            tally count = {.fails_from = items, .workers = gspi_workers(context, items)};
            EXPECT(count.workers >= 1 && count.workers <= gspi_max(1, items));
            EXPECT_INT(gspi_parallel(context, items, count_run, &count), GSP_OK);
            EXPECT_INT(atomic_load(&count.strangers), 0);
            bool once = true;
            for (int64_t item = 0; item < 1000; item++)
                once = once && atomic_load(&count.runs[item]) == (item < items);
            EXPECT(once);
        }

        /* The lowest item that fails gives the status, whoever comes first. */
        for (int64_t first = 0; first < 40; first += 13) {
            tally count = {.fails_from = first, .workers = gspi_workers(context, 1000)};
            EXPECT_INT(gspi_parallel(context, 1000, count_run, &count),
                       first % 2 ? GSP_ERROR_MASK : GSP_ERROR_INDEX);
            for (int64_t item = 0; item <= first; item++)
                EXPECT_INT(atomic_load(&count.runs[item]), 1);
        }
    }
    gsp_context_destroy(context);
}

/* An allocator that sets another number of threads at every request, as a second thread might. */
typedef struct {
    gsp_context *context;
    atomic_int requests;
} meddler;

static void *meddle_allocate(void *user, size_t bytes) {
    meddler *m = user;
    const int request = atomic_fetch_add(&m->requests, 1);
    if (m->context != NULL) gsp_context_set_threads(m->context, request % 2 ? 1 : 16);
    return malloc(bytes);
}

static void meddle_release(void *user, void *memory) {
    (void)user;
    free(memory);
}

/* The setting may change in the middle of a call: what is allocated for each worker must suffice. Enough groups
 * that all workers get some. */
static void test_changing_threads(void) {
    static const gsp_shape shapes[] = {
        GSP_SHAPE(16, 16, GSP_INTERLEAVED, 3000, 64, true),
        GSP_SHAPE(4, 2, GSP_CONTIGUOUS, 3000, 33, true),
        {{.kind = GSP_IRREGULAR}, 3000, 65, false},
        {{.kind = GSP_BLOCK, .block_rows = 2, .block_cols = 4}, 3000, 66, false},
        {{.kind = GSP_NM, .nm_n = 2, .nm_m = 4}, 3000, 64, false},
    };
    gsp_context *calm, *meddled;
    meddler user = {.context = NULL};
    const gsp_allocator allocator = {meddle_allocate, meddle_release, &user};
    EXPECT_INT(gsp_context_create(NULL, &calm), GSP_OK);
    EXPECT_INT(gsp_context_create(&allocator, &meddled), GSP_OK);
    user.context = meddled;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int start = 0; start < 2; start++) { /* either number of threads comes first */
            gsp_sample one, other;
            atomic_store(&user.requests, start);
            gsp_context_set_threads(meddled, start ? 16 : 1);
            EXPECT_INT(gsp_sample_make(calm, &shapes[i], GSP_FLOAT32, 5, &one), GSP_OK);
            EXPECT_INT(gsp_sample_make(meddled, &shapes[i], GSP_FLOAT32, 5, &other), GSP_OK);
            const gsp_lengths *bytes = &one.lengths;
            EXPECT(memcmp(bytes, &other.lengths, sizeof *bytes) == 0 &&
                   memcmp(one.values, other.values, bytes->values) == 0 &&
                   memcmp(one.indices, other.indices, bytes->indices) == 0 &&
                   memcmp(one.indptr, other.indptr, bytes->indptr) == 0);
            gsp_sample_free(&one);
            gsp_sample_free(&other);
        }
    gsp_context_destroy(meddled);
    gsp_context_destroy(calm);
}

int main(void) {
    test_statuses();
    test_allocation();
    test_parallel();
    test_changing_threads();
    return gsp_test_done("context");
}
