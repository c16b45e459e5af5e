/* Row orders for patterns with scatter. */
#ifndef GSP_ORDER_H
#define GSP_ORDER_H

#include "gsp_choose.h"

/* Orders worth trying; the best by score is kept, so none can make a mask worse. */
typedef enum {
    GSPI_ORDER_NATURAL,
    GSPI_ORDER_BY_COUNT,           /* of the scores above the threshold */
    GSPI_ORDER_BY_INCLUSIVE_COUNT, /* of those not below it */
    GSPI_ORDER_BY_BANKS,
    GSPI_ORDERS
} gspi_order;

/* Fills row_order with the rows in this order. above[row] is the count of a row to sort by. */
gsp_status gspi_order_rows(gsp_context *context, const gspi_grid *grid, gspi_order order, const int64_t *above,
                           float threshold, uint32_t *row_order);
/* Rows by `key`, ascending or descending; equal rows stay in their order. */
gsp_status gspi_sort_rows(gsp_context *context, const int64_t *key, int64_t rows, bool ascending,
                          uint32_t *row_order);

#endif
