/* Recurrent layers over sequences, for gspattern/recurrent.py, which checks what belongs to what. */
#include "gsp_py.h"

#define ALIGNMENT 64
/* More than this is given back to the system after every call. */
#define MOST_SPARE ((size_t)64 << 20)

/* Layers and directions of one call; more is unheard of. */
#define MOST_WEIGHTS 64

/* ------------------------------------------------------------------ memory */

/* So many bytes: the spare ones if they are enough, since new pages cost more than what is computed in them. */
static size_t *take_memory(gsp_py_spare *spare, size_t bytes) {
    size_t *memory = atomic_exchange(spare, NULL);
    if (memory != NULL && *memory >= bytes) return memory;
    PyMem_RawFree(memory);
    memory = PyMem_RawMalloc(bytes);
    if (memory != NULL) *memory = bytes;
    return memory;
}

static void give_back(gsp_py_spare *spare, size_t *memory) {
    if (*memory <= MOST_SPARE) memory = atomic_exchange(spare, memory);
    PyMem_RawFree(memory);
}

static gsp_status run(gsp_py_spare *spare, const gsp_recurrent *recurrent,
                      const gsp_sequences *sequences) {
    size_t bytes;
    gsp_status status = gsp_recurrent_workspace(recurrent, sequences, &bytes);
    if (status != GSP_OK) return status;
    if (__builtin_add_overflow(bytes, sizeof(size_t) + ALIGNMENT, &bytes)) return GSP_ERROR_MEMORY;
    size_t *memory = take_memory(spare, bytes);
    if (memory == NULL) return GSP_ERROR_MEMORY;
    char *workspace = (char *)(memory + 1);
    workspace += -(uintptr_t)workspace % ALIGNMENT;
    status = gsp_recurrent_run(recurrent, sequences, workspace);
    give_back(spare, memory);
    return status;
}

/* --------------------------------------------------------------- arguments */

/* The data of an optional array of this shape: NULL for None, -1 with an error. */
static int data_of(PyObject *object, int typenum, int ndim, const npy_intp *shape, const char *name,
                   const void **data) {
    PyArrayObject *array;
    *data = NULL;
    if (gsp_py_optional(object, typenum, ndim, name, &array) < 0) return -1;
    for (int i = 0; array != NULL && i < ndim; i++)
        if (PyArray_DIM(array, i) != shape[i]) {
            PyErr_Format(PyExc_ValueError, "dimension %d of %s must be %zd, got %zd", i, name,
                         (Py_ssize_t)shape[i], (Py_ssize_t)PyArray_DIM(array, i));
            return -1;
        }
    if (array != NULL) *data = PyArray_DATA(array);
    return 0;
}

/* Plans and biases by turns: input, hidden. */
static int parse_weights(PyObject *module, PyObject *plans, PyObject *biases,
                         gsp_recurrent *recurrent, gsp_recurrent_layer *weights,
                         gsp_py_plan_view *first) {
    if (!PyTuple_Check(plans) || !PyTuple_Check(biases) ||
        PyTuple_GET_SIZE(plans) != PyTuple_GET_SIZE(biases) || PyTuple_GET_SIZE(plans) % 2 != 0) {
        PyErr_SetString(PyExc_TypeError, "plans and biases must be tuples of two for each layer");
        return -1;
    }
    const Py_ssize_t count = PyTuple_GET_SIZE(plans) / 2;
    if (count < 1 || count > MOST_WEIGHTS || recurrent->directions < 1 ||
        count % recurrent->directions != 0) {
        PyErr_Format(PyExc_ValueError,
                     "there must be 1 to %d layers times directions, got %zd in %d directions",
                     MOST_WEIGHTS, count, recurrent->directions);
        return -1;
    }
    for (Py_ssize_t i = 0; i < 2 * count; i++) {
        gsp_py_plan_view view;
        if (gsp_py_plan(module, PyTuple_GET_ITEM(plans, i), &view) < 0) return -1;
        if (i == 0) *first = view;
        const npy_intp rows = (npy_intp)view.rows;
        const void *bias;
        if (data_of(PyTuple_GET_ITEM(biases, i), first->typenum, 1, &rows, "a bias", &bias) < 0)
            return -1;
        gsp_recurrent_layer *layer = &weights[i / 2];
        *(i % 2 == 0 ? &layer->input : &layer->hidden) = view.plan;
        *(i % 2 == 0 ? &layer->input_bias : &layer->hidden_bias) = bias;
    }
    recurrent->layers = (int64_t)count / recurrent->directions;
    recurrent->weights = weights;
    return 0;
}

