/* The model of the paper's processor, for gspattern.engine. */
#include "gsp_py.h"

#include "../engine/gsp_engine.h"

/* The caller, gspattern.engine, has checked the engine's parameters. */
static PyObject *engine_access(PyObject *module, PyObject *args) {
    long long banks, ports, issue;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "LLLO:engine_access", &banks, &ports, &issue, &object)) return NULL;
    PyArrayObject *banks_of = gsp_py_array(object, NPY_UINT16, 2, "banks_of");
    if (banks_of == NULL) return NULL;
    npy_intp accesses = PyArray_DIM(banks_of, 0);
    PyArrayObject *cycles = (PyArrayObject *)PyArray_SimpleNew(1, &accesses, NPY_INT64);
    if (cycles == NULL) return NULL;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS
    status =
        gspi_engine_access(gsp_py_state_of(module)->context, banks, ports, issue, accesses,
                           PyArray_DIM(banks_of, 1), PyArray_DATA(banks_of), PyArray_DATA(cycles));
    Py_END_ALLOW_THREADS
    if (status != GSP_OK) {
        Py_DECREF(cycles);
        return gsp_py_raise(module, status, "banks_of");
    }
    return (PyObject *)cycles;
}

static PyObject *engine_run(PyObject *module, PyObject *args) {
    long long bank_latency, fma_latency, accumulators, line_latency, reduction, index_load, n;
    int prefetch;
    gspi_engine engine;
    PyObject *objects[7];
    if (!PyArg_ParseTuple(args, "(LLLLddp)(OOOOOOOLL)L:engine_run", &bank_latency, &fma_latency,
                          &accumulators, &line_latency, &engine.line_bytes, &engine.bytes_per_cycle,
                          &prefetch, &objects[0], &objects[1], &objects[2], &objects[3],
                          &objects[4], &objects[5], &objects[6], &reduction, &index_load, &n))
        return NULL;
    engine.bank_latency = bank_latency;
    engine.fma_latency = fma_latency;
    engine.accumulators = accumulators;
    engine.line_latency = line_latency;
    engine.prefetch = prefetch;

    static const char *const names[7] = {"load",    "multiply", "bytes", "indptr",
                                         "repeats", "store",    "again"};
    static const int types[7] = {NPY_INT64, NPY_INT64, NPY_FLOAT64, NPY_INT64,
                                 NPY_INT64, NPY_INT64, NPY_FLOAT64};
    PyArrayObject *arrays[7];
    for (int k = 0; k < 7; k++)
        if ((arrays[k] = gsp_py_array(objects[k], types[k], 1, names[k])) == NULL) return NULL;
    const npy_intp bundles = PyArray_DIM(arrays[0], 0), groups = PyArray_DIM(arrays[3], 0) - 1;
    if (groups < 0 || PyArray_DIM(arrays[1], 0) != bundles ||
        PyArray_DIM(arrays[2], 0) != bundles || PyArray_DIM(arrays[4], 0) != groups ||
        PyArray_DIM(arrays[5], 0) != groups || PyArray_DIM(arrays[6], 0) != groups) {
        PyErr_SetString(PyExc_ValueError, "the arrays of a stream must agree in their lengths");
        return NULL;
    }
    const gspi_stream stream = {.bundles = bundles,
                                .groups = groups,
                                .load = PyArray_DATA(arrays[0]),
                                .multiply = PyArray_DATA(arrays[1]),
                                .bytes = PyArray_DATA(arrays[2]),
                                .indptr = PyArray_DATA(arrays[3]),
                                .repeats = PyArray_DATA(arrays[4]),
                                .store = PyArray_DATA(arrays[5]),
                                .again = PyArray_DATA(arrays[6]),
                                .reduction = reduction,
                                .index_load = index_load};
    gspi_cycles cycles;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS
    status = gspi_engine_run(&engine, &stream, n, &cycles);
    Py_END_ALLOW_THREADS
    if (status != GSP_OK) return gsp_py_raise(module, status, "stream");
    return Py_BuildValue("LdLLLL", (long long)cycles.total, cycles.stream, (long long)cycles.load,
                         (long long)cycles.fma, (long long)cycles.reduction,
                         (long long)cycles.store);
}

PyMethodDef gsp_py_engine_methods[] = {
    {"engine_access", engine_access, METH_VARARGS,
     "engine_access(banks, ports, issue, banks_of) -> cycles of each access."},
    {"engine_run", engine_run, METH_VARARGS,
     "engine_run(engine, stream, n) -> total, stream, load, fma, reduction, store."},
    {NULL, NULL, 0, NULL},
};
