/* The module gspattern._core: its state, its errors, and the intake of arrays and patterns. */
#define GSP_PY_MODULE_FILE
#include "gsp_py.h"

PyObject *gsp_py_raise(PyObject *module, gsp_status status, const char *detail) {
    const gsp_py_state *state = gsp_py_state_of(module);
    PyObject *type = PyExc_ValueError;
    switch (status) {
    case GSP_OK:
        PyErr_SetString(PyExc_SystemError, "gspattern: an error without a cause");
        return NULL;
    case GSP_ERROR_MEMORY: return PyErr_NoMemory();
    case GSP_ERROR_PATTERN:
    case GSP_ERROR_BUDGET:
    case GSP_ERROR_MASK: type = state->pattern_error; break;
    case GSP_ERROR_ROW_ORDER:
    case GSP_ERROR_INDPTR:
    case GSP_ERROR_INDEX:
    case GSP_ERROR_BANKS:
    case GSP_ERROR_DUPLICATE:
    case GSP_ERROR_PADDING:
    case GSP_ERROR_ORDER:
    case GSP_ERROR_SCALES:
    case GSP_ERROR_DTYPE: type = state->format_error; break;
    case GSP_ERROR_SHAPE:
    case GSP_ERROR_SCORE:
    case GSP_ERROR_BACKEND: break;
    }
    if (detail == NULL) PyErr_SetString(type, gsp_status_text(status));
    else PyErr_Format(type, "%s: %s", detail, gsp_status_text(status));
    return NULL;
}

PyArrayObject *gsp_py_array(PyObject *object, int typenum, int ndim, const char *name) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a NumPy array, got %s", name,
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_TYPE(array) != typenum) {
        PyArray_Descr *wanted = PyArray_DescrFromType(typenum);
        PyErr_Format(PyExc_TypeError, "%s must have dtype %S, got %S", name, wanted,
                     PyArray_DESCR(array));
        Py_XDECREF(wanted);
        return NULL;
    }
    if (ndim >= 0 && PyArray_NDIM(array) != ndim) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimension%s, got %d", name, ndim,
                     ndim == 1 ? "" : "s", PyArray_NDIM(array));
        return NULL;
    }
    if (!PyArray_ISNOTSWAPPED(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be in native byte order", name);
        return NULL;
    }
    if (!PyArray_ISALIGNED(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned", name);
        return NULL;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous", name);
        return NULL;
    }
    return array;
}

int gsp_py_optional(PyObject *object, int typenum, int ndim, const char *name,
                    PyArrayObject **array) {
    *array = NULL;
    if (object == Py_None) return 0;
    *array = gsp_py_array(object, typenum, ndim, name);
    return *array == NULL ? -1 : 0;
}

PyArrayObject *gsp_py_output(PyObject *object, int typenum, int ndim, const char *name) {
    /* First: a view that NumPy made read-only often has odd strides as well, and a copy of it is no remedy. */
    if (PyArray_Check(object) && !PyArray_ISWRITEABLE((PyArrayObject *)object)) {
        PyErr_Format(PyExc_ValueError, "%s must be writeable, got a read-only array", name);
        return NULL;
    }
    return gsp_py_array(object, typenum, ndim, name);
}

int gsp_py_pattern(PyObject *object, void *result) {
    gsp_pattern pattern = {0};
    const char *kind;
    unsigned int a = 0, b = 0;
    int layout = 0;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a pattern must be given as a tuple");
        return 0;
    }
    if (!PyArg_ParseTuple(object, "s|IIi", &kind, &a, &b, &layout)) return 0;
    if (strcmp(kind, "gs") == 0) {
        pattern.kind = GSP_GS;
        pattern.banks = a;
        pattern.per_row = b;
        pattern.layout = layout ? GSP_CONTIGUOUS : GSP_INTERLEAVED;
    } else if (strcmp(kind, "irregular") == 0) {
        pattern.kind = GSP_IRREGULAR;
    } else if (strcmp(kind, "block") == 0) {
        pattern.kind = GSP_BLOCK;
        pattern.block_rows = a;
        pattern.block_cols = b;
    } else if (strcmp(kind, "nm") == 0) {
        pattern.kind = GSP_NM;
        pattern.nm_n = a;
        pattern.nm_m = b;
    } else {
        PyErr_Format(PyExc_ValueError, "unknown kind of pattern: %s", kind);
        return 0;
    }
    *(gsp_pattern *)result = pattern;
    return 1;
}