static int parse_sequences(PyArrayObject *x, PyObject *batch_sizes, int64_t features,
                           gsp_sequences *sequences) {
    const int ndim = batch_sizes == Py_None ? 3 : 2;
    if (PyArray_NDIM(x) != ndim || PyArray_DIM(x, ndim - 1) != features) {
        PyErr_Format(PyExc_ValueError,
                     "x must have %d dimensions, the last of %lld features, got %d", ndim,
                     (long long)features, PyArray_NDIM(x));
        return -1;
    }
    sequences->x = PyArray_DATA(x);
    sequences->steps = PyArray_DIM(x, 0);
    sequences->batch = PyArray_DIM(x, 1);
    if (batch_sizes == Py_None) return 0;
    PyArrayObject *sizes = gsp_py_array(batch_sizes, NPY_INT64, 1, "batch_sizes");
    if (sizes == NULL) return -1;
    const int64_t *batches = PyArray_DATA(sizes);
    sequences->steps = PyArray_DIM(sizes, 0);
    sequences->batch = sequences->steps == 0 ? 0 : batches[0];
    sequences->batch_sizes = batches;
    int64_t samples = 0;
    for (int64_t step = 0; step < sequences->steps; step++)
        if (batches[step] < 0 || __builtin_add_overflow(samples, batches[step], &samples))
            samples = -1, step = sequences->steps;
    if (samples == PyArray_DIM(x, 0)) return 0;
    PyErr_Format(PyExc_ValueError, "batch_sizes must sum to the %zd rows of x",
                 (Py_ssize_t)PyArray_DIM(x, 0));
    return -1;
}

/* recurrent(cell, directions, plans, biases, x, batch_sizes, h0, c0) -> (y, h_n, c_n). */
static PyObject *recurrent(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    if (count != 8) {
        PyErr_SetString(
            PyExc_TypeError,
            "recurrent takes cell, directions, plans, biases, x, batch_sizes, h0 and c0");
        return NULL;
    }
    const int cell = (int)PyLong_AsLong(args[0]), directions = (int)PyLong_AsLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    gsp_recurrent of = {.cell = (gsp_cell)cell, .directions = directions};
    gsp_recurrent_layer weights[MOST_WEIGHTS];
    gsp_py_plan_view first;
    if (parse_weights(module, args[2], args[3], &of, weights, &first) < 0) return NULL;
    gsp_sequences sequences = {0};
    PyArrayObject *x = gsp_py_array(args[4], first.typenum, -1, "x");
    if (x == NULL || parse_sequences(x, args[5], first.cols, &sequences) < 0) return NULL;
    gsp_py_plan_view hidden;
    if (gsp_py_plan(module, PyTuple_GET_ITEM(args[2], 1), &hidden) < 0) return NULL;
    const npy_intp state_shape[] = {(npy_intp)(of.layers * directions), (npy_intp)sequences.batch,
                                    (npy_intp)hidden.cols};
    if (data_of(args[6], first.typenum, 3, state_shape, "h0", &sequences.h0) < 0 ||
        data_of(args[7], first.typenum, 3, state_shape, "c0", &sequences.c0) < 0)
        return NULL;

    const int ndim = PyArray_NDIM(x);
    npy_intp y_shape[3] = {PyArray_DIM(x, 0), PyArray_DIM(x, 1)};
    y_shape[ndim - 1] = directions * (npy_intp)hidden.cols;
    PyObject *y = PyArray_SimpleNew(ndim, y_shape, first.typenum);
    PyObject *h_n = PyArray_SimpleNew(3, state_shape, first.typenum), *c_n = Py_NewRef(Py_None);
    if (of.cell == GSP_LSTM) Py_SETREF(c_n, PyArray_SimpleNew(3, state_shape, first.typenum));
    PyObject *result = NULL;
    if (y != NULL && h_n != NULL && c_n != NULL) {
        sequences.y = PyArray_DATA((PyArrayObject *)y);
        sequences.h_n = PyArray_DATA((PyArrayObject *)h_n);
        if (of.cell == GSP_LSTM) sequences.c_n = PyArray_DATA((PyArrayObject *)c_n);
        gsp_status status;
        Py_BEGIN_ALLOW_THREADS
        status = run(&gsp_py_state_of(module)->spare, &of, &sequences);
        Py_END_ALLOW_THREADS
        if (status == GSP_OK) result = PyTuple_Pack(3, y, h_n, c_n);
        else gsp_py_raise(module, status, NULL);
    }
    Py_XDECREF(y);
    Py_XDECREF(h_n);
    Py_XDECREF(c_n);
    return result;
}

PyMethodDef gsp_py_recurrent_methods[] = {
    {"recurrent", (PyCFunction)(void (*)(void))recurrent, METH_FASTCALL,
     "recurrent(cell, directions, plans, biases, x, batch_sizes, h0, c0) -> (y, h_n, c_n)."},
    {NULL, NULL, 0, NULL},
};
