/* What the C files share and users do not see: checks, checked arithmetic, memory, threads. */
#ifndef GSP_INTERNAL_H
#define GSP_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "gspattern.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "gspattern needs a little-endian processor: plans and files are laid out so"
#endif

/* A precondition in one line: leaves the function with `status` unless `condition` holds. */
#define GSP_CHECK(condition, status)                                                               \
    do {                                                                                           \
        if (!(condition)) return (status);                                                         \
    } while (0)

/* Leaves the function if `call` did not return GSP_OK. For functions that own nothing yet. */
#define GSP_TRY(call)                                                                              \
    do {                                                                                           \
        const gsp_status gsp_try_status = (call);                                                  \
        if (gsp_try_status != GSP_OK) return gsp_try_status;                                       \
    } while (0)

/* result = a * b or a + b; false if it does not fit. */
static inline bool gspi_mul(size_t a, size_t b, size_t *result) {
    return !__builtin_mul_overflow(a, b, result);
}
static inline bool gspi_add(size_t a, size_t b, size_t *result) {
    return !__builtin_add_overflow(a, b, result);
}
/* memset and memcpy, but NULL is fine for no bytes. */
static inline void gspi_clear(void *memory, size_t bytes) {
    if (bytes > 0) memset(memory, 0, bytes);
}
static inline void gspi_copy_bytes(void *target, const void *source, size_t bytes) {
    if (bytes > 0) memcpy(target, source, bytes);
}
static inline int64_t gspi_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t gspi_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t gspi_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* In a loop that waits awake. */
#if defined(__x86_64__) || defined(__i386__)
#define GSPI_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define GSPI_PAUSE() __asm__ volatile("yield")
#else
#define GSPI_PAUSE() (void)0
#endif

/* count * size bytes from the context's allocator, aligned to 64; NULL on failure or overflow.
 * A request for nothing gives a pointer that may be freed and not read. */
void *gspi_alloc(gsp_context *context, size_t count, size_t size);
void *gspi_calloc(gsp_context *context, size_t count, size_t size);
void gspi_free(gsp_context *context, void *memory);

/* Runs body(argument, item, worker) for every item in [0, items), on at most gsp_context_threads
 * threads; worker is in [0, gspi_workers). Which thread takes which item is not determined, so a
 * body must not let its result depend on it. Returns the status of the lowest item that failed.
 * While the threads are at another job (of another caller, or the one that this body is part of),
 * the caller does all items itself, as worker 0. */
typedef gsp_status (*gspi_body)(void *argument, int64_t item, int worker);
gsp_status gspi_parallel(gsp_context *context, int64_t items, gspi_body body, void *argument);
/* Threads that gspi_parallel would use for so many items at this moment: at least 1. Who needs
 * something per worker asks once and uses gspi_parallel_on, because the setting may change at
 * any time. */
int gspi_workers(const gsp_context *context, int64_t items);
/* For work so short that waking a thread for it alone would not pay: whether the last call came a moment ago, so that
 * the threads are awake, or are worth waking for what will follow. */
bool gspi_is_busy(gsp_context *context);
gsp_status gspi_parallel_on(gsp_context *context, int workers, int64_t items, gspi_body body,
                            void *argument);

/* GSP_OK if the shape is possible: rows, cols >= 0, rows * cols * 8 fits in size_t, both below
 * 2^32. */
gsp_status gspi_check_shape(int64_t rows, int64_t cols);
/* GSP_OK if the pattern itself is well formed (whether it fits a matrix is another question). */
gsp_status gspi_check_pattern(const gsp_pattern *pattern);
/* GSP_OK if row_order is NULL or a permutation of rows. */
gsp_status gspi_check_row_order(gsp_context *context, const uint32_t *row_order, int64_t rows);

#endif
