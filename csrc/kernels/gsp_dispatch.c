/* The table of kernels, from kernels.inc. */
#include "gsp_kernels.h"

#define F64 (1u << GSP_FLOAT64)
#define F32 (1u << GSP_FLOAT32)
#define F16 (1u << GSP_FLOAT16)
#define BF16 (1u << GSP_BFLOAT16)
#define I8 (1u << GSP_INT8)
/* Widened to float when the plan is made. */
#define NARROW (F32 | F16 | BF16 | I8)
#define BLOCKS (1u << GSP_BLOCK)
#define ALL (1u << GSP_GS | 1u << GSP_IRREGULAR | BLOCKS | 1u << GSP_NM)

#define GSP_KERNEL(function, op, backend, dtypes, kinds, form, lanes, width, cost, most)           \
    {#function, function, GSPI_##op, GSP_##backend, dtypes,    kinds, GSPI_##form,                 \
     lanes,     width,    cost,      most,          F32 | F64, 0,     0},
#define GSP_NARROW(function, backend, dtypes, operands, form, lanes, width, cost, needs)           \
    {#function, function, GSPI_SPMV, GSP_##backend, dtypes, ALL, GSPI_##form, lanes,               \
     width,     cost,     0,         operands,      needs,  0},
#define GSP_TILES(function, backend, dtypes, operands, width, cost, expand)                        \
    {#function, function, GSPI_SPMM, GSP_##backend, dtypes, ALL,   GSPI_TILES, 16,                 \
     width,     cost,     0,         operands,      0,      expand},
const gspi_entry gspi_kernels[] = {
#include "kernels.inc"
    {0},
};
