/* Encoding, validating and decoding, for gspattern/matrices.py. Values are passed as plain arrays of their
 * size: float16 and bfloat16 as uint16. */
#include "gsp_py.h"

#define ALIGNMENT 64

PyArrayObject *gsp_py_aligned(int typenum, int ndim, npy_intp *shape) {
    PyArray_Descr *descr = PyArray_DescrFromType(typenum);
    if (descr == NULL) return NULL;
    size_t bytes = (size_t)PyDataType_ELSIZE(descr);
    for (int i = 0; i < ndim; i++) {
        if (__builtin_mul_overflow(bytes, (size_t)shape[i], &bytes) ||
            bytes > NPY_MAX_INTP - ALIGNMENT) {
            Py_DECREF(descr);
            PyErr_NoMemory();
            return NULL;
        }
    }
    npy_intp room = (npy_intp)bytes + ALIGNMENT;
    PyObject *base = PyArray_SimpleNew(1, &room, NPY_UINT8);
    if (base == NULL) {
        Py_DECREF(descr);
        return NULL;
    }
    char *data = PyArray_BYTES((PyArrayObject *)base);
    data += -(uintptr_t)data % ALIGNMENT;
    PyArrayObject *array = (PyArrayObject *)PyArray_NewFromDescr(
        &PyArray_Type, descr, ndim, shape, NULL, data, NPY_ARRAY_CARRAY, NULL);
    if (array == NULL) {
        Py_DECREF(base);
        return NULL;
    }
    if (PyArray_SetBaseObject(array, base) < 0)
        Py_CLEAR(array); /* takes the base over in any case */
    return array;
}

/* The NumPy type that carries a dtype; -1 with an error for an unknown one. */
static int typenum_of(int dtype) {
    static const int typenums[] = {NPY_FLOAT64, NPY_FLOAT32, NPY_UINT16, NPY_UINT16, NPY_INT8};
    if (dtype >= 0 && dtype < (int)(sizeof typenums / sizeof *typenums)) return typenums[dtype];
    PyErr_Format(PyExc_ValueError, "unknown dtype: %d", dtype);
    return -1;
}

static int index_typenum(uint32_t bytes) {
    return bytes == 1 ? NPY_UINT8 : bytes == 2 ? NPY_UINT16 : NPY_UINT32;
}

static PyObject *encode(PyObject *module, PyObject *args) {
    PyObject *weights_object, *mask_object, *order_object;
    gsp_matrix matrix = {0};
    int dtype;
    if (!PyArg_ParseTuple(args, "OOO&Oi", &weights_object, &mask_object, gsp_py_pattern,
                          &matrix.pattern, &order_object, &dtype))
        return NULL;
    const int typenum = typenum_of(dtype);
    if (typenum < 0) return NULL;
    PyArrayObject *weights = gsp_py_array(weights_object, typenum, 2, "weights");
    if (weights == NULL) return NULL;
    PyArrayObject *mask = gsp_py_array(mask_object, NPY_BOOL, 2, "mask");
    if (mask == NULL) return NULL;
    PyArrayObject *order = NULL;
    if (order_object != Py_None &&
        (order = gsp_py_array(order_object, NPY_UINT32, 1, "row_order")) == NULL)
        return NULL;
    matrix.dtype = (gsp_dtype)dtype;
    matrix.rows = PyArray_DIM(weights, 0);
    matrix.cols = PyArray_DIM(weights, 1);
    if (!PyArray_SAMESHAPE(weights, mask) ||
        (order != NULL && PyArray_DIM(order, 0) != matrix.rows))
        return gsp_py_raise(module, GSP_ERROR_SHAPE, "weights, mask and row_order");
    if (order != NULL) matrix.row_order = PyArray_DATA(order);

    gsp_lengths lengths;
    gsp_status status = gsp_sizes(&matrix, &lengths); /* the pattern is well formed */
    if (status != GSP_OK) return gsp_py_raise(module, status, NULL);

    npy_intp count = (npy_intp)gsp_groups(&matrix.pattern, matrix.rows) + 1;
    PyArrayObject *indptr = gsp_py_aligned(NPY_UINT32, 1, &count), *values = NULL, *indices = NULL;
    if (indptr == NULL) return NULL;
    gsp_context *context = gsp_py_state_of(module)->context;
    Py_BEGIN_ALLOW_THREADS;
    status = gsp_measure(context, PyArray_DATA(mask), &matrix, PyArray_DATA(indptr));
    Py_END_ALLOW_THREADS;
    if (status != GSP_OK) goto failed;

    const gsp_pattern *pattern = &matrix.pattern;
    npy_intp shape[3] = {(npy_intp)matrix.units, 1, 1};
    int values_ndim = 1, indices_ndim = 1, index_type = index_typenum(matrix.index_bytes);
    npy_intp index_shape[2] = {shape[0], 1};
    if (pattern->kind == GSP_GS) {
        values_ndim = indices_ndim = 2;
        shape[1] = index_shape[1] = pattern->banks;
    } else if (pattern->kind == GSP_BLOCK) {
        values_ndim = 3;
        shape[1] = pattern->block_rows;
        shape[2] = pattern->block_cols;
    } else if (pattern->kind == GSP_NM) {
        if ((status = gsp_sizes(&matrix, &lengths)) != GSP_OK) goto failed;
        index_type = NPY_UINT8;
        index_shape[0] = (npy_intp)lengths.indices;
    }
    values = gsp_py_aligned(typenum, values_ndim, shape);
    if (values == NULL) goto failed;
    indices = gsp_py_aligned(index_type, indices_ndim, index_shape);
    if (indices == NULL) goto failed;
    Py_BEGIN_ALLOW_THREADS;
    status = gsp_encode(context, PyArray_DATA(weights), PyArray_DATA(mask), &matrix,
                        PyArray_DATA(values), PyArray_DATA(indices));
    Py_END_ALLOW_THREADS;
    if (status == GSP_OK) return Py_BuildValue("NNN", values, indices, indptr);
failed:
    if (!PyErr_Occurred()) gsp_py_raise(module, status, NULL);
    Py_XDECREF(values);
    Py_XDECREF(indices);
    Py_DECREF(indptr);
    return NULL;
}

