/* What the files of the binding share. One topic, one file: gsp_py_<topic>.c offers a table of
 * methods. */
#ifndef GSP_PY_H
#define GSP_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL gspattern_ARRAY_API
#ifndef GSP_PY_MODULE_FILE
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include <stdatomic.h>
#include <stdbool.h>

#include "../gspattern.h"

/* Memory that was used and is free, or NULL: its first word is its size. Taken and given back by an exchange. */
typedef _Atomic(size_t *) gsp_py_spare;

typedef struct gsp_py_state {
    gsp_context *context;
    PyObject *pattern_error; /* gspattern.PatternError */
    PyObject *format_error;  /* gspattern.FormatError */
    PyObject *plan_type;     /* gspattern.Plan */
    gsp_py_spare spare;      /* workspace of recurrent layers */
} gsp_py_state;

static inline gsp_py_state *gsp_py_state_of(PyObject *module) {
    return (gsp_py_state *)PyModule_GetState(module);
}

/* The one place where a status becomes an exception. `detail` may be NULL; it is put before the
 * status's own text. Returns NULL, so that a caller may return it. */
PyObject *gsp_py_raise(PyObject *module, gsp_status status, const char *detail);

/* `object` as an array of exactly this type, dimension (negative for any), C order, aligned,
 * native byte order, or NULL with an error that names `name` and what is wrong. A borrowed
 * reference: the caller's argument keeps it alive, and must do so until the GIL is held again. */
PyArrayObject *gsp_py_array(PyObject *object, int typenum, int ndim, const char *name);
/* The same in *array, NULL for None; returns -1 with an error. */
int gsp_py_optional(PyObject *object, int typenum, int ndim, const char *name,
                    PyArrayObject **array);
/* The same, writeable. */
PyArrayObject *gsp_py_output(PyObject *object, int typenum, int ndim, const char *name);
/* A new array, not initialized, whose data begin at a multiple of 64 bytes, or NULL with an error. */
PyArrayObject *gsp_py_aligned(int typenum, int ndim, npy_intp *shape);

/* An "O&" converter to gsp_pattern, from the tuple that gspattern.patterns builds: ("gs", banks,
 * per_row, layout) with layout 0 or 1, ("irregular",), ("block", rows, cols), ("nm", n, m). */
int gsp_py_pattern(PyObject *object, void *pattern);

/* A matrix and the lengths of its arrays from the tuple that Matrix.core() gives; 0, or -1 with
 * an error. Nothing but the types of the arrays is checked, and they are borrowed as by
 * gsp_py_array. */
int gsp_py_matrix(PyObject *core, gsp_matrix *matrix, gsp_lengths *lengths);

/* What a Plan holds: typenum is that of x and y; -1 with an error if `object` is no Plan. */
typedef struct gsp_py_plan_view {
    const gsp_plan *plan;
    int64_t rows, cols;
    int typenum;
} gsp_py_plan_view;
int gsp_py_plan(PyObject *module, PyObject *object, gsp_py_plan_view *view);

/* An activation's number, or (its number, low, high); -1 with an error. */
int gsp_py_activation(PyObject *object, gsp_epilogue *epilogue);

/* Whether two arrays may share memory. */
bool gsp_py_overlap(PyArrayObject *a, PyArrayObject *b);

extern PyMethodDef gsp_py_masks_methods[];
extern PyMethodDef gsp_py_matrices_methods[];
extern PyMethodDef gsp_py_kernels_methods[];
extern PyMethodDef gsp_py_conv_methods[];
extern PyMethodDef gsp_py_recurrent_methods[];
extern PyMethodDef gsp_py_probe_methods[];
extern PyMethodDef gsp_py_gathers_methods[];
extern PyMethodDef gsp_py_engine_methods[];

/* Adds the types of a topic to the module; 0 or -1 with an error set. */
int gsp_py_kernels_types(PyObject *module);

#endif
