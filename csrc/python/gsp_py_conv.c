/* Convolutions by a plan. What is wrong with a caller's arguments gspattern/conv.py says; here nothing is believed. */
#include "gsp_py.h"

/* Where a C-contiguous array [images, channels, rows, cols], or [images, rows, cols, channels], has its pixels. */
static gsp_images images_of(PyArrayObject *array, int channels_last) {
    const int64_t second = PyArray_DIM(array, 1), third = PyArray_DIM(array, 2),
                  fourth = PyArray_DIM(array, 3), all = second * third * fourth;
    if (channels_last) return (gsp_images){second, third, all, 1, third * fourth, fourth};
    return (gsp_images){third, fourth, all, third * fourth, fourth, 1};
}

static int64_t channels_of(PyArrayObject *array, int channels_last) {
    return PyArray_DIM(array, channels_last ? 3 : 1);
}

static PyObject *mismatch(const char *what) {
    PyErr_Format(PyExc_ValueError, "convolve: %s does not fit", what);
    return NULL;
}

static PyObject *convolve(PyObject *module, PyObject *args) {
    PyObject *of[8];
    int last[2];
    long long kernel[2], stride[2], dilation[2], before[2];
    if (!PyArg_ParseTuple(args, "OOOpp((LL)(LL)(LL)(LL))OOOOO:convolve", &of[0], &of[1], &of[2],
                          &last[0], &last[1], &kernel[0], &kernel[1], &stride[0], &stride[1],
                          &dilation[0], &dilation[1], &before[0], &before[1], &of[3], &of[4],
                          &of[5], &of[6], &of[7]))
        return NULL;
    gsp_convolution c = {.kernel = {kernel[0], kernel[1]},
                         .stride = {stride[0], stride[1]},
                         .dilation = {dilation[0], dilation[1]},
                         .before = {before[0], before[1]}};
    gsp_py_plan_view plan;
    gsp_epilogue epilogue = {0};
    PyArrayObject *bias, *residual, *x_cols, *y_cols;
    if (gsp_py_plan(module, of[0], &plan) < 0) return NULL;
    c.bfloat16 = plan.typenum == NPY_FLOAT32 && PyArray_Check(of[1]) &&
                 PyArray_TYPE((PyArrayObject *)of[1]) == NPY_UINT16;
    if (c.bfloat16) plan.typenum = NPY_UINT16;
    PyArrayObject *x = gsp_py_array(of[1], plan.typenum, 4, "input");
    if (x == NULL) return NULL;
    PyArrayObject *y = gsp_py_output(of[2], plan.typenum, 4, "out");
    if (y == NULL || gsp_py_optional(of[3], plan.typenum, 1, "bias", &bias) < 0 ||
        gsp_py_activation(of[4], &epilogue) < 0 ||
        gsp_py_optional(of[5], plan.typenum, 4, "residual", &residual) < 0 ||
        gsp_py_optional(of[6], NPY_INT64, 1, "lengths", &x_cols) < 0 ||
        gsp_py_optional(of[7], NPY_INT64, 1, "lengths of y", &y_cols) < 0)
        return NULL;
    c.images = PyArray_DIM(x, 0);
    c.channels = channels_of(x, last[0]);
    c.x = images_of(x, last[0]);
    c.y = images_of(y, last[1]);
    if (PyArray_DIM(y, 0) != c.images || channels_of(y, last[1]) != plan.rows)
        return mismatch("out");
    if (bias && PyArray_DIM(bias, 0) != plan.rows) return mismatch("bias");
    if (residual && !PyArray_CompareLists(PyArray_DIMS(residual), PyArray_DIMS(y), 4))
        return mismatch("residual");
    if ((x_cols && PyArray_DIM(x_cols, 0) != c.images) ||
        (y_cols && PyArray_DIM(y_cols, 0) != c.images))
        return mismatch("lengths");
    if (gsp_py_overlap(y, x) || (bias && gsp_py_overlap(y, bias)) ||
        (residual && gsp_py_overlap(y, residual))) {
        PyErr_SetString(
            PyExc_ValueError,
            "out must not share memory with input, bias or residual; pass another array");
        return NULL;
    }
    epilogue.bias = bias ? PyArray_DATA(bias) : NULL;
    epilogue.residual = residual ? PyArray_DATA(residual) : NULL;
    c.x_cols = x_cols ? PyArray_DATA(x_cols) : NULL;
    c.y_cols = y_cols ? PyArray_DATA(y_cols) : NULL;
    gsp_status status;
    Py_BEGIN_ALLOW_THREADS
    status = gsp_convolve(plan.plan, &c, PyArray_DATA(x), PyArray_DATA(y), &epilogue);
    Py_END_ALLOW_THREADS
    if (status != GSP_OK) return gsp_py_raise(module, status, NULL);
    Py_RETURN_NONE;
}

PyMethodDef gsp_py_conv_methods[] = {
    {"convolve", convolve, METH_VARARGS,
     "convolve(plan, x, y, x_last, y_last, (kernel, stride, dilation, padding before x: pairs), "
     "bias, activation, residual, x_cols, y_cols): writes y. With x in bfloat16 (passed as "
     "uint16), so are y, bias and "
     "residual."},
    {NULL, NULL, 0, NULL},
};