/* The arguments (pattern, (rows, cols), dtype, values, indices, indptr, row_order, scales); None for what
 * is not there. Types and layout of the arrays are checked, nothing else is. */
int gsp_py_matrix(PyObject *args, gsp_matrix *matrix, gsp_lengths *lengths) {
    PyObject *objects[5];
    long long rows, cols;
    int dtype;
    *matrix = (gsp_matrix){0};
    *lengths = (gsp_lengths){0};
    if (!PyArg_ParseTuple(args, "O&(LL)iOOOOO", gsp_py_pattern, &matrix->pattern, &rows, &cols,
                          &dtype, &objects[0], &objects[1], &objects[2], &objects[3], &objects[4]))
        return -1;
    matrix->rows = rows;
    matrix->cols = cols;
    matrix->dtype = (gsp_dtype)dtype;
    const int value_type = typenum_of(dtype);
    if (value_type < 0) return -1;

    PyArrayObject *values = gsp_py_array(objects[0], value_type, -1, "values");
    if (values == NULL) return -1;
    if (PyArray_NDIM(values) < 1) {
        PyErr_SetString(PyExc_ValueError, "values must have at least 1 dimension");
        return -1;
    }
    matrix->values = PyArray_DATA(values);
    matrix->units = (uint64_t)PyArray_DIM(values, 0);
    lengths->values = (size_t)PyArray_NBYTES(values);

    if (!PyArray_Check(objects[1])) {
        PyErr_Format(PyExc_TypeError, "indices must be a NumPy array, got %s",
                     Py_TYPE(objects[1])->tp_name);
        return -1;
    }
    uint32_t index_bytes = (uint32_t)PyArray_ITEMSIZE((PyArrayObject *)objects[1]);
    if (index_bytes != 1 && index_bytes != 2) index_bytes = 4;
    PyArrayObject *indices = gsp_py_array(objects[1], index_typenum(index_bytes), -1, "indices");
    if (indices == NULL) return -1;
    matrix->indices = PyArray_DATA(indices);
    lengths->indices = (size_t)PyArray_NBYTES(indices);
    matrix->index_bytes = index_bytes;
    if (matrix->pattern.kind == GSP_NM && index_bytes == 1)
        matrix->index_bytes = gsp_index_bytes(&matrix->pattern, cols);

    PyArrayObject *indptr = gsp_py_array(objects[2], NPY_UINT32, 1, "indptr");
    if (indptr == NULL) return -1;
    matrix->indptr = PyArray_DATA(indptr);
    lengths->indptr = (size_t)PyArray_NBYTES(indptr);
    if (objects[3] != Py_None) {
        PyArrayObject *row_order = gsp_py_array(objects[3], NPY_UINT32, 1, "row_order");
        if (row_order == NULL) return -1;
        matrix->row_order = PyArray_DATA(row_order);
        lengths->row_order = (size_t)PyArray_NBYTES(row_order);
    }
    if (objects[4] != Py_None) {
        PyArrayObject *scales = gsp_py_array(objects[4], NPY_FLOAT32, 1, "scales");
        if (scales == NULL) return -1;
        matrix->scales = PyArray_DATA(scales);
        lengths->scales = (size_t)PyArray_NBYTES(scales);
    }
    return 0;
}

