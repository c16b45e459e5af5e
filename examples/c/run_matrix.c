/* Loads a compact matrix from a folder of .npy files, checks it, plans it for this CPU and multiplies:
 *
 *     run_matrix FOLDER        prints y = W x, one number a line
 *
 * export_arrays.py writes such a folder. Everything that a device needs is here and in libgspattern: no
 * Python, no JSON. The files are not trusted: sizes are checked here, the contents by gsp_validate. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gspattern.h>

typedef struct {
    char type[8]; /* of the elements, as NumPy writes it: "<f4" */
    size_t count, bytes;
    void *data; /* NULL if there is no such file */
} array;

static void fail(const char *where, const char *what) {
    fprintf(stderr, "run_matrix: %s: %s\n", where, what);
    exit(1);
}

/* Finds `'key': ` in the header of a .npy file, a Python dictionary. */
static const char *find(const char *header, const char *key, const char *path) {
    const char *at = strstr(header, key);
    if (at == NULL) fail(path, "the header lacks a key");
    at += strlen(key);
    return at + strspn(at, ": ");
}

/* The number of elements in a shape such as (3, 4), (5,) or (). */
static size_t count_of(const char *shape, const char *path) {
    size_t count = 1;
    if (*shape++ != '(') fail(path, "the shape is not a tuple");
    while (shape += strspn(shape, ", "), *shape != ')') {
        char *end;
        errno = 0;
        const unsigned long long size = strtoull(shape, &end, 10);
        if (end == shape || *shape == '-' || errno != 0)
            fail(path, "the shape is not made of sizes");
        if (size != 0 && count > SIZE_MAX / 16 / size) fail(path, "the shape is too large");
        count *= (size_t)size;
        shape = end;
    }
    return count;
}

/* Reads FOLDER/name.npy: the magic, the version, the length of the header, the header, the data. */
static array load(const char *folder, const char *name, int optional) {
    char path[4096];
    array loaded = {.data = NULL};
    if (snprintf(path, sizeof path, "%s/%s.npy", folder, name) >= (int)sizeof path)
        fail(name, "the path is too long");
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        if (optional && errno == ENOENT) return loaded;
        fail(path, strerror(errno));
    }
    unsigned char start[10];
    if (fread(start, 1, sizeof start, file) != sizeof start ||
        memcmp(start, "\x93NUMPY\1\0", 8) != 0)
        fail(path, "not a .npy file of version 1.0");
    char header[65536];
    const size_t length = start[8] | (size_t)start[9] << 8;
    if (fread(header, 1, length, file) != length) fail(path, "the header is cut off");
    header[length] = '\0';

    const char *type = find(header, "'descr'", path);
    size_t size;
    if (sscanf(type, "'%7[^']'", loaded.type) != 1 || strlen(loaded.type) != 3)
        fail(path, "the elements are not plain numbers");
    size = (size_t)(loaded.type[2] - '0');
    if (strchr("<|", loaded.type[0]) == NULL || strchr("fiu", loaded.type[1]) == NULL ||
        (size != 1 && size != 2 && size != 4 && size != 8))
        fail(path, "the elements must be little-endian numbers of 1 to 8 bytes");
    if (strncmp(find(header, "'fortran_order'", path), "False", 5) != 0)
        fail(path, "the array must be in C order");
    loaded.count = count_of(find(header, "'shape'", path), path);
    loaded.bytes = loaded.count * size;
    loaded.data = malloc(loaded.bytes + 1);
    if (loaded.data == NULL) fail(path, "out of memory");
    /* One byte more is asked for, to see that there is none. */
    if (fread(loaded.data, 1, loaded.bytes + 1, file) != loaded.bytes)
        fail(path, "the data are not as long as the header says");
    fclose(file);
    return loaded;
}

static void want(const array *loaded, const char *type, const char *name) {
    if (loaded->data != NULL && strcmp(loaded->type + 1, type + 1) != 0)
        fail(name, "the type of the elements is not the one expected");
}