static PyObject *set_threads(PyObject *module, PyObject *argument) {
    int overflow;
    const long threads = PyLong_AsLongAndOverflow(argument, &overflow);
    if (threads == -1 && !overflow && PyErr_Occurred()) return NULL;
    if (threads < 1 || threads > 256 ||
        gsp_context_set_threads(gsp_py_state_of(module)->context, (int)threads) != GSP_OK)
        return PyErr_Format(PyExc_ValueError, "the number of threads must be from 1 to 256, got %S",
                            argument);
    Py_RETURN_NONE;
}

static PyObject *threads(PyObject *module, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(gsp_context_threads(gsp_py_state_of(module)->context));
}

static PyMethodDef module_methods[] = {
    {"set_num_threads", set_threads, METH_O,
     "Set the number of threads of this process's work, from 1 to 256."},
    {"get_num_threads", threads, METH_NOARGS, "The number of threads."},
    {NULL, NULL, 0, NULL},
};

/* `attributes` (stolen) may be NULL. */
static PyObject *add_error(PyObject *module, const char *name, const char *full_name,
                           const char *doc, PyObject *attributes) {
    PyObject *error = PyErr_NewExceptionWithDoc(full_name, doc, PyExc_ValueError, attributes);
    Py_XDECREF(attributes);
    if (error != NULL && PyModule_AddObjectRef(module, name, error) < 0) Py_CLEAR(error);
    return error;
}

static int module_exec(PyObject *module) {
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    gsp_py_state *state = gsp_py_state_of(module);
    if (gsp_context_create(NULL, &state->context) != GSP_OK) {
        PyErr_NoMemory();
        return -1;
    }
    state->pattern_error = add_error(
        module, "PatternError", "gspattern.PatternError",
        "A pattern is malformed, does not fit a matrix, or a mask is not valid for it.", NULL);
    PyObject *rule = Py_BuildValue("{ss}", "rule", ""); /* what sets no rule has an empty one */
    if (rule == NULL) return -1;
    state->format_error = add_error(module, "FormatError", "gspattern.FormatError",
                                    "A compact matrix or a file breaks a rule of docs/FORMAT.md; "
                                    "`rule` is its name.",
                                    rule);
    if (state->pattern_error == NULL || state->format_error == NULL) return -1;
    if (PyModule_AddFunctions(module, module_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_masks_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_matrices_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_kernels_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_conv_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_recurrent_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_probe_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_gathers_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, gsp_py_engine_methods) < 0) return -1;
    return gsp_py_kernels_types(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    gsp_py_state *state = gsp_py_state_of(module);
    Py_VISIT(state->pattern_error);
    Py_VISIT(state->format_error);
    Py_VISIT(state->plan_type);
    return 0;
}

static int module_clear(PyObject *module) {
    gsp_py_state *state = gsp_py_state_of(module);
    Py_CLEAR(state->pattern_error);
    Py_CLEAR(state->format_error);
    Py_CLEAR(state->plan_type);
    return 0;
}

static void module_free(void *module) {
    gsp_py_state *state = gsp_py_state_of(module);
    if (state == NULL) return;
    module_clear(module);
    PyMem_RawFree(atomic_exchange(&state->spare, NULL));
    gsp_context_destroy(state->context);
    state->context = NULL;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030d0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gspattern._core",
    .m_doc = "The C core of gspattern.",
    .m_size = sizeof(gsp_py_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_definition); }