static PyObject *validate(PyObject *module, PyObject *args) {
    gsp_matrix matrix;
    gsp_lengths lengths;
    gsp_fault fault;
    if (gsp_py_matrix(args, &matrix, &lengths) < 0) return NULL;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = gsp_validate(gsp_py_state_of(module)->context, &matrix, &lengths, &fault);
    Py_END_ALLOW_THREADS;
    const char *rule;
    switch (status) {
    case GSP_OK: Py_RETURN_NONE;
    case GSP_ERROR_PATTERN: rule = "pattern"; break;
    case GSP_ERROR_SHAPE: rule = "shape"; break;
    case GSP_ERROR_DTYPE: rule = "dtype"; break;
    case GSP_ERROR_ROW_ORDER: rule = "row_order"; break;
    case GSP_ERROR_SCALES: rule = "scales"; break;
    case GSP_ERROR_INDPTR: rule = "indptr"; break;
    case GSP_ERROR_INDEX: rule = "index"; break;
    case GSP_ERROR_BANKS: rule = "banks"; break;
    case GSP_ERROR_ORDER: rule = "order"; break;
    case GSP_ERROR_DUPLICATE: rule = "duplicate"; break;
    case GSP_ERROR_PADDING: rule = "padding"; break;
    default: return gsp_py_raise(module, status, NULL);
    }
    return Py_BuildValue("sszKLL", rule, gsp_status_text(status), fault.array,
                         (unsigned long long)fault.element, (long long)fault.value,
                         (long long)fault.bound);
}

static PyObject *decode(PyObject *module, PyObject *args) {
    gsp_matrix matrix;
    gsp_lengths lengths;
    if (gsp_py_matrix(args, &matrix, &lengths) < 0) return NULL;
    npy_intp shape[2] = {(npy_intp)matrix.rows, (npy_intp)matrix.cols};
    PyArrayObject *weights = gsp_py_aligned(typenum_of((int)matrix.dtype), 2, shape);
    if (weights == NULL) return NULL;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = gsp_decode(gsp_py_state_of(module)->context, &matrix, PyArray_DATA(weights));
    Py_END_ALLOW_THREADS;
    if (status == GSP_OK) return (PyObject *)weights;
    Py_DECREF(weights);
    return gsp_py_raise(module, status, NULL);
}

static PyObject *columns(PyObject *module, PyObject *args) {
    gsp_matrix matrix;
    gsp_lengths lengths;
    if (gsp_py_matrix(args, &matrix, &lengths) < 0) return NULL;
    PyArrayObject *values = (PyArrayObject *)PyTuple_GET_ITEM(args, 3);
    PyArrayObject *result = gsp_py_aligned(NPY_UINT32, PyArray_NDIM(values), PyArray_SHAPE(values));
    if (result == NULL) return NULL;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = gsp_columns(gsp_py_state_of(module)->context, &matrix, PyArray_DATA(result));
    Py_END_ALLOW_THREADS;
    if (status == GSP_OK) return (PyObject *)result;
    Py_DECREF(result);
    return gsp_py_raise(module, status, NULL);
}

/* A copy in memory that kernels like. */
static PyObject *aligned_copy(PyObject *module, PyObject *object) {
    (void)module;
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "expected a NumPy array, got %s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyArrayObject *source = (PyArrayObject *)object;
    const int typenum = PyArray_TYPE(source);
    if (!PyTypeNum_ISNUMBER(typenum)) {
        PyErr_Format(PyExc_TypeError, "expected numbers, got %S", PyArray_DESCR(source));
        return NULL;
    }
    PyArrayObject *copy = gsp_py_aligned(typenum, PyArray_NDIM(source), PyArray_SHAPE(source));
    if (copy != NULL && PyArray_CopyInto(copy, source) < 0) Py_CLEAR(copy);
    return (PyObject *)copy;
}

PyMethodDef gsp_py_matrices_methods[] = {
    {"encode", encode, METH_VARARGS,
     "encode(weights, mask, pattern, row_order, dtype) -> (values, indices, indptr)"},
    {"validate", validate, METH_VARARGS,
     "validate(pattern, shape, dtype, values, indices, indptr, row_order, scales)\n\n"
     "None, or (rule, text, array, element, value, bound) for the first rule that is broken."},
    {"decode", decode, METH_VARARGS,
     "Dense weights; arguments as for validate, which must have passed."},
    {"columns", columns, METH_VARARGS,
     "The column of every value; arguments as for validate, which must have passed."},
    {"aligned_copy", aligned_copy, METH_O,
     "A C-contiguous copy in native byte order, aligned to 64 bytes."},
    {NULL, NULL, 0, NULL},
};
