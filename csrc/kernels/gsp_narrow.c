/* x for narrow forms: brought into the order of the plan, and to floats, bfloat16 or bytes, one sample at a time. */
#include "gsp_narrow.h"

/* What the kernel multiplies: bytes, bfloat16, or else floats. */
static bool is_bytes(const gsp_plan *plan) {
    return plan->entry->form == GSPI_BYTES ||
           (plan->entry->form == GSPI_TILES && plan->operand == GSP_INT8);
}
static bool is_bfloat16(const gsp_plan *plan) {
    return plan->entry->form == GSPI_PAIRS ||
           (plan->entry->form == GSPI_TILES && plan->operand == GSP_BFLOAT16);
}

bool gspi_narrow_copies(const gsp_plan *plan, int64_t x_col) {
    switch (plan->entry->form) {
    case GSPI_ROWS: return false;
    case GSPI_PAIRS: return x_col != 1 || plan->bank_stride > 0 || plan->x_size > plan->matrix.cols;
    default: return true;
    }
}

int64_t gspi_narrow_size(const gsp_plan *plan) {
    return is_bytes(plan) ? 1 : is_bfloat16(plan) ? 2 : 4;
}

/* Not a power of two, so that samples do not fall on one another in the cache. */
int64_t gspi_narrow_stride(const gsp_plan *plan) {
    return gspi_ceil_div(plan->x_size * gspi_narrow_size(plan), 64) * 64 + 64;
}

/* x in the order of the plan, and zeros where there is none. */
#define ORDER(name, type, to_type, widen)                                                          \
    static void name(const gsp_plan *plan, const type *restrict x, int64_t x_col,                  \
                     to_type *restrict to) {                                                       \
        const int64_t cols = plan->matrix.cols, stride = plan->bank_stride;                        \
        const int64_t banks = stride > 0 ? plan->matrix.pattern.banks : 0;                         \
        int64_t at = 0;                                                                            \
        for (int64_t bank = 0; bank < banks; bank++) {                                             \
            for (int64_t col = bank; col < cols; col += banks) to[at++] = widen(x[col * x_col]);   \
            while (at < (bank + 1) * stride) to[at++] = 0;                                         \
        }                                                                                          \
        if (banks == 0 && x_col == 1)                                                              \
            for (; at < cols; at++) to[at] = widen(x[at]);                                         \
        else if (banks == 0)                                                                       \
            for (; at < cols; at++) to[at] = widen(x[at * x_col]);                                 \
        while (at < plan->x_size) to[at++] = 0;                                                    \
    }
ORDER(order_floats, float, float, )
ORDER(order_bfloat16, uint16_t, uint16_t, )
ORDER(order_widened, uint16_t, float, gspi_from_bfloat16)

/* Rounds `size` floats of a sample in the order of the plan. */
static gspi_quantum quantize(const gsp_plan *plan, const float *x, int64_t size, void *copy) {
#ifdef GSP_HAVE_AVX512VNNI
    if (is_bytes(plan)) return gspi_to_bytes__avx512vnni(x, size, copy);
#endif
    switch (plan->entry->backend) {
#ifdef GSP_HAVE_AVX512
    case GSP_AVX512: return gspi_to_floats__avx512(x, size, copy);
#endif
#ifdef GSP_HAVE_AVX2
    case GSP_AVX2: return gspi_to_floats__avx2(x, size, copy);
#endif
#ifdef GSP_HAVE_NEON
    case GSP_NEON: return gspi_to_floats__neon(x, size, copy);
#endif
    default: return gspi_measure__scalar(x, 1, size); /* not reached: those do not copy */
    }
}

gspi_quantum gspi_narrow_copy(const gsp_plan *plan, const void *x, int64_t x_col, void *copy,
                              float *room) {
    if (plan->operand == GSP_BFLOAT16) {
        if (is_bfloat16(plan)) order_bfloat16(plan, x, x_col, copy);
        else order_widened(plan, x, x_col, copy);
        return (gspi_quantum){0};
    }
    const int64_t cols = plan->matrix.cols;
    if (x_col != 1 || plan->bank_stride > 0) {
        order_floats(plan, x, x_col, room);
        return quantize(plan, room, plan->x_size, copy);
    }
    const gspi_quantum quantum = quantize(plan, x, cols, copy);
    /* What padding is multiplied with: anything finite. */
    const size_t size = is_bytes(plan) ? 1 : sizeof(float);
    memset((char *)copy + (size_t)cols * size, 0, (size_t)(plan->x_size - cols) * size);
    return quantum;
}
