/* Gathers and scatters of this CPU, for gspattern.engine.gather_bench. */
#include "gsp_py.h"

#include <time.h>

#include "../kernels/gsp_gathers.h"

static PyObject *gathers(PyObject *module, PyObject *args) {
    (void)module, (void)args;
    PyObject *list = PyList_New(0);
    const gspi_gathers *row;
    for (int i = 0; list != NULL && (row = gspi_gathers_at(i)) != NULL; i++) {
        PyObject *item = Py_BuildValue("siiO", row->name, row->lanes, row->reach,
                                       row->scatters ? Py_True : Py_False);
        if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static double thread_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Does the work and times it: checking the indices is no part of it. */
static PyObject *gather(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    PyObject *objects[2];
    long long rounds;
    if (!PyArg_ParseTuple(args, "sOOL:gather", &name, &objects[0], &objects[1], &rounds))
        return NULL;
    const gspi_gathers *row;
    int number = 0;
    while ((row = gspi_gathers_at(number)) != NULL && strcmp(row->name, name) != 0) number++;
    if (row == NULL) return PyErr_Format(PyExc_ValueError, "this CPU has no instruction %s", name);
    PyArrayObject *indices = gsp_py_array(objects[0], NPY_INT32, 1, "indices");
    if (indices == NULL) return NULL;
    PyArrayObject *table = gsp_py_output(objects[1], NPY_FLOAT32, 1, "table");
    if (table == NULL) return NULL;
    if (gsp_py_overlap(indices, table)) {
        PyErr_SetString(PyExc_ValueError, "indices and table must not share memory");
        return NULL;
    }
    const int64_t count = PyArray_DIM(indices, 0), entries = PyArray_DIM(table, 0);
    const int32_t *index = PyArray_DATA(indices);
    gsp_status status;
    uint32_t sum = 0;
    double seconds = 0;
    Py_BEGIN_ALLOW_THREADS
    status = gspi_gathers_check(row, index, count, entries);
    if (status == GSP_OK) {
        seconds = thread_seconds();
        for (long long round = 0; round < rounds; round++)
            sum += gspi_gathers_run(row, index, count, PyArray_DATA(table));
        seconds = thread_seconds() - seconds;
    }
    Py_END_ALLOW_THREADS
    if (status == GSP_OK) return Py_BuildValue("dI", seconds, (unsigned)sum);
    if (row->reach == 0)
        return PyErr_Format(PyExc_ValueError, "indices must be in [0, %lld), the entries of table",
                            (long long)entries);
    return PyErr_Format(PyExc_ValueError,
                        "indices must be in [0, %lld), and every %d of them in one table of %d "
                        "entries that begins at a multiple of that",
                        (long long)entries, row->lanes, row->reach);
}

PyMethodDef gsp_py_gathers_methods[] = {
    {"gathers", gathers, METH_NOARGS,
     "gathers() -> what gather knows on this CPU: name, lanes, reach of a look-up or 0, whether it "
     "scatters."},
    {"gather", gather, METH_VARARGS,
     "gather(name, indices, table, rounds) -> seconds of CPU time, sum of the bits of what was "
     "gathered."},
    {NULL, NULL, 0, NULL},
};
