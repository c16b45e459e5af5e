/* Gathers and scatters of plain C, and which instructions there are. */
#include "gsp_gathers.h"

#define CHAINS 4

/* One load each. For all that the compiler knows, a sum is another each time: it does not make vectors of them. */
static uint32_t load(const int32_t *indices, int64_t count, float *table) {
    uint32_t sum[CHAINS] = {0}, bits;
    for (int64_t at = 0; at < count; at += CHAINS)
        for (int i = 0; i < CHAINS; i++) {
            memcpy(&bits, table + indices[at + i], sizeof bits);
            sum[i] += bits;
            __asm__("" : "+r"(sum[i]));
        }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

static void store_from(const int32_t *indices, int64_t first, int64_t last, float *table) {
    for (int64_t i = first; i < last; i++) {
        const uint32_t number = (uint32_t)i;
        memcpy(table + indices[i], &number, sizeof number);
    }
}

static uint32_t store(const int32_t *indices, int64_t count, float *table) {
    store_from(indices, 0, count, table);
    return 0;
}

static const gspi_gathers list[] = {
    {"load", GSP_SCALAR, 1, 0, false, load},
    {"store", GSP_SCALAR, 1, 0, true, store},
#ifdef GSP_HAVE_AVX2
    {"avx2 gather", GSP_AVX2, 8, 0, false, gspi_gather__avx2},
    {"avx2 permute", GSP_AVX2, 8, 8, false, gspi_permute__avx2},
#endif
#ifdef GSP_HAVE_AVX512
    {"avx512 gather", GSP_AVX512, 16, 0, false, gspi_gather__avx512},
    {"avx512 permute", GSP_AVX512, 16, 32, false, gspi_permute__avx512},
    {"avx512 scatter", GSP_AVX512, 16, 0, true, gspi_scatter__avx512},
#endif
#ifdef GSP_HAVE_NEON
    {"neon permute", GSP_NEON, 4, 16, false, gspi_permute__neon},
#endif
};

const gspi_gathers *gspi_gathers_at(int number) {
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (gsp_backend_missing(list[i].backend) == NULL && number-- == 0) return list + i;
    return NULL;
}

gsp_status gspi_gathers_check(const gspi_gathers *gathers, const int32_t *indices, int64_t count,
                              int64_t entries) {
    for (int64_t i = 0; i < count; i++)
        GSP_CHECK(indices[i] >= 0 && indices[i] < entries, GSP_ERROR_INDEX);
    const int32_t reach = gathers->reach;
    const int64_t whole = reach == 0 ? 0 : count - count % GSPI_GATHERS_BLOCK;
    for (int64_t i = 0; i < whole; i++) {
        const int32_t first = indices[i - i % gathers->lanes] & -reach;
        GSP_CHECK((indices[i] & -reach) == first && first + (int64_t)reach <= entries,
                  GSP_ERROR_INDEX);
    }
    return GSP_OK;
}

uint32_t gspi_gathers_run(const gspi_gathers *gathers, const int32_t *indices, int64_t count,
                          float *table) {
    const int64_t whole = count - count % GSPI_GATHERS_BLOCK;
    uint32_t sum = gathers->loop(indices, whole, table), bits;
    if (gathers->scatters) {
        store_from(indices, whole, count, table);
        return sum;
    }
    for (int64_t i = whole; i < count; i++) {
        memcpy(&bits, table + indices[i], sizeof bits);
        sum += bits;
    }
    return sum;
}
