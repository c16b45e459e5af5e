/* The type Plan: a matrix laid out for a kernel, and the products that it does. */
#include "gsp_py.h"

typedef struct {
    PyObject_HEAD gsp_plan *plan;
    PyObject *module; /* owns the context that the plan needs */
    int64_t rows, cols;
    int64_t most; /* gsp_plan_info.most */
    int64_t few;  /* samples that are a moment's work */
    int columns;  /* gsp_plan_info.columns */
    int typenum;  /* of x and y */
} plan_object;

/* Elements that are multiplied, read or written in a microsecond or two. */
#define MOMENT (1 << 15)

/* ------------------------------------------------------------------ create */

static int backend_of(PyObject *name, gsp_backend *backend) {
    for (int i = 0; i < GSP_BACKENDS; i++) {
        if (PyUnicode_CompareWithASCIIString(name, gsp_backend_name((gsp_backend)i)) != 0) continue;
        *backend = (gsp_backend)i;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "unknown backend: %R", name);
    return -1;
}

static PyObject *create(PyObject *module, PyObject *args) {
    PyObject *core, *name;
    long long n;
    gsp_backend backend;
    gsp_matrix matrix;
    gsp_lengths given, right;
    int operand = -1, typenum = -1;
    if (!PyArg_ParseTuple(args, "O!UL|ii:plan", &PyTuple_Type, &core, &name, &n, &operand,
                          &typenum))
        return NULL;
    if (backend_of(name, &backend) < 0 || gsp_py_matrix(core, &matrix, &given) < 0) return NULL;
    gsp_status status = gsp_sizes(&matrix, &right);
    /* The rest is validated when the plan is made. */
    if (status == GSP_OK && memcmp(&given, &right, sizeof given) != 0) status = GSP_ERROR_SHAPE;
    if (status != GSP_OK) return gsp_py_raise(module, status, NULL);

    const gsp_dtype wide = matrix.dtype == GSP_FLOAT64 ? GSP_FLOAT64 : GSP_FLOAT32;
    const gsp_dtype x = operand < 0 ? wide : (gsp_dtype)operand;
    if (x == GSP_BFLOAT16) {
        PyArray_Descr *descr = PyArray_DescrFromType(typenum);
        const bool right = descr != NULL && PyDataType_ELSIZE(descr) == sizeof(uint16_t);
        Py_XDECREF(descr);
        if (PyErr_Occurred()) return NULL;
        if (!right) {
            PyErr_Format(PyExc_ValueError, "typenum must be that of bfloat16, got %d", typenum);
            return NULL;
        }
    }
    const gsp_py_state *state = gsp_py_state_of(module);
    plan_object *made = PyObject_New(plan_object, (PyTypeObject *)state->plan_type);
    if (made == NULL) return NULL;
    *made = (plan_object){.ob_base = made->ob_base,
                          .module = Py_NewRef(module),
                          .rows = matrix.rows,
                          .cols = matrix.cols,
                          .typenum = x == GSP_FLOAT64    ? NPY_FLOAT64
                                     : x == GSP_BFLOAT16 ? typenum
                                                         : NPY_FLOAT32};
    Py_BEGIN_ALLOW_THREADS
    status = gsp_plan_create_for(state->context, &matrix, backend, n, x, &made->plan);
    Py_END_ALLOW_THREADS
    if (status != GSP_OK) {
        made->plan = NULL;
        Py_DECREF(made);
        return gsp_py_raise(module, status, NULL);
    }
    const gsp_plan_info info = gsp_plan_describe(made->plan);
    made->columns = info.columns;
    made->most = info.most;
    made->few = MOMENT / (int64_t)(info.slots + (uint64_t)(made->rows + made->cols) + 1);
    return (PyObject *)made;
}

