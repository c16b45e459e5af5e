#include "gsp_py.h"

PyMethodDef gsp_py_kernels_methods[] = {{NULL, NULL, 0, NULL}};
int gsp_py_kernels_types(PyObject *module) { (void)module; return 0; }
