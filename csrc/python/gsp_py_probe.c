/* Probes of this CPU, for the roofline of gspattern.roofline. */
#include "gsp_py.h"

#include "../kernels/gsp_probe.h"

static const char *const kinds[GSPI_PROBES] = {"read", "ahead",    "permute", "step",
                                               "fma",  "load_fma", "pairs",   "bytes"};

/* Does the work; the caller times it. */
static PyObject *probe(PyObject *module, PyObject *args) {
    const char *backend_name, *kind_name;
    PyObject *object;
    long long rounds;
    if (!PyArg_ParseTuple(args, "ssOL:probe", &backend_name, &kind_name, &object, &rounds))
        return NULL;
    int backend = 0, kind = 0;
    while (backend < GSP_BACKENDS &&
           strcmp(backend_name, gsp_backend_name((gsp_backend)backend)) != 0)
        backend++;
    while (kind < GSPI_PROBES && strcmp(kind_name, kinds[kind]) != 0) kind++;
    if (backend == GSP_BACKENDS || kind == GSPI_PROBES)
        return PyErr_Format(PyExc_ValueError, "unknown backend or kind of probe: %s, %s",
                            backend_name, kind_name);
    PyArrayObject *memory = gsp_py_array(object, NPY_FLOAT32, 1, "memory");
    if (memory == NULL) return NULL;
    const size_t bytes = (size_t)PyArray_NBYTES(memory);
    if (bytes == 0 || bytes % GSPI_PROBE_BLOCK != 0 || (uintptr_t)PyArray_DATA(memory) % 64 != 0)
        return PyErr_Format(PyExc_ValueError,
                            "memory must hold a multiple of %d bytes, aligned to 64, got %zu bytes",
                            GSPI_PROBE_BLOCK, bytes);
    gsp_status status;
    float result;
    Py_BEGIN_ALLOW_THREADS
    status = gspi_probe((gsp_backend)backend, (gspi_probe_kind)kind, PyArray_DATA(memory), bytes,
                        rounds, &result);
    Py_END_ALLOW_THREADS
    if (status != GSP_OK) return gsp_py_raise(module, status, NULL);
    return Py_BuildValue("Lif", (long long)(rounds * gspi_probe_items((gsp_backend)backend, bytes)),
                         gspi_probe_lanes((gsp_backend)backend), result);
}

PyMethodDef gsp_py_probe_methods[] = {
    {"probe", probe, METH_VARARGS,
     "probe(backend, kind, memory, rounds) -> items of work done, lanes of an item, a number."},
    {NULL, NULL, 0, NULL},
};