static gsp_dtype dtype_of(const array *values) {
    static const struct {
        const char *type;
        gsp_dtype dtype;
    } known[] = {{"f8", GSP_FLOAT64},
                 {"f4", GSP_FLOAT32},
                 {"f2", GSP_FLOAT16},
                 {"u2", GSP_BFLOAT16}, /* NumPy has no name for it: the bits */
                 {"i1", GSP_INT8}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(values->type + 1, known[i].type) == 0) return known[i].dtype;
    fail("values", "no such type of weights");
    return GSP_FLOAT32;
}

static void must(gsp_status status, const char *where) {
    if (status != GSP_OK) fail(where, gsp_status_text(status));
}

int main(int count, char **words) {
    if (count != 2) {
        fprintf(stderr, "usage: run_matrix FOLDER\n");
        return 2;
    }
    const char *folder = words[1];
    /* Twelve whole numbers; export_arrays.py writes them. */
    array matrix_file = load(folder, "matrix", 0), values = load(folder, "values", 0);
    array indices = load(folder, "indices", 0), indptr = load(folder, "indptr", 0);
    array row_order = load(folder, "row_order", 1), scales = load(folder, "scales", 1);
    array x = load(folder, "x", 0);
    want(&matrix_file, "<i8", "matrix");
    want(&indptr, "<u4", "indptr");
    want(&row_order, "<u4", "row_order");
    want(&scales, "<f4", "scales");
    if (matrix_file.count != 12) fail("matrix", "12 numbers were expected");
    const int64_t *number = matrix_file.data;
    for (int i = 0; i < 12; i++)
        if (number[i] < 0 || number[i] > UINT32_MAX) fail("matrix", "a number is out of range");

    const gsp_matrix matrix = {
        .pattern = {.kind = (gsp_kind)number[0],
                    .banks = (uint32_t)number[1],
                    .per_row = (uint32_t)number[2],
                    .layout = (gsp_layout)number[3],
                    .block_rows = (uint32_t)number[4],
                    .block_cols = (uint32_t)number[5],
                    .nm_n = (uint32_t)number[6],
                    .nm_m = (uint32_t)number[7]},
        .rows = number[8],
        .cols = number[9],
        .units = (uint64_t)number[10],
        .index_bytes = (uint32_t)number[11],
        .dtype = dtype_of(&values),
        .values = values.data,
        .indices = indices.data,
        .indptr = indptr.data,
        .row_order = row_order.data,
        .scales = scales.data,
    };
    const gsp_lengths lengths = {values.bytes, indices.bytes, indptr.bytes, row_order.bytes,
                                 scales.bytes};
    gsp_context *context;
    must(gsp_context_create(NULL, &context), "context");
    gsp_fault fault = {0};
    const gsp_status status = gsp_validate(context, &matrix, &lengths, &fault);
    must(status, status == GSP_OK || fault.array == NULL ? "matrix" : fault.array);

    const int wide = matrix.dtype == GSP_FLOAT64;
    want(&x, wide ? "<f8" : "<f4", "x");
    if (x.count != (size_t)matrix.cols)
        fail("x", "as many numbers as the matrix has columns were expected");
    void *y = malloc((size_t)matrix.rows * (wide ? 8 : 4) + 1);
    if (y == NULL) fail("y", "out of memory");

    gsp_backend backends[GSP_BACKENDS];
    gsp_backends(backends);
    gsp_plan *plan;
    must(gsp_plan_create(context, &matrix, backends[0], 1, &plan), "plan");
    must(gsp_multiply(plan, x.data, 1, NULL, y, NULL), "multiply");
    const gsp_plan_info info = gsp_plan_describe(plan);
    fprintf(stderr, "%" PRId64 " x %" PRId64 ", kernel %s, %" PRIu64 " bytes\n", matrix.rows,
            matrix.cols, info.kernel, info.bytes);
    for (int64_t row = 0; row < matrix.rows; row++)
        printf("%.17g\n", wide ? ((const double *)y)[row] : (double)((const float *)y)[row]);

    gsp_plan_destroy(plan);
    gsp_context_destroy(context);
    void *const owned[] = {matrix_file.data, values.data, indices.data, indptr.data,
                           row_order.data,   scales.data, x.data,       y};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    return 0;
}
