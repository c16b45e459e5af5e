/* Choosing and checking masks: _core.choose, limits, check_mask, complete_mask. */
#include "gsp_py.h"

/* ------------------------------------------------------------------ choose */

/* The arrays of one choice; the inputs are borrowed from the caller's tuple, the outputs are
 * owned. */
typedef struct {
    PyArrayObject *scores;
    PyArrayObject *mask, *row_order, *bundles;
} choice_arrays;

/* The entries of a row order with one entry per row, or NULL with an error. */
static uint32_t *read_row_order(PyObject *object, int64_t rows) {
    PyArrayObject *order = gsp_py_array(object, NPY_UINT32, 1, "row_order");
    if (order == NULL) return NULL;
    if (PyArray_DIM(order, 0) != rows) {
        PyErr_Format(PyExc_ValueError, "row_order must have one entry per row: %zd, got %zd",
                     (Py_ssize_t)rows, (Py_ssize_t)PyArray_DIM(order, 0));
        return NULL;
    }
    return PyArray_DATA(order);
}

static PyObject *new_array(int ndim, const npy_intp *shape, int typenum, void **data) {
    PyObject *array = PyArray_SimpleNew(ndim, shape, typenum);
    if (array != NULL) *data = PyArray_DATA((PyArrayObject *)array);
    return array;
}

/* Reads (scores, pattern, scatter, row_order or None, min_per_group, max_per_group, min_keep,
 * max_keep) and makes room for the result. */
static int read_choice(PyObject *object, gsp_choice *choice, choice_arrays *arrays) {
    PyObject *scores, *row_order;
    long long min_per_group, max_per_group, min_keep, max_keep;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a choice must be a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(object, "OO&pOLLLL", &scores, gsp_py_pattern, &choice->pattern,
                          &choice->scatter, &row_order, &min_per_group, &max_per_group, &min_keep,
                          &max_keep))
        return -1;
    arrays->scores = gsp_py_array(scores, NPY_FLOAT32, 2, "scores");
    if (arrays->scores == NULL) return -1;
    choice->scores = PyArray_DATA(arrays->scores);
    choice->rows = PyArray_DIM(arrays->scores, 0);
    choice->cols = PyArray_DIM(arrays->scores, 1);
    choice->min_per_group = min_per_group;
    choice->max_per_group = max_per_group;
    choice->min_keep = min_keep;
    choice->max_keep = max_keep;

    const npy_intp shape[] = {choice->rows, choice->cols};
    arrays->mask = (PyArrayObject *)new_array(2, shape, NPY_BOOL, (void **)&choice->mask);
    if (arrays->mask == NULL) return -1;
    if (row_order != Py_None) {
        choice->row_order = read_row_order(row_order, choice->rows);
        if (choice->row_order == NULL) return -1;
    }
    if (choice->scatter) {
        arrays->row_order =
            (PyArrayObject *)new_array(1, shape, NPY_UINT32, (void **)&choice->row_order);
        if (arrays->row_order == NULL) return -1;
    }
    if (choice->pattern.kind == GSP_GS && choice->pattern.per_row > 0 &&
        choice->pattern.banks > 0) {
        if (choice->pattern.banks % choice->pattern.per_row != 0) return 0; /* gsp_choose says so */
        const npy_intp groups[] = {gsp_groups(&choice->pattern, choice->rows)};
        arrays->bundles =
            (PyArrayObject *)new_array(1, groups, NPY_UINT32, (void **)&choice->bundles);
        if (arrays->bundles == NULL) return -1;
    }
    return 0;
}

static PyObject *array_or_none(PyArrayObject *array) {
    PyObject *object = array == NULL ? Py_None : (PyObject *)array;
    return Py_NewRef(object);
}

static PyObject *copy_of(int ndim, const npy_intp *shape, int typenum, const void *data) {
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(ndim, shape, typenum);
    if (array != NULL && PyArray_NBYTES(array) > 0)
        memcpy(PyArray_DATA(array), data, (size_t)PyArray_NBYTES(array));
    return (PyObject *)array;
}

