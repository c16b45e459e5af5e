/* The model of the paper's processor, for gspattern.engine. */
#include "gsp_py.h"

#include "../engine/gsp_engine.h"

/* The caller, gspattern.engine, has checked the engine's parameters. */
static PyObject *engine_run(PyObject *module, PyObject *args) {
    gspi_engine engine;
    gspi_stream stream;
    PyObject *values, *columns, *slot_rows, *bytes, *indptr, *store_ptr, *store_rows, *x;
    long long engine_ints[8], rows, cols, steps;
    int contiguous, fused, prefetch, gathers, scatters;
    if (!PyArg_ParseTuple(args, "(LLLLLLLLddppp)(LLLppOOOOOOO)O:engine_run", &engine_ints[0],
                          &engine_ints[1], &engine_ints[2], &engine_ints[3], &engine_ints[4],
                          &engine_ints[5], &engine_ints[6], &engine_ints[7], &engine.line_bytes,
                          &engine.bytes_per_cycle, &contiguous, &fused, &prefetch, &rows, &cols,
                          &steps, &gathers, &scatters, &values, &columns, &slot_rows, &bytes,
                          &indptr, &store_ptr, &store_rows, &x))
        return NULL;
    engine.lanes = engine_ints[0];
    engine.banks = engine_ints[1];
    engine.ports = engine_ints[2];
    engine.bank_latency = engine_ints[3];
    engine.gather_issue = engine_ints[4];
    engine.fma_lanes = engine_ints[5];
    engine.fma_latency = engine_ints[6];
    engine.dram_latency = engine_ints[7];
    engine.layout = contiguous ? GSP_CONTIGUOUS : GSP_INTERLEAVED;
    engine.fused_gather = fused;
    engine.prefetch = prefetch;

    PyArrayObject *v, *c, *r, *b, *i, *p, *s, *input;
    if ((v = gsp_py_array(values, NPY_FLOAT64, 2, "values")) == NULL ||
        (c = gsp_py_array(columns, NPY_UINT32, 2, "columns")) == NULL ||
        (r = gsp_py_array(slot_rows, NPY_UINT32, 2, "slot_rows")) == NULL ||
        (b = gsp_py_array(bytes, NPY_FLOAT64, 1, "bytes")) == NULL ||
        (i = gsp_py_array(indptr, NPY_INT64, 1, "indptr")) == NULL ||
        (p = gsp_py_array(store_ptr, NPY_INT64, 1, "store_ptr")) == NULL ||
        (s = gsp_py_array(store_rows, NPY_UINT32, 1, "store_rows")) == NULL ||
        (input = gsp_py_array(x, NPY_FLOAT64, 2, "x")) == NULL)
        return NULL;
    stream.rows = rows;
    stream.cols = cols;
    stream.bundles = PyArray_DIM(b, 0);
    stream.groups = PyArray_DIM(i, 0) - 1;
    PyArrayObject *const slots[] = {v, c, r};
    bool fits = stream.groups >= 0 && PyArray_DIM(p, 0) == PyArray_DIM(i, 0) &&
                PyArray_DIM(s, 0) == rows && PyArray_DIM(input, 0) == cols;
    for (size_t k = 0; k < 3; k++)
        fits = fits && PyArray_DIM(slots[k], 0) == stream.bundles &&
               PyArray_DIM(slots[k], 1) == engine.lanes;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the arrays of a stream must agree in their lengths");
        return NULL;
    }
    stream.values = PyArray_DATA(v);
    stream.columns = PyArray_DATA(c);
    stream.slot_rows = PyArray_DATA(r);
    stream.bytes = PyArray_DATA(b);
    stream.indptr = PyArray_DATA(i);
    stream.store_ptr = PyArray_DATA(p);
    stream.store_rows = PyArray_DATA(s);
    stream.reduction_steps = steps;
    stream.gathers = gathers;
    stream.scatters = scatters;

    npy_intp shape[] = {rows, PyArray_DIM(input, 1)};
    PyArrayObject *y = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (y == NULL) return NULL;
    gspi_cycles cycles;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS
    status = gspi_engine_run(gsp_py_state_of(module)->context, &engine, &stream, shape[1],
                             PyArray_DATA(input), PyArray_DATA(y), &cycles);
    Py_END_ALLOW_THREADS
    if (status != GSP_OK) {
        Py_DECREF(y);
        return gsp_py_raise(module, status, "stream");
    }
    return Py_BuildValue("(LdLLLLLL)N", (long long)cycles.total, cycles.stream,
                         (long long)cycles.gather, (long long)cycles.conflicts,
                         (long long)cycles.fma, (long long)cycles.reduction,
                         (long long)cycles.store, (long long)cycles.products, y);
}

PyMethodDef gsp_py_engine_methods[] = {
    {"engine_run", engine_run, METH_VARARGS,
     "engine_run(engine, stream, x) -> (total, stream, gather, conflicts, fma, reduction, store, "
     "products), y."},
    {NULL, NULL, 0, NULL},
};