static void plan_dealloc(PyObject *self) {
    plan_object *plan = (plan_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    gsp_plan_destroy(plan->plan);
    Py_XDECREF(plan->module);
    PyObject_Free(self);
    Py_DECREF(type);
}

int gsp_py_plan(PyObject *module, PyObject *object, gsp_py_plan_view *view) {
    if (!Py_IS_TYPE(object, (PyTypeObject *)gsp_py_state_of(module)->plan_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Plan, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    const plan_object *plan = (const plan_object *)object;
    *view = (gsp_py_plan_view){plan->plan, plan->rows, plan->cols, plan->typenum};
    return 0;
}

/* ---------------------------------------------------------------- multiply */

static int check_size(npy_intp got, int64_t expected, const char *name, const char *what) {
    if (got == expected) return 0;
    PyErr_Format(PyExc_ValueError, "%s must have %lld %s, got %zd", name, (long long)expected, what,
                 (Py_ssize_t)got);
    return -1;
}

bool gsp_py_overlap(PyArrayObject *a, PyArrayObject *b) {
    const char *first = PyArray_BYTES(a), *second = PyArray_BYTES(b);
    return first < second + PyArray_NBYTES(b) && second < first + PyArray_NBYTES(a);
}

/* Work of less than a moment keeps the GIL: to give it away and take it back costs as much as some of it. */
static PyObject *run(const plan_object *self, PyArrayObject *x, int64_t samples,
                     const gsp_strides *strides, PyArrayObject *y, const gsp_epilogue *epilogue) {
    gsp_status status;
    PyThreadState *thread = samples <= self->few ? NULL : PyEval_SaveThread();
    status = gsp_multiply(self->plan, PyArray_DATA(x), samples, strides, PyArray_DATA(y), epilogue);
    if (thread != NULL) PyEval_RestoreThread(thread);
    if (status == GSP_OK) return (PyObject *)y;
    Py_DECREF(y);
    return gsp_py_raise(self->module, status, NULL);
}

/* A new y. Registers of many samples are stored faster if y is aligned; for few the time to allocate it counts. */
static PyArrayObject *new_y(const plan_object *self, int ndim, npy_intp *shape) {
    return self->columns ? gsp_py_aligned(self->typenum, ndim, shape)
                         : (PyArrayObject *)PyArray_SimpleNew(ndim, shape, self->typenum);
}

/* x [cols] -> y [rows], or x [cols, n] -> y [rows, n]; a plan for columns takes the latter only. */
static PyObject *multiply(PyObject *object, PyObject *argument) {
    const plan_object *self = (const plan_object *)object;
    PyArrayObject *x = gsp_py_array(argument, self->typenum, self->columns ? 2 : -1, "x");
    if (x == NULL) return NULL;
    const int ndim = PyArray_NDIM(x);
    if (ndim != 1 && ndim != 2) {
        PyErr_Format(PyExc_ValueError, "x must have one or two dimensions, got %d", ndim);
        return NULL;
    }
    if (check_size(PyArray_DIM(x, 0), self->cols, "x", "rows, one for each column of the matrix") <
        0)
        return NULL;
    npy_intp shape[2] = {(npy_intp)self->rows, ndim == 2 ? PyArray_DIM(x, 1) : 1};
    PyArrayObject *y = new_y(self, ndim, shape);
    if (y == NULL) return NULL;
    const gsp_strides strides = {shape[1], 1, shape[1], 1};
    return run(self, x, shape[1], ndim == 2 ? &strides : NULL, y, NULL);
}

/* Whether x [..., cols], few samples of it, needs no conversion. */
static bool is_plain(const plan_object *self, PyObject *object, npy_intp samples) {
    if (!PyArray_Check(object)) return false;
    PyArrayObject *x = (PyArrayObject *)object;
    const int ndim = PyArray_NDIM(x);
    return PyArray_TYPE(x) == self->typenum && ndim > 0 && PyArray_DIM(x, ndim - 1) == self->cols &&
           PyArray_SIZE(x) <= samples * self->cols && PyArray_ISCARRAY_RO(x);
}

static PyObject *try_multiply(PyObject *object, PyObject *argument) {
    const plan_object *self = (const plan_object *)object;
    if (self->columns || !is_plain(self, argument, 1) ||
        PyArray_NDIM((PyArrayObject *)argument) != 1)
        Py_RETURN_NONE;
    return multiply(object, argument);
}

static int check_like_y(PyArrayObject *array, PyArrayObject *x, int64_t rows, const char *name) {
    const int ndim = PyArray_NDIM(x);
    int right = PyArray_NDIM(array) == ndim && PyArray_DIM(array, ndim - 1) == rows;
    for (int i = 0; right && i < ndim - 1; i++) right = PyArray_DIM(array, i) == PyArray_DIM(x, i);
    if (right) return 0;
    npy_intp expected[NPY_MAXDIMS];
    for (int i = 0; i < ndim - 1; i++) expected[i] = PyArray_DIM(x, i);
    expected[ndim - 1] = (npy_intp)rows;
    PyObject *wanted = PyArray_IntTupleFromIntp(ndim, expected);
    PyObject *given = PyArray_IntTupleFromIntp(PyArray_NDIM(array), PyArray_SHAPE(array));
    if (wanted != NULL && given != NULL)
        PyErr_Format(PyExc_ValueError, "%s must have shape %S, got %S", name, wanted, given);
    Py_XDECREF(wanted);
    Py_XDECREF(given);
    return -1;
}

int gsp_py_activation(PyObject *object, gsp_epilogue *epilogue) {
    int number;
    if (PyTuple_Check(object)) {
        if (!PyArg_ParseTuple(object, "idd:activation", &number, &epilogue->low, &epilogue->high))
            return -1;
    } else {
        number = (int)PyLong_AsLong(object);
        if (number == -1 && PyErr_Occurred()) return -1;
    }
    epilogue->activation = (gsp_activation)number;
    return 0;
}

/* linear(x, bias, activation, residual, out): x [..., cols] -> y [..., rows]. */
static PyObject *linear(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    const plan_object *self = (const plan_object *)object;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "linear takes x, bias, activation, residual and out");
        return NULL;
    }
    PyArrayObject *x = gsp_py_array(args[0], self->typenum, -1, "x"), *bias, *residual, *y;
    if (x == NULL) return NULL;
    const int ndim = PyArray_NDIM(x);
    if (ndim == 0) {
        PyErr_SetString(PyExc_ValueError, "x must have at least one dimension, got a scalar");
        return NULL;
    }
    if (check_size(PyArray_DIM(x, ndim - 1), self->cols, "the last dimension of x", "elements") < 0)
        return NULL;
    gsp_epilogue epilogue = {0};
    if (gsp_py_activation(args[2], &epilogue) < 0) return NULL;
    if (gsp_py_optional(args[1], self->typenum, 1, "bias", &bias) < 0 ||
        gsp_py_optional(args[3], self->typenum, -1, "residual", &residual) < 0)
        return NULL;
    if (bias && check_size(PyArray_DIM(bias, 0), self->rows, "bias", "elements") < 0) return NULL;
    if (residual && check_like_y(residual, x, self->rows, "residual") < 0) return NULL;
    int64_t samples = 1;
    npy_intp shape[NPY_MAXDIMS];
    for (int i = 0; i < ndim - 1; i++) samples *= shape[i] = PyArray_DIM(x, i);
    shape[ndim - 1] = (npy_intp)self->rows;
    if (args[4] == Py_None) {
        y = new_y(self, ndim, shape);
        if (y == NULL) return NULL;
    } else {
        y = gsp_py_output(args[4], self->typenum, -1, "out");
        if (y == NULL || check_like_y(y, x, self->rows, "out") < 0) return NULL;
        if (gsp_py_overlap(y, x) || (bias && gsp_py_overlap(y, bias)) ||
            (residual && gsp_py_overlap(y, residual))) {
            PyErr_SetString(
                PyExc_ValueError,
                "out must not share memory with x, bias or residual; pass another array");
            return NULL;
        }
        Py_INCREF(y);
    }
    epilogue.bias = bias ? PyArray_DATA(bias) : NULL;
    epilogue.residual = residual ? PyArray_DATA(residual) : NULL;
    const gsp_strides strides = {1, self->cols, 1, self->rows};
    return run(self, x, samples, &strides, y, &epilogue);
}

/* Whether an optional array needs no conversion; linear looks at its shape. */
static bool is_plain_or_none(const plan_object *self, PyObject *object) {
    return object == Py_None ||
           (PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == self->typenum &&
            PyArray_ISCARRAY_RO((PyArrayObject *)object));
}

static PyObject *try_linear(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    const plan_object *self = (const plan_object *)object;
    if (count == 5 && !(is_plain(self, args[0], self->most) && is_plain_or_none(self, args[1]) &&
                        is_plain_or_none(self, args[3])))
        Py_RETURN_NONE;
    return linear(object, args, count);
}

/* -------------------------------------------------------------------- type */

static PyObject *why(const gsp_plan_info *info) {
    if (info->next == NULL)
        return PyUnicode_FromFormat("the only kernel of %s that takes this matrix and product",
                                    gsp_backend_name(info->backend));
    char ratio[32];
    PyOS_snprintf(ratio, sizeof ratio, "%.2f", info->next_cost);
    return PyUnicode_FromFormat(
        "by its slots and their cost; %s, the next best, would cost %s times as much", info->next,
        ratio);
}

static PyObject *get(PyObject *object, void *field) {
    const gsp_plan_info info = gsp_plan_describe(((const plan_object *)object)->plan);
    switch (*(const char *)field) {
    case 'k': return PyUnicode_FromString(info.kernel);
    case 'v': return PyUnicode_FromString(gsp_backend_name(info.backend));
    case 'b': return PyLong_FromUnsignedLongLong(info.bytes);
    case 'n': return PyLong_FromUnsignedLongLong(info.entries);
    case 's': return PyLong_FromUnsignedLongLong(info.slots);
    case 'c': return PyBool_FromLong(info.columns);
    case 't': return PyBool_FromLong(info.strided);
    case 'm': return PyLong_FromLongLong(info.most);
    case 'w': return why(&info);
    default: return PyFloat_FromDouble(info.efficiency);
    }
}

static PyObject *plan_repr(PyObject *object) {
    const gsp_plan_info info = gsp_plan_describe(((const plan_object *)object)->plan);
    char efficiency[16];
    PyOS_snprintf(efficiency, sizeof efficiency, "%.2f", info.efficiency);
    return PyUnicode_FromFormat("<Plan %s, %llu bytes, efficiency %s>", info.kernel,
                                (unsigned long long)info.bytes, efficiency);
}

static PyGetSetDef plan_getset[] = {
    {"kernel", get, NULL, "Name of the kernel.", "k"},
    {"backend", get, NULL, "Instruction set of the kernel.", "v"},
    {"bytes", get, NULL, "Bytes that the plan holds.", "b"},
    {"entries", get, NULL, "Elements that the matrix stores.", "n"},
    {"slots", get, NULL, "Elements that the kernel multiplies, padding included.", "s"},
    {"columns", get, NULL, "Whether x is contiguous along its samples.", "c"},
    {"strided", get, NULL, "Whether multiply takes x [cols, n].", "t"},
    {"most", get, NULL, "Samples up to which no plan for many is faster.", "m"},
    {"efficiency", get, NULL, "entries / slots.", "e"},
    {"why", get, NULL, "Why this kernel, and what the next best would cost.", "w"},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef plan_methods[] = {
    {"multiply", multiply, METH_O, "y = W x for x [cols], or x [cols, n] if the plan is strided."},
    {"try_multiply", try_multiply, METH_O,
     "multiply for x [cols] that needs no conversion, None for any other."},
    {"linear", (PyCFunction)(void (*)(void))linear, METH_FASTCALL,
     "linear(x, bias, activation, residual, out): x [..., cols] -> [..., rows]."},
    {"try_linear", (PyCFunction)(void (*)(void))try_linear, METH_FASTCALL,
     "linear where no array needs conversion and there are at most `most` samples, else None."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc,
     "A matrix laid out for one kernel of this CPU. Immutable; any number of threads may use it."},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_repr, plan_repr},
    {Py_tp_getset, plan_getset},
    {Py_tp_methods, plan_methods},
    {0, NULL},
};

static PyType_Spec plan_spec = {
    .name = "gspattern.Plan",
    .basicsize = sizeof(plan_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};

int gsp_py_kernels_types(PyObject *module) {
    gsp_py_state *state = gsp_py_state_of(module);
    state->plan_type = PyType_FromModuleAndSpec(module, &plan_spec, NULL);
    if (state->plan_type == NULL) return -1;
    return PyModule_AddObjectRef(module, "Plan", state->plan_type);
}

static PyObject *backends(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    gsp_backend found[GSP_BACKENDS];
    const int count = gsp_backends(found);
    PyObject *names = PyTuple_New(count);
    for (int i = 0; names != NULL && i < count; i++) {
        PyObject *name = PyUnicode_FromString(gsp_backend_name(found[i]));
        if (name == NULL) Py_CLEAR(names);
        else PyTuple_SET_ITEM(names, i, name);
    }
    return names;
}

static PyObject *missing_backends(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *reasons = PyDict_New();
    for (int i = GSP_BACKENDS - 1; reasons != NULL && i >= 0; i--) {
        const char *missing = gsp_backend_missing((gsp_backend)i);
        if (missing == NULL) continue;
        PyObject *reason = PyUnicode_FromString(missing);
        if (reason == NULL ||
            PyDict_SetItemString(reasons, gsp_backend_name((gsp_backend)i), reason) < 0)
            Py_CLEAR(reasons);
        Py_XDECREF(reason);
    }
    return reasons;
}

PyMethodDef gsp_py_kernels_methods[] = {
    {"missing_backends", missing_backends, METH_NOARGS, "Why each of the others is not run."},
    {"backends", backends, METH_NOARGS,
     "Names of the backends that this CPU and this build run, best first."},
    {"plan", create, METH_VARARGS,
     "plan(core, backend, n, x=-1, typenum=-1) -> Plan; core is what Matrix.core() gives, x the "
     "number of the dtype that\n"
     "x is multiplied in: bfloat16 for a bfloat16 matrix, whose typenum NumPy does not know, int8 "
     "(float32, and\n"
     "rounded) for an int8 one, else float64 or float32."},
    {NULL, NULL, 0, NULL},
};