static PyObject *prices_tuple(const gsp_prices *prices) {
    if (prices == NULL) Py_RETURN_NONE;
    const npy_intp count[] = {(npy_intp)prices->count};
    const npy_intp rows[] = {count[0], prices->group_rows}, banks[] = {count[0], prices->banks};
    return Py_BuildValue(
        "(NNNNNN)", copy_of(1, count, NPY_INT64, prices->group),
        copy_of(1, count, NPY_INT64, prices->bundles), copy_of(2, rows, NPY_FLOAT64, prices->row),
        copy_of(2, banks, NPY_FLOAT64, prices->bank), copy_of(1, count, NPY_FLOAT64, prices->value),
        copy_of(1, count, NPY_FLOAT64, prices->bound));
}

/* A bad score by its place and value. */
static PyObject *raise_score(PyObject *module, const gsp_choice *choice) {
    const double value = choice->scores[choice->fault];
    char detail[128];
    char *text = PyOS_double_to_string(value, 'g', 6, 0, NULL);
    if (text == NULL) return NULL;
    PyOS_snprintf(detail, sizeof detail, "scores[%lld, %lld] is %s",
                  (long long)(choice->fault / choice->cols),
                  (long long)(choice->fault % choice->cols), text);
    PyMem_Free(text);
    return gsp_py_raise(module, GSP_ERROR_SCORE, detail);
}

static PyObject *choose(PyObject *module, PyObject *args) {
    PyObject *given;
    long long keep;
    int greedy;
    if (!PyArg_ParseTuple(args, "O!Lp", &PyTuple_Type, &given, &keep, &greedy)) return NULL;
    gsp_context *context = gsp_py_state_of(module)->context;
    const Py_ssize_t count = PyTuple_GET_SIZE(given);
    gsp_choice *choices = PyMem_Calloc((size_t)count + 1, sizeof *choices);
    choice_arrays *arrays = PyMem_Calloc((size_t)count + 1, sizeof *arrays);
    PyObject *result = NULL, *masks = NULL;
    gsp_prices *prices = NULL;
    double bound = 0;
    if (choices == NULL || arrays == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_choice(PyTuple_GET_ITEM(given, i), &choices[i], &arrays[i]) < 0) goto done;

    gsp_status status;
    Py_BEGIN_ALLOW_THREADS
    status = gsp_choose(context, choices, (size_t)count, keep, greedy ? GSP_GREEDY : GSP_EXACT,
                        &prices, &bound);
    Py_END_ALLOW_THREADS
    if (status == GSP_ERROR_SCORE) {
        Py_ssize_t bad = 0; /* one of them has a fault */
        while (bad < count - 1 && choices[bad].fault < 0) bad++;
        raise_score(module, &choices[bad]);
        goto done;
    }
    if (status != GSP_OK) {
        gsp_py_raise(module, status, NULL);
        goto done;
    }
    masks = PyTuple_New(count);
    if (masks == NULL) goto done;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *one = Py_BuildValue("(ONNdL)", arrays[i].mask, array_or_none(arrays[i].row_order),
                                      array_or_none(arrays[i].bundles), choices[i].score,
                                      (long long)choices[i].kept);
        if (one == NULL) goto done;
        PyTuple_SET_ITEM(masks, i, one);
    }
    result = Py_BuildValue("(ONd)", masks, prices_tuple(prices), bound);

done:
    gsp_prices_destroy(context, prices);
    Py_XDECREF(masks);
    for (Py_ssize_t i = 0; arrays != NULL && i < count; i++) {
        Py_XDECREF(arrays[i].mask);
        Py_XDECREF(arrays[i].row_order);
        Py_XDECREF(arrays[i].bundles);
    }
    PyMem_Free(choices);
    PyMem_Free(arrays);
    return result;
}

/* ------------------------------------------------------- check and complete */

static PyObject *max_bundles(PyObject *module, PyObject *args) {
    (void)module;
    gsp_pattern pattern;
    long long cols, rows;
    if (!PyArg_ParseTuple(args, "O&LL", gsp_py_pattern, &pattern, &cols, &rows)) return NULL;
    if (pattern.kind != GSP_GS || pattern.banks == 0 || pattern.per_row == 0 || cols < 0 ||
        rows < 0) {
        PyErr_SetString(PyExc_ValueError,
                        "max_bundles takes a GS pattern and sizes that are not negative");
        return NULL;
    }
    return PyLong_FromLongLong(gsp_max_bundles(&pattern, cols, rows));
}

