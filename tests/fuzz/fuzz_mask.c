/* Functions that read a mask of any content, held against each other: gsp_check finds no violation exactly
 * where gsp_measure accepts; what gsp_complete completes is valid, holds the mask, and is the mask itself if
 * that was valid; what encodes decodes to the same mask. */
#include "gsp_fuzz.h"

static bool is_valid(gsp_context *context, const gsp_shape *shape, const uint32_t *row_order,
                     const uint8_t *mask) {
    gsp_violation violations[3];
    size_t count;
    const gsp_status status = gsp_check(context, mask, shape->rows, shape->cols, &shape->pattern,
                                        row_order, violations, 3, &count);
    MUST(status == GSP_OK);
    for (size_t i = 0; i < count && i < 3; i++)
        MUST(violations[i].group >= 0 &&
             violations[i].group < gsp_groups(&shape->pattern, shape->rows) &&
             violations[i].count != violations[i].expected);

    uint32_t *indptr = gsp_test_bytes(((size_t)gsp_groups(&shape->pattern, shape->rows) + 1) * 4);
    gsp_matrix matrix = {.pattern = shape->pattern,
                         .rows = shape->rows,
                         .cols = shape->cols,
                         .dtype = GSP_INT8,
                         .row_order = row_order};
    const gsp_status measured = gsp_measure(context, mask, &matrix, indptr);
    MUST(measured == (count == 0 ? GSP_OK : GSP_ERROR_MASK));
    free(indptr);
    return count == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gsp_bytes from = {data, data + size};
    gsp_shape shape = {.pattern = gsp_take_pattern(&from),
                       .rows = gsp_take_below(&from, 9),
                       .cols = gsp_take_below(&from, 18)};
    if (gspi_check_pattern(&shape.pattern) != GSP_OK || shape.pattern.banks > 65536) return 0;
    shape.scatter = shape.pattern.kind == GSP_GS && gsp_take_below(&from, 2);
    const size_t area = (size_t)(shape.rows * shape.cols);
    gsp_context *context;
    MUST(gsp_context_create(NULL, &context) == GSP_OK);
    uint8_t *mask = gsp_test_bytes(area), *completed = gsp_test_bytes(area);
    uint32_t *row_order = gsp_test_bytes((size_t)shape.rows * sizeof *row_order);
    uint64_t state = gsp_take(&from, 1) * 2 + 1;
    const bool from_sample = gsp_take_below(&from, 2) &&
                             (shape.pattern.kind != GSP_GS || shape.pattern.banks <= shape.cols) &&
                             shape.cols > 0;
    if (from_sample) gsp_sample_mask(&shape, &state, mask, row_order);
    else gsp_test_shuffle(&state, row_order, shape.rows);
    const int64_t changes = gsp_take_below(&from, 6);
    for (int64_t i = 0; i < changes && area > 0; i++) {
        uint8_t *at = &mask[gsp_take_below(&from, (int64_t)area)];
        *at = *at ? 0 : (uint8_t)gspi_max(1, gsp_take_below(&from, 256));
    }

    const uint32_t *order = shape.scatter ? row_order : NULL;
    const bool valid = is_valid(context, &shape, order, mask);
    MUST(valid || !from_sample || changes > 0);
    memcpy(completed, mask, area);
    int64_t group = -1;
    const gsp_status status =
        gsp_complete(context, completed, shape.rows, shape.cols, &shape.pattern, order, &group);
    /* With more banks than columns only the empty mask is valid, and there is nothing to complete. */
    const bool fits =
        shape.pattern.kind != GSP_GS || shape.pattern.banks <= shape.cols || area == 0;
    MUST(fits ? status == GSP_OK || (status == GSP_ERROR_MASK && !valid && group >= 0)
              : status == GSP_ERROR_PATTERN);
    if (status == GSP_OK) {
        MUST(is_valid(context, &shape, order, completed));
        for (size_t i = 0; i < area; i++) MUST(completed[i] || !mask[i]);
        for (size_t i = 0; i < area && valid; i++) MUST(!completed[i] == !mask[i]);
    }
    free(row_order);
    free(completed);
    free(mask);
    gsp_context_destroy(context);
    return 0;
}
