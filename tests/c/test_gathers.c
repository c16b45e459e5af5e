/* Every gather and scatter that this CPU has, against loops of plain loads and stores, in arrays that end where they
 * must not be read on. */
#include "gsp_test.h"

#include "kernels/gsp_gathers.h"

#define ENTRIES 192 /* of which a look-up reaches the last ones too */
#define MOST 200

static uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static void test_one(const gspi_gathers *gathers, int64_t count, uint64_t *random) {
    int32_t *indices = malloc((size_t)count * sizeof *indices + 1);
    float *table = malloc(ENTRIES * sizeof *table);
    uint32_t expected[ENTRIES], sum = 0;
    int64_t first = 0;
    for (int64_t i = 0; i < ENTRIES; i++) expected[i] = (uint32_t)gsp_test_random(random);
    memcpy(table, expected, sizeof expected);
    const int64_t reach = gathers->reach ? gathers->reach : ENTRIES;
    for (int64_t i = 0; i < count; i++) {
        if (i % gathers->lanes == 0) first = gsp_test_below(random, ENTRIES / reach) * reach;
        indices[i] = (int32_t)(first + gsp_test_below(random, reach));
        if (gathers->scatters) expected[indices[i]] = (uint32_t)i;
        else sum += expected[indices[i]];
    }
    EXPECT_INT(gspi_gathers_check(gathers, indices, count, ENTRIES), GSP_OK);
    EXPECT_INT(gspi_gathers_run(gathers, indices, count, table), sum);
    for (int64_t i = 0; i < ENTRIES; i++) EXPECT_INT(bits_of(table[i]), expected[i]);
    if (count > 0) {
        indices[count - 1] = ENTRIES;
        EXPECT_INT(gspi_gathers_check(gathers, indices, count, ENTRIES), GSP_ERROR_INDEX);
        indices[count - 1] = -1;
        EXPECT_INT(gspi_gathers_check(gathers, indices, count, ENTRIES), GSP_ERROR_INDEX);
    }
    free(indices);
    free(table);
}

int main(void) {
    uint64_t random = 1;
    const gspi_gathers *gathers;
    for (int number = 0; (gathers = gspi_gathers_at(number)) != NULL; number++)
        for (int64_t count = 0; count <= MOST; count++) test_one(gathers, count, &random);
    return gsp_test_done("gathers");
}