/* What check_mask and complete_mask work on; the arrays are borrowed from the caller's tuple. */
typedef struct {
    gsp_pattern pattern;
    uint8_t *mask;
    const uint32_t *row_order; /* or NULL */
    int64_t rows, cols;
} mask_arguments;

/* Reads (mask, pattern, row_order or None); 0 or -1. */
static int read_mask(PyObject *args, bool writeable, mask_arguments *given) {
    PyObject *mask_object, *order_object;
    if (!PyArg_ParseTuple(args, "OO&O", &mask_object, gsp_py_pattern, &given->pattern,
                          &order_object))
        return -1;
    PyArrayObject *mask = writeable ? gsp_py_output(mask_object, NPY_BOOL, 2, "mask")
                                    : gsp_py_array(mask_object, NPY_BOOL, 2, "mask");
    if (mask == NULL) return -1;
    given->mask = PyArray_DATA(mask);
    given->rows = PyArray_DIM(mask, 0);
    given->cols = PyArray_DIM(mask, 1);
    given->row_order = NULL;
    if (order_object == Py_None) return 0;
    given->row_order = read_row_order(order_object, given->rows);
    return given->row_order == NULL ? -1 : 0;
}

static PyObject *check_mask(PyObject *module, PyObject *args) {
    mask_arguments given;
    if (read_mask(args, false, &given) < 0) return NULL;
    gsp_context *context = gsp_py_state_of(module)->context;
    gsp_violation *list = NULL;
    size_t count = 0;
    gsp_status status;
    /* Count first, then collect: violations are rare, and two passes are cheaper than a guess. */
    Py_BEGIN_ALLOW_THREADS
    status = gsp_check(context, given.mask, given.rows, given.cols, &given.pattern, given.row_order,
                       NULL, 0, &count);
    if (status == GSP_OK && count > 0) {
        const size_t room = count;
        list = PyMem_RawCalloc(room, sizeof *list);
        status = list == NULL ? GSP_ERROR_MEMORY
                              : gsp_check(context, given.mask, given.rows, given.cols,
                                          &given.pattern, given.row_order, list, room, &count);
        if (count > room) count = room; /* another thread wrote to the mask meanwhile */
    }
    Py_END_ALLOW_THREADS
    PyObject *result = NULL;
    if (status != GSP_OK) {
        gsp_py_raise(module, status, NULL);
    } else if ((result = PyList_New((Py_ssize_t)count)) != NULL) {
        for (size_t i = 0; i < count; i++) {
            PyObject *one = Py_BuildValue("(LLLLL)", (long long)list[i].group,
                                          (long long)list[i].row, (long long)list[i].bank,
                                          (long long)list[i].count, (long long)list[i].expected);
            if (one == NULL) {
                Py_CLEAR(result);
                break;
            }
            PyList_SET_ITEM(result, (Py_ssize_t)i, one);
        }
    }
    PyMem_RawFree(list);
    return result;
}

static PyObject *complete_mask(PyObject *module, PyObject *args) {
    mask_arguments given;
    if (read_mask(args, true, &given) < 0) return NULL;
    gsp_context *context = gsp_py_state_of(module)->context;
    int64_t group = -1;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS
    status = gsp_complete(context, given.mask, given.rows, given.cols, &given.pattern,
                          given.row_order, &group);
    Py_END_ALLOW_THREADS
    if (status == GSP_ERROR_MASK) {
        char detail[160];
        PyOS_snprintf(detail, sizeof detail,
                      "group %lld has nonzeros that no valid mask of the pattern can all hold",
                      (long long)group);
        return gsp_py_raise(module, status, detail);
    }
    if (status != GSP_OK) return gsp_py_raise(module, status, NULL);
    Py_RETURN_NONE;
}

PyMethodDef gsp_py_masks_methods[] = {
    {"choose", choose, METH_VARARGS, "choose(choices, keep, greedy) -> (results, prices, bound)"},
    {"max_bundles", max_bundles, METH_VARARGS, "max_bundles(pattern, cols, group_rows) -> int"},
    {"check_mask", check_mask, METH_VARARGS,
     "check_mask(mask, pattern, row_order) -> list of violations"},
    {"complete_mask", complete_mask, METH_VARARGS,
     "complete_mask(mask, pattern, row_order): in place"},
    {NULL, NULL, 0, NULL},
};
